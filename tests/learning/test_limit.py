"""The controller that holds a measured cost at its limit: signs, bounds, no windup, and what it measures."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvpo.learning.config import LimitConfig, TrainConfig, parse_config
from cvpo.learning.estep import least_excess, solve_dual
from cvpo.learning.limit import CostMeter, LimitController, advantage_threshold, limit_at

CONFIG = LimitConfig()


def with_integral(value: float) -> LimitController:
    return replace(LimitController.start(np.ones(1)), integral=np.array([value]))


def share(gap: float, integral: float = 0.0) -> float:
    return float(with_integral(integral).share(np.array([gap]), CONFIG)[0])


def after(gap: float, steps: int, integral: float = 0.0) -> float:
    return float(with_integral(integral).advanced(np.array([gap]), steps, CONFIG).integral[0])


def gap(measured: float, limit: float, step_cost: float = 1.0, episode_cost: float = 1e3) -> float:
    """Where steps that cost have cost so much, and an episode at most so much."""
    seen = LimitController.start(np.ones(1)).having_seen(np.array([[step_cost]]), np.array([episode_cost]))
    seen = seen.having_seen(np.zeros((3, 1)), np.zeros(1))  # less, since then
    return float(seen.gap(np.array([measured]), np.array([limit]))[0])


def test_the_gap_is_relative_to_the_limit_but_to_no_less_than_a_few_steps_that_cost() -> None:
    assert gap(30, 20) == pytest.approx(0.5)
    assert gap(20, 20) == 0.0
    assert gap(4, 0) == pytest.approx(0.4)
    assert gap(10, 25) == pytest.approx(-0.6)
    assert gap(10, 25, step_cost=4) == pytest.approx(-15 / 40)


def test_where_an_episode_costs_no_more_than_a_few_steps_the_gap_is_told_in_parts_of_it() -> None:
    # A crash costs 1, and ends the episode: over a limit of 0.1, 0.3 is a gap of the unit's size.
    assert gap(0.3, 0.1, episode_cost=1.0) == pytest.approx(1.0)


def test_a_cost_that_was_never_seen_leaves_no_gap_above_a_limit_of_zero() -> None:
    assert gap(0.5, 0.0, step_cost=0.0, episode_cost=0.0) == 0.0  # critics that have learned nothing say 0.5


def test_one_step_that_costs_far_more_than_others_does_not_switch_the_limit_off() -> None:
    # Measured at twice its limit all along, and once, in the first steps or late, 1000 in one step.
    for outlier in (3, 5_000):
        meter, controller = CostMeter.start(2_000, 1, 1), LimitController.start(np.ones(1))
        for step in range(10_000):
            cost = np.array([[1_000.0 if step == outlier else float(step % 20 == 0)]])
            meter.add(cost)
            controller = controller.having_seen(cost, meter.measured(1_000) if meter.full else None)
        assert controller.gap(meter.measured(1_000), np.array([25.0])) == pytest.approx(1.0, abs=0.2)


def test_before_an_episode_was_measured_the_gap_is_told_in_steps_that_cost() -> None:
    controller = LimitController.start(np.ones(1)).having_seen(np.array([[0.5], [0.0]]), None)
    assert controller.gap(np.array([4.0]), np.zeros(1)) == pytest.approx(0.8)


AMOUNTS = st.just(0.0) | st.floats(1e-3, 500)


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, st.sampled_from([2.0**-9, 0.5, 2.0**12]))
def test_the_gap_does_not_depend_on_the_unit_of_the_cost(
    measured: float, limit: float, step_cost: float, episode_cost: float, unit: float
) -> None:
    other = gap(unit * measured, unit * limit, unit * step_cost, unit * episode_cost)
    assert other == pytest.approx(gap(measured, limit, step_cost, episode_cost))


def test_of_a_cost_at_rest_what_was_asked_for_is_taken_back_and_no_more() -> None:
    controller, asked = with_integral(0.8), [0.8]
    for _ in range(40):
        controller = controller.taken_back(np.array([True]), 10_000, CONFIG)
        asked.append(float(controller.integral[0]))
    assert asked[1] == pytest.approx(0.8 - 0.1 * CONFIG.integral_gain)
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] == 0.0  # no cost is allowed to grow
    assert with_integral(0.8).taken_back(np.array([False]), 10_000, CONFIG).integral == [0.8]
    assert with_integral(-0.2).taken_back(np.array([True]), 10_000, CONFIG).integral == [-0.2]


def test_an_unconstrained_cost_counts_as_far_below_its_limit() -> None:
    assert gap(1e9, np.inf) == -1.0


def test_above_the_limit_cost_is_lowered_and_below_it_may_grow() -> None:
    assert share(0.4) == pytest.approx(0.2)
    assert share(-0.4) == pytest.approx(-0.2)
    assert share(0.0) == 0.0


def seen(*pairs: tuple[float, float], age: float = 50.0) -> LimitController:
    """A controller that has seen these predicted and measured costs."""
    controller = LimitController.start(np.ones(1))
    for predicted, measured in pairs:
        controller = controller.seeing(np.array([predicted]), np.array([measured]), age, CONFIG)
    return controller


def test_the_present_cost_is_what_the_critics_predict_at_the_level_that_was_measured() -> None:
    # Critics that read a hundredth of the cost, and say that it has doubled, or is halved, since it was measured.
    controller = seen(*[(0.1, 10.0)] * 10)
    assert controller.present_cost(np.array([0.2])) == pytest.approx([20.0])
    assert controller.present_cost(np.array([0.05])) == pytest.approx([5.0])
    assert controller.present_cost(np.array([0.0])) == [0.0]


def test_before_anything_is_measured_a_value_stands_for_cost_that_is_spread_evenly() -> None:
    controller = LimitController.start(np.array([0.2]))
    assert controller.present_cost(np.array([0.4])) == pytest.approx([2.0])
    controller = controller.seeing(np.array([0.4]), np.array([20.0]), 50.0, CONFIG)
    assert controller.present_cost(np.array([0.4])) == pytest.approx([20.0])  # what was assumed is forgotten


def test_noise_of_what_is_measured_averages_out() -> None:
    # 0 and 50 in turns: no more than a small part of the newest.
    noisy = seen(*[(1.0, 0.0), (1.0, 50.0)] * 2000)
    assert noisy.present_cost(np.array([1.0])) == pytest.approx([25.0], abs=0.5)


def test_a_level_that_has_changed_is_found_within_a_few_windows() -> None:
    window = 100  # twice the age
    controller = seen(*[(1.0, 10.0)] * 1000, *[(1.0, 30.0)] * int(3 * CONFIG.level_windows * window))
    assert controller.present_cost(np.array([1.0])) == pytest.approx([30.0], abs=1.1)  # but for e^-3 of the way


def test_the_past_prediction_lags_as_the_measured_cost_does() -> None:
    # Of a prediction that grows by 1 an update, the mean over the past is that of 50 updates ago.
    controller = seen(*[(float(update), 0.0) for update in range(1000)])
    assert controller.past_prediction == pytest.approx([999 - 49], abs=0.5)


def test_a_cost_that_grows_as_predicted_changes_no_level() -> None:
    # The prediction leads by the age of what is measured; the level is of the same policies.
    growing = [(float(t), 2.0 * max(t - 50, 0)) for t in range(3000)]
    assert seen(*growing).present_cost(np.array([3000.0])) == pytest.approx([6000.0], rel=0.01)


def test_the_share_is_bounded_however_far_the_cost_is_off() -> None:
    assert share(1e6) == pytest.approx(CONFIG.gain_above)
    assert share(1e6, integral=CONFIG.integral_high) == CONFIG.max_share
    assert share(-1e6, integral=CONFIG.integral_low) == -1.0  # −0.5 · 2 − 0.3


def test_the_integral_grows_with_time_above_the_limit() -> None:
    assert after(0.5, 10_000) == pytest.approx(0.15)
    assert after(0.5, 100) == pytest.approx(0.0015)
    assert after(-0.5, 10_000) == pytest.approx(-0.15)
    assert after(50.0, 100) == after(1.0, 100)  # no faster, however far above
    assert after(-50.0, 100, integral=0.2) == pytest.approx(after(-1.0, 100, integral=0.2))


def test_the_integral_does_not_wind_up() -> None:
    # Far above the limit the gap alone asks for 0.5 of the largest share, 0.9: the integral fills up the rest and no
    # more, and is undone within two periods below the limit.
    controller = LimitController.start(np.ones(1))
    for _ in range(1000):
        controller = controller.advanced(np.array([50.0]), 10_000, CONFIG)
    assert controller.integral[0] == pytest.approx(0.4)
    for _ in range(2):
        controller = controller.advanced(np.array([-1.0]), 10_000, CONFIG)
    assert controller.integral[0] < 0
    # Far below it, the gap alone asks for all there is.
    for _ in range(1000):
        controller = controller.advanced(np.array([-50.0]), 10_000, CONFIG)
    assert controller.integral[0] == pytest.approx(-0.2)  # as it was


def test_a_small_gap_that_stays_takes_the_integral_to_its_bound() -> None:
    controller = LimitController.start(np.ones(1))
    for _ in range(1000):
        controller = controller.advanced(np.array([0.1]), 10_000, CONFIG)
    assert controller.integral[0] == CONFIG.integral_high
    for _ in range(1000):
        controller = controller.advanced(np.array([-0.1]), 10_000, CONFIG)
    assert controller.integral[0] == CONFIG.integral_low


@pytest.mark.parametrize(
    ("gap", "integral", "exhausted"),
    [
        (1.0, 0.4, True),  # 0.5 + 0.4 is the largest share
        (1.0, 0.39, False),
        (0.1, CONFIG.integral_high, True),  # the share is below its bound, but nothing will raise it
        (0.1, 0.79, False),
        (-1.0, 0.0, False),
    ],
)
def test_no_more_can_be_asked_when_the_share_or_its_integral_is_at_its_bound(
    gap: float, integral: float, exhausted: bool
) -> None:
    assert with_integral(integral).exhausted(np.array([gap]), CONFIG).tolist() == [exhausted]


def test_each_constraint_has_its_own_controller() -> None:
    controller = LimitController.start(np.ones(2)).advanced(np.array([1.0, -1.0]), 5_000, CONFIG)
    np.testing.assert_allclose(controller.integral, [0.15, -0.15])
    gap = np.array([0.4, -0.4])
    np.testing.assert_allclose(controller.share(gap, CONFIG), [0.35, -0.35])


def test_each_of_several_costs_is_held_as_it_would_be_alone() -> None:
    # One that costs now and then and is over its limit, one that never costs under a limit of zero, and a dear one that
    # costs once. Nothing is seen to the end of an episode before the fourth step.
    generator = np.random.default_rng(0)
    costs = np.zeros((20, 2, 3))
    costs[..., 0] = generator.random((20, 2)) < 0.5
    costs[7, 1, 2] = 100.0
    limits, units = np.array([5.0, 0.0, 30.0]), np.array([0.2, 0.5, 1.0])

    def held(columns: list[int]) -> NDArray[np.float64]:
        controller, meter = LimitController.start(units[columns]), CostMeter.start(4, 2, len(columns))
        for cost in costs[..., columns]:
            meter.add(cost)
            measured, limit = meter.measured(100), limits[columns]
            controller = controller.having_seen(cost, measured if meter.full else None)
            controller = controller.seeing(units[columns] * (1 + measured), measured, 2.0, CONFIG)
            gap = controller.gap(measured, limit)
            controller = controller.advanced(gap, 1_000, CONFIG).taken_back((measured + limit) == 0, 1_000, CONFIG)
        present = controller.present_cost(units[columns])
        return np.stack(
            [gap, present, controller.share(gap, CONFIG), controller.exhausted(gap, CONFIG), controller.integral]
        )

    np.testing.assert_allclose(held([0, 1, 2]), np.hstack([held([index]) for index in range(3)]), rtol=1e-12)


def test_thresholds_are_shares_of_what_the_ball_can_reach() -> None:
    asked, least, free = np.array([0.5, -0.5, -0.5, 0.0]), np.full(4, -2.0), np.array([3.0, 3.0, -3.0, 3.0])
    threshold = advantage_threshold(asked, least, free, np.full(4, 25.0))
    np.testing.assert_array_equal(threshold, [-1.0, 1.5, 0.0, 0.0])


def test_an_unconstrained_cost_has_no_threshold() -> None:
    threshold = advantage_threshold(np.array([-1.0]), np.array([-1.0]), np.array([1.0]), np.array([np.inf]))
    np.testing.assert_array_equal(threshold, [np.inf])


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 1e4),
    st.floats(0, 100),
    st.floats(CONFIG.integral_low, CONFIG.integral_high),
)
def test_what_is_asked_of_one_constraint_is_always_feasible(
    seed: int, measured: float, limit: float, integral: float
) -> None:
    generator = np.random.default_rng(seed)
    reward, cost = generator.normal(size=(8, 6)), generator.normal(size=(8, 6, 1)) * 10.0 ** generator.uniform(-3, 3)
    advantage = cost - cost.mean(1, keepdims=True)
    asked = with_integral(integral).share(np.array([gap(measured, limit)]), CONFIG)
    least = least_excess(advantage, np.zeros(1), 0.1)[1]
    free = solve_dual(reward, advantage, np.array([np.inf]), 0.1).cost
    solution = solve_dual(reward, advantage, advantage_threshold(asked, least, free, np.array([limit])), 0.1)
    assert solution.feasible
    assert solution.cost_residual[0] <= 1e-6
    # Bounded, so no cap is needed: at 0.9 of what the ball can reach a unit of cost is not yet worth much reward.
    spread = reward.std() / advantage.std()
    assert solution.cost_multiplier[0] <= 20 * spread


# Limits that are scheduled.


def scheduled(limits: list[float], *points: tuple[int, list[float]]) -> TrainConfig:
    return parse_config(
        {
            "environment": {"env_id": "none"},
            "cost_limits": limits,
            "schedule": {"steps": 1_000, "warmup_steps": 100},
            "limit": {"schedule": points},
        }
    )


@pytest.mark.parametrize(
    ("steps", "limit"), [(0, 60), (99, 60), (100, 60), (150, 50), (200, 40), (250, 35), (299, 30.1), (300, 25)]
)
def test_limits_are_linear_between_points_and_final_from_the_last_one_on(steps: int, limit: float) -> None:
    # From 60 at 100 over 40 at 200 to 30 at 300, where 25 takes over.
    config = scheduled([25], (100, [60]), (200, [40]), (300, [30]))
    np.testing.assert_allclose(limit_at(config, steps), [limit])
    np.testing.assert_array_equal(limit_at(config, steps + 10_000), [25])


def test_each_limit_has_its_own_schedule_and_none_stays_none() -> None:
    config = scheduled([25, math.inf, 0], (0, [60, math.inf, 10]), (100, [60, math.inf, 0]))
    np.testing.assert_allclose(limit_at(config, 50), [60, math.inf, 5])
    np.testing.assert_allclose(limit_at(config, 100), [25, math.inf, 0])


def test_without_a_schedule_the_limits_hold_from_the_first_step_on() -> None:
    np.testing.assert_array_equal(limit_at(scheduled([25, math.inf]), 0), [25, math.inf])


# What is measured.


def meter(costs: list[list[float]], window: int) -> CostMeter:
    """Costs by step and environment."""
    filled = CostMeter.start(window, len(costs[0]), 1)
    for step in costs:
        filled.add(np.array(step)[:, None])
    return filled


def measured(costs: list[list[float]], window: int, horizon: int) -> float:
    value: NDArray[np.float64] = meter(costs, window).measured(horizon)
    assert value.shape == (1,)
    return float(value[0])


def test_the_measured_cost_is_that_of_the_newest_horizon_averaged_over_environments() -> None:
    # Window and horizon 3; of four steps the newest three count: (2+3+4 + 20+30+40)/2.
    assert measured([[1, 10], [2, 20], [3, 30], [4, 40]], 3, 3) == pytest.approx(99 / 2)


def test_before_a_horizon_is_full_the_cost_is_extrapolated() -> None:
    assert measured([[1, 3]], 4, 4) == pytest.approx(8)
    assert measured([[1, 3], [0, 0]], 4, 4) == pytest.approx(4)
    assert CostMeter.start(4, 2, 1).measured(4) == [0.0]


def test_a_longer_window_is_an_average_over_horizons() -> None:
    assert measured([[1], [2], [3], [4]], 4, 2) == pytest.approx(5)


def test_an_episode_that_ends_early_does_not_look_cheap() -> None:
    # Cost 1 a step, but every episode ends after 5 of its 100 steps: by episodes it would cost 5, by steps it is 100.
    assert measured([[1.0]] * 200, 100, 100) == pytest.approx(100)


def test_each_cost_is_measured_apart() -> None:
    two = CostMeter.start(2, 1, 2)
    for step in ([1.0, 10.0], [2.0, 20.0]):
        two.add(np.array([step]))
    np.testing.assert_allclose(two.measured(2), [3, 30])
