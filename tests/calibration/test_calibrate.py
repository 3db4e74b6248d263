"""Calibration: values worked out by hand, what must be conservative, and the coverage it claims."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from cvpo.bundle import CalibratedMode, CalibrationResult, Constraint
from cvpo.calibration import results
from cvpo.calibration.alarm import choose_level, lead
from cvpo.calibration.budgets import BUDGETS, budget_sessions, sessions
from cvpo.calibration.calibrate import DETERMINISTIC, MINIMUM_EPISODES, CalibratedMap, calibrate_also, least_episodes
from cvpo.calibration.calibrate import calibrate as calibrate_normalized
from cvpo.calibration.conformal import TIE, conformal_map, share_within
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.forecast_fit import ForecastEpisode, horizon_grid
from cvpo.calibration.intervals import resampled, wilson
from cvpo.calibration.results import calibration_error, cost_upper, reliability
from cvpo.calibration.sessions import Session
from cvpo.errors import ConfigError, ExportError, NonFiniteError
from cvpo.evaluate import Episode
from cvpo.learning.returns import window_cost

Array = NDArray[np.float64]
T, W = 12, 3


def constraint(limit: float | None = 6.0, name: str = "cost", horizon: int = T, window: int = W) -> Constraint:
    return Constraint(name=name, cost_limit=limit, discount=0.9, horizon_steps=horizon, window_steps=window)


def episode(cost: list[float] | Array, cost_value: list[float] | Array, terminated: bool = False) -> Episode:
    costs, values = (np.array(x, np.float64).reshape(len(cost), -1) for x in (cost, cost_value))
    length = len(costs)
    return Episode(np.zeros((length, 1), np.float32), np.zeros(length), costs, terminated, values, None, None)


def as_it_is(observation: torch.Tensor) -> torch.Tensor:
    return observation


def calibrate(
    episodes: list[Episode],
    constraints: list[Constraint],
    seed: int,
    confidence: float = 0.9,
    miss_rate: float = 0.05,
) -> CalibratedMap:
    return calibrate_normalized(episodes, constraints, as_it_is, seed=seed, confidence=confidence, miss_rate=miss_rate)


def followed(found: CalibratedMap, an_episode: Episode) -> ForecastEpisode:
    return ForecastEpisode(an_episode, found.forecast, as_it_is)


def coverage(result: CalibrationResult) -> float:
    assert result.coverage is not None
    return result.coverage


def ask(found: CalibratedMap, cost_value: float, steps: int, allowed: float) -> tuple[float, float, float]:
    left = torch.tensor([steps])
    forecast = found.forecast(torch.zeros(1, 1), torch.tensor([[[float(cost_value)]]]), left)
    prediction = found.cost_map(forecast, left, torch.tensor([[float(allowed)]]))
    go, upper, probability = (float(value[0, 0, 0]) for value in prediction)
    return go, upper, probability


def test_the_cost_of_the_next_steps_is_known_where_they_were_observed_or_nothing_followed() -> None:
    steps = np.array([2, 2, 2, 2])
    cut = episode([1, 0, 2, 1], [0, 0, 0, 0])
    cost, observed = window_cost(cut.cost, steps, cut.terminated)
    assert cost[:, 0].tolist() == [1, 2, 3, 1]
    assert observed.tolist() == [True, True, True, False]
    ended = episode([1, 0, 2, 1], [0, 0, 0, 0], terminated=True)
    cost, observed = window_cost(ended.cost, np.array([4, 9, 1, 1]), ended.terminated)
    assert cost[:, 0].tolist() == [4, 3, 2, 1]
    assert observed.all()


def test_the_grid_has_one_step_the_window_and_the_horizon() -> None:
    grid = horizon_grid(1000, 100, 12)
    assert {1, 100, 1000} <= set(grid.tolist())
    assert (np.diff(grid) > 0).all()
    assert horizon_grid(1, 1, 12).tolist() == [1]


def test_a_cost_that_never_varies_is_predicted_exactly() -> None:
    found = calibrate([episode([1.0] * T, [5.0] * T) for _ in range(40)], [constraint()], seed=0)
    for steps in range(1, T + 1):
        # 12 episodes calibrate: a thirteenth of the probability lies at infinity, the rest at the cost.
        assert ask(found, 5.0, steps, steps) == pytest.approx((steps, steps, 1 / 13), rel=1e-5)
        assert ask(found, 5.0, steps, steps - 0.01)[2] == 1


def test_a_policy_without_cost_raises_no_flag() -> None:
    found = calibrate([episode([0.0] * T, np.full(T, 0.2)) for _ in range(40)], [constraint()], seed=0)
    assert ask(found, 0.2, T, 0.0) == pytest.approx((0, 0, 1 / 13))
    assert found.record.alarm_levels == (0.1,)
    result = found.record.results[0]
    assert (result.coverage, result.missed_share, result.flagged_share) == (1, None, 0)
    (sentence,) = found.record.not_claimed
    assert "No miss rate: 5% needs 19 episodes that exceed budgets" in sentence
    assert sentence.endswith("of the 10 that choose the level none did.")


def test_a_critic_that_knows_separates_what_a_mean_would_mix() -> None:
    # Half of the episodes cost 4 in the first step, and the critic says which.
    dear = episode([4.0] + [0.0] * (T - 1), [3.0] * T)
    free = episode([0.0] * T, [0.0] * T)
    found = calibrate([dear, free] * 50, [constraint()], seed=1)
    assert ask(found, 3.0, T, 3.9)[2] > 0.8
    assert ask(found, 0.0, T, 3.9)[2] < 0.2
    assert ask(found, 0.0, T, 4.0)[2] == pytest.approx(1 / 31, rel=1e-5)  # 30 episodes calibrate
    assert ask(found, 3.0, T, 4.0)[2] == pytest.approx(1 / 31, rel=1e-5)
    assert ask(found, 3.0, T, 0.0)[1] == 4
    assert ask(found, 3.0, T, 0.0)[0] > 3.5 > 0.5 > ask(found, 0.0, T, 0.0)[0]


def test_a_truncated_rest_is_unknown_and_a_terminated_one_costs_nothing() -> None:
    cut = calibrate([episode([1.0] * 6, [2.0] * 6) for _ in range(40)], [constraint()], seed=0)
    assert ask(cut, 2.0, W, 3.0)[2] == pytest.approx(1 / 13, rel=1e-5)
    assert ask(cut, 2.0, T, 1000.0)[1:] == (math.inf, 1)
    ended = calibrate([episode([1.0] * 6, [2.0] * 6, terminated=True) for _ in range(40)], [constraint()], seed=0)
    assert ask(ended, 2.0, T, 6.0)[1:] == pytest.approx((6, 1 / 13), rel=1e-5)


def test_each_episode_weighs_the_same_however_many_steps_it_has() -> None:
    atoms = np.array([[[[0.0, 1.0]]]])
    cost_map = CostMap(np.array([T]), np.zeros((1, 1)), atoms, atoms[..., 0], np.zeros((1, 1, 2)), 0.9)
    episodes = [episode([1.0], [0.0], terminated=True), episode([0.0] * 10, [0.0] * 10, terminated=True)]
    forecast = CostForecast(1, T, np.ones(1)).eval()
    share = share_within(
        cost_map, [ForecastEpisode(e, forecast, as_it_is) for e in episodes], [np.full(1, T), np.full(10, T)]
    )
    # Two episodes and the fresh one: a third each. Only the second has no cost; both are within the atom at 1.
    assert share[0] == pytest.approx([1 / 3, 2 / 3])


def test_short_episodes_weigh_as_much_as_long_ones_in_the_mean() -> None:
    short, long = episode([1.0], [2.0], terminated=True), episode([0.0] * T, [2.0] * T)
    found = calibrate([short, long] * 50, [constraint()], seed=0)
    assert ask(found, 2.0, 1, 0.0)[0] == pytest.approx(0.5, abs=0.2)  # by steps it would be a thirteenth


def test_what_is_left_of_an_episode_counts_beside_windows_inside_it() -> None:
    # Only the last step costs. Of the windows of six steps one in seven holds it; what is left of an episode always.
    found = calibrate([episode([0.0] * (T - 1) + [5.0], [2.0] * T) for _ in range(40)], [constraint()], seed=0)
    assert ask(found, 2.0, 6, 4.9)[2] > 0.7  # by windows alone about 0.2
    assert ask(found, 2.0, 6, 4.9)[1] >= 5


def test_the_service_is_imitated_with_budgets_less_what_was_spent() -> None:
    constant = episode([1.0] * T, [5.0] * T)
    found = calibrate([constant] * 40, [constraint(6.0)], seed=0)
    tried = sessions(found.cost_map, followed(found, constant), constraint(6.0), 0, np.geomspace(0.25, 2, 7))
    # Budgets of 1.5, 2.1, 3, 4.2, 6, 8.5 and 12: exceeded by the second, third, fourth, fifth, seventh and ninth step.
    assert [session.crossing for session in tried] == [1, 2, 3, 4, 6, 8, None]
    for session in tried[:-1]:
        assert (session.probability == 1).all()
    assert tried[-1].probability == pytest.approx(np.full(T, 1 / 13), rel=1e-5)
    assert sessions(found.cost_map, followed(found, constant), constraint(None), 0) == []


def test_a_budget_that_is_left_counts_for_the_steps_that_are_left() -> None:
    late = episode([0.0] * (T - 1) + [5.0], [2.0] * T)
    found = calibrate([late] * 40, [constraint(6.0)], seed=0)
    (short, enough) = budget_sessions(found.cost_map, followed(found, late), constraint(6.0), 0, np.array([4.9, 5.0]))
    assert (short.crossing, enough.crossing) == (T - 1, None)
    assert short.probability.min() > 0.9
    assert enough.probability.max() < 0.3  # between the numbers of steps that are told, a guess


@pytest.mark.parametrize("count", [20, 60])
def test_the_bound_holds_as_claimed_on_exchangeable_episodes(count: int) -> None:
    """Over many calibrations, the share of a fresh episode's steps within the bound is the claimed one or more."""
    generator = np.random.default_rng(count)

    def draw() -> Episode:
        rate = min(generator.gamma(0.5, 0.4), 0.9)  # episodes differ, and most cost nothing
        length = T if generator.random() < 0.7 else int(generator.integers(1, T))
        cost = (generator.random(length) < rate) * generator.integers(1, 3, length)
        return episode(cost.astype(float), np.abs(6 * rate + generator.normal(0, 0.5, length)), length < T)

    windows: list[float] = []
    rests: list[float] = []
    for repetition in range(12):
        found = calibrate([draw() for _ in range(count)], [constraint()], seed=repetition)
        for fresh in (draw() for _ in range(20)):
            start = np.arange(len(fresh.cost))
            for steps, shares in ((np.full(len(start), W), windows), (T - start, rests)):
                cost, observed = window_cost(fresh.cost, steps, fresh.terminated)
                upper = cost_upper(found.cost_map, followed(found, fresh), steps)
                if observed.any():
                    shares.append((cost <= upper)[observed].mean())
    for shares in (windows, rests):
        # A share has a variance of at most p(1 - p); three standard errors of 240 of them.
        assert np.mean(shares) >= 0.9 - 3 * math.sqrt(0.09 / len(shares))
    if count == 60:
        assert np.mean(windows) < 0.99  # a bound that always held would claim too little


def falls(cost: float, length: int, terminated: bool) -> Episode:
    """An episode whose last step alone costs anything."""
    return episode([0.0] * (length - 1) + [cost], [1.0] * length, terminated)


def test_the_bound_of_what_is_left_holds_where_episodes_end_early() -> None:
    # Of 100 episodes 8 fall, which costs 50 and ends them after two steps, with more than 10 left; 7 of the others cost
    # 10 in the last step. Steps, not episodes, make up a range of steps left: a third of those with more than 10 are of
    # episodes that fall. Did episodes weigh the same there, a bound of 0.9 would leave out the 50 and elsewhere the 10,
    # of 8 and 7 % of all steps. As it is it leaves out the 10 in up to 10 of 12 steps.
    kinds = [falls(50.0, 2, True), falls(10.0, T, False), falls(0.0, T, False)]
    forecast = CostForecast(1, T, np.ones(1)).eval()
    fall, dear, free = (ForecastEpisode(e, forecast, as_it_is) for e in kinds)
    some, all_of_them = [fall] * 2 + [dear] * 2 + [free] * 16, [fall] * 8 + [dear] * 7 + [free] * 85
    cost_map = conformal_map(some, all_of_them, [constraint()], 0.9)
    covered = []
    for fresh in (fall, dear, free):
        left = T - np.arange(len(fresh))
        cost, _ = fresh.window_cost(left)
        covered.append((cost * (1 - TIE) <= cost_upper(cost_map, fresh, left)).mean())
    assert np.dot([0.08, 0.07, 0.85], covered) >= 0.9  # of a random step of a random episode


def test_episodes_of_one_length_weigh_exactly_the_same() -> None:
    atoms = np.array([[[[0.0, 1.0, 2.0]]]])
    cost_map = CostMap(np.array([1]), np.zeros((1, 1)), atoms, atoms[..., 0], np.zeros((1, 1, 3)), 0.9)
    forecast = CostForecast(1, T, np.ones(1)).eval()
    episodes = [ForecastEpisode(falls(cost, T, False), forecast, as_it_is) for cost in (0.0, 1.0, 1.0, 2.0, 2.0, 2.0)]
    left = [T - np.arange(T)] * 6
    share = share_within(cost_map, episodes, left, [steps > 7 for steps in left])
    assert share[0].tolist() == [1 / 7, 3 / 7, 6 / 7]  # and the fresh one


def test_an_episode_weighs_by_the_share_of_its_steps_in_a_range_of_steps_left() -> None:
    atoms = np.array([[[[0.0, 1.0]]]])
    cost_map = CostMap(np.array([1]), np.zeros((1, 1)), atoms, atoms[..., 0], np.zeros((1, 1, 2)), 0.9)
    forecast = CostForecast(1, T, np.ones(1)).eval()
    episodes = [ForecastEpisode(e, forecast, as_it_is) for e in (falls(1.0, 3, True), falls(0.0, T, False))]
    left = [T - np.arange(len(e)) for e in episodes]
    share = share_within(cost_map, episodes, left, [steps > 9 for steps in left])
    # All steps of the first and a quarter of the second's: 1 and 1/4, and 1 for the fresh one.
    assert share[0] == pytest.approx([0.25 / 2.25, 1.25 / 2.25])


def over(*announced: float) -> list[Session]:
    """Sessions of one episode, each announced at its first step and over its budget 20 steps later."""
    return [Session(np.array([probability, *[0.0] * 20]), 20) for probability in announced]


def test_the_alarm_level_is_the_highest_that_misses_two_fifths_of_what_is_right_on_average() -> None:
    # One session over budget in each of 19 episodes, announced with 0.05, 0.10, ..., 0.95. For a miss rate of 0.2,
    # (missed + 1)/20 <= 0.2 admits three misses, and two fifths of them are 1.2: it is just below the second one.
    clean = Session(np.full(21, 0.99), None)
    episodes = [[*over(0.05 * k), clean] for k in range(1, 20)]
    chosen = choose_level(episodes, 20, confidence=0.9, miss_rate=0.2)
    assert chosen.level == pytest.approx(0.10)
    assert chosen.level < 0.10
    assert chosen.note == "0.1, chosen on 19 sessions over budget of 19 episodes"
    # For 0.4 it admits seven, of which two fifths are 2.8: just below the third one.
    assert choose_level(episodes, 20, confidence=0.9, miss_rate=0.4).level == pytest.approx(0.15)
    # For 0.1 it admits one, of which two fifths are none, and for 0.05 none.
    assert choose_level(episodes, 20, confidence=0.9, miss_rate=0.1).level == pytest.approx(0.05)
    assert choose_level(episodes, 20, confidence=0.9, miss_rate=0.05).level == pytest.approx(0.05)


def test_the_miss_rate_is_kept_in_four_of_five_calibrations() -> None:
    # Sessions announced with a uniform probability: a level misses a share of them that is the level itself. Of 80,
    # 3.05 are right on average, and one is missed: the second lowest, 2/81 on average, is over 0.05 where at most one
    # of 80 is below that, 0.95^80 + 80 · 0.05 · 0.95^79 = 0.086.
    generator = np.random.default_rng(0)
    levels = [
        choose_level([over(p) for p in generator.random(80)], 20, confidence=0.9, miss_rate=0.05).level
        for _ in range(100)
    ]
    assert np.mean(np.array(levels) <= 0.05) >= 0.8
    assert np.mean(levels) == pytest.approx(2 / 81, abs=0.006)  # three standard errors


def test_the_miss_rate_is_of_all_sessions_and_not_a_mean_over_episodes() -> None:
    # Of 20 episodes one session is announced, with 0.9, and of 20 three with 0.9 and one with 0.2. Missing these is a
    # mean of 12.5 % over episodes, and 20 % of the 100 sessions. They are worth 100²/(20 · 1 + 20 · 16) = 29.4
    # episodes, of which 0.4 · (0.4 · 30.4 - 1) or 15.2 % may be missed for 0.4, and 23.5 % for 0.6.
    episodes = [over(0.9), over(0.9, 0.9, 0.9, 0.2)] * 20
    assert choose_level(episodes, 20, confidence=0.9, miss_rate=0.4).level == pytest.approx(0.2)
    assert choose_level(episodes, 20, confidence=0.9, miss_rate=0.6).level == pytest.approx(0.9)


def test_many_sessions_of_one_episode_are_no_more_evidence_than_a_few_episodes() -> None:
    # 19 episodes of which one has 20 sessions over budget and the others one: worth 38²/(20² + 18) = 3.45.
    uneven = choose_level([over(*[0.6] * 20), *[over(0.6)] * 18], 20, confidence=0.9, miss_rate=0.05)
    assert uneven.shortage is not None
    assert uneven.shortage.endswith("of the 19 that choose the level 19 did, worth 3.45.")
    assert choose_level([over(*[0.6] * 20)] * 19, 20, confidence=0.9, miss_rate=0.05).shortage is None


def test_budgets_are_log_uniform_from_a_quarter_of_the_limit_to_twice_the_limit() -> None:
    # Each stands for an equal part of that range, in its middle.
    edges = np.geomspace(0.25, 2, len(BUDGETS) + 1)
    assert pytest.approx(np.sqrt(edges[1:] * edges[:-1])) == BUDGETS


def test_a_flag_that_comes_too_late_counts_as_none() -> None:
    late = Session(np.array([0.3, *[0.9] * 20]), 20)
    assert late.announced(20) == 0.3
    assert late.announced(19) == 0.9
    assert choose_level([[late]] * 30, 20, confidence=0.9, miss_rate=0.05).level == pytest.approx(0.3)
    # What exceeds its budget within the lead cannot be announced, and does not decide.
    sudden = Session(np.array([0.01, 0.9]), 1)
    assert choose_level([[late, sudden]] * 30, 20, confidence=0.9, miss_rate=0.05).level == pytest.approx(0.3)


def test_a_flag_is_a_probability_over_the_level_up_to_the_step_that_exceeds_the_budget() -> None:
    session = Session(np.array([0.1, 0.5, 0.2, 0.6, 0.9]), 3)
    # From the second step to the fourth, whose cost exceeds the budget: at 0.5 only the fourth is over.
    assert [session.lead_steps(level) for level in (0.4, 0.5, 0.6)] == [2, 0, None]
    assert [session.flagged_share(level) for level in (0.4, 0.5, 0.6)] == [0.6, 0.4, 0.2]
    assert Session(np.array([0.9]), None).lead_steps(0.5) is None
    assert [session.announceable(steps) for steps in (3, 4)] == [True, False]
    assert (session.decided, session.clean) == (True, False)


def test_sessions_that_exceed_their_budget_too_soon_to_announce_are_no_misses() -> None:
    # All cost 7 in the first step, over the limit of 6 at once: no flag can come a step before.
    found = calibrate([episode([7.0] + [0.0] * (T - 1), [3.0] * T)] * 40, [constraint()], seed=0)
    (result,) = found.record.results
    assert (result.missed_share, result.limit_missed_share, result.too_soon_share) == (None, None, 1)


def test_wilsons_interval_is_the_published_one() -> None:
    found = wilson(0, 10)  # Newcombe (1998)
    assert (found.mean, found.low) == (0, 0)
    assert found.high == pytest.approx(0.2775, abs=1e-4)


def test_a_share_has_the_interval_of_resampled_episodes() -> None:
    # Of 100 episodes half hold: the standard error is 0.05. Two more say nothing.
    found = resampled([1.0, 0.0] * 50 + [0.0] * 2, [1.0] * 100 + [0.0] * 2)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.402, 0.598), abs=0.015)
    # With ten sessions of each episode, which are alike, it is as wide.
    assert resampled([10.0, 0.0] * 50, [10.0] * 100) == resampled([1.0, 0.0] * 50, [1.0] * 100)
    # What is too much in one episode and too little in another is right of both together.
    apart = resampled(np.array([[0.5], [-0.5]]), [1.0, 1.0])
    assert apart is not None
    assert (apart.mean, apart.low, apart.high) == (0, 0, 0.5)
    assert resampled([0.0], [0.0]) is None


def test_where_all_episodes_agree_the_interval_is_that_of_as_many_cases() -> None:
    assert resampled([0.0] * 10, [3.0] * 10) == wilson(0, 10)
    assert resampled([3.0] * 10, [3.0] * 10) == wilson(10, 10)


def test_the_record_has_an_interval_for_each_share_that_it_has() -> None:
    generator = np.random.default_rng(3)
    found = calibrate(
        [episode((generator.random(T) < 0.5).astype(float), np.ones(T)) for _ in range(60)], [constraint()], 0
    )
    (result,) = found.record.results
    assert result.window_coverage is not None
    assert result.rest_coverage is not None
    # Of T steps T - W + 1 windows were observed, and what is left of all.
    pooled = (10 * result.window_coverage + 12 * result.rest_coverage) / 22
    assert result.coverage == pytest.approx(pooled)
    names = ["coverage", "window_coverage", "rest_coverage", "missed_share", "too_soon_share", "flagged_share"]
    assert list(result.intervals) == [*names, "calibration_error"]
    for name, (low, high) in result.intervals.items():
        assert low <= getattr(result, name) <= high, name


def test_coverage_is_of_every_bound_that_was_seen_to_its_end_of_windows_and_of_what_is_left() -> None:
    # The bound is always 3 of the first cost, which is never spent, and 1.5 of the second: 2 in the first step of one
    # episode, in the last of the other. One window of ten is over it in each; of what is left one of twelve, and all.
    grid = horizon_grid(T, W, 12)
    atoms = np.broadcast_to(np.array([3.0, 1.5])[:, None, None, None], (2, len(grid), 1, 1))
    cost_map = CostMap(grid, np.zeros((2, 1)), atoms, atoms[..., 0] / 2, np.full((2, len(grid), 1), 0.9), 0.9)
    forecast = CostForecast(1, T, np.ones(2)).eval()
    costs = np.zeros((2, T, 2))
    costs[0, 0, 1] = costs[1, -1, 1] = 2.0
    episodes = [ForecastEpisode(episode(cost, np.zeros((T, 2))), forecast, as_it_is) for cost in costs]
    found = [
        results.result_of(cost_map, results.Tested(DETERMINISTIC, {}, episodes), index, constraint(), alarm_level=0.5)
        for index in (0, 1)
    ]
    assert [(r.coverage, r.window_coverage, r.rest_coverage) for r in found] == [
        (1, 1, 1),
        (pytest.approx((20 + 9) / 44), 0.9, pytest.approx(11 / 24)),
    ]
    assert [r.cost_to_go_mean for r in found] == [1.5, 0.75]
    assert [r.episode_cost_mean for r in found] == [0, 2]


def test_with_too_few_violations_the_level_stays_where_the_bound_meets_what_is_allowed() -> None:
    chosen = choose_level([over(0.6)] * 3, 20, confidence=0.9, miss_rate=0.05)
    assert chosen.level == 0.1
    assert chosen.shortage == (
        "No miss rate: 5% needs 19 episodes that exceed budgets late enough to announce it, 20 steps before; of "
        "the 3 that choose the level 3 did, worth 3."
    )
    assert choose_level([over(0.04)] * 3, 20, confidence=0.9, miss_rate=0.05).level == pytest.approx(0.04)
    # A tenth is announced with no more than 0.04, and may be missed where that is the miss rate.
    assert choose_level([over(0.04, *[0.6] * 9)] * 3, 20, confidence=0.9, miss_rate=0.1).level == 0.1
    assert choose_level([over(0.04, *[0.6] * 9)] * 3, 20, confidence=0.9, miss_rate=0.09).level == pytest.approx(0.04)


def test_where_nothing_announces_what_comes_every_probability_is_flagged() -> None:
    assert choose_level([over(0.0)] * 40, 20, confidence=0.9, miss_rate=0.05).level == 0


def test_a_flag_counts_twenty_steps_before_or_a_fifth_of_a_short_window() -> None:
    assert [lead(window) for window in (1000, 100, 50, 3)] == [20, 20, 10, 1]


def test_reliability_is_told_by_tenths_of_probability_and_ends_with_the_budget() -> None:
    # Twenty steps at 0.25 of which none came true, five of ten at 0.75 that did before the budget was exceeded.
    clean = Session(np.full(10, 0.25), None)
    crossed = Session(np.array([0.75] * 5 + [0.05] * 5), 4)
    bins = reliability([clean, clean, crossed])
    assert [b.predicted for b in bins] == pytest.approx([0.25, 0.75])
    assert [b.observed for b in bins] == [0.0, 1.0]
    assert [b.share for b in bins] == pytest.approx([0.8, 0.2])  # a session weighs by the share of its steps
    error = calibration_error([[clean, clean], [crossed]])
    assert error is not None
    assert error.mean == pytest.approx(0.8 * 0.25 + 0.2 * 0.25)
    assert reliability([]) == ()
    assert calibration_error([[]]) is None


def test_a_session_that_was_cut_within_its_budget_says_nothing_of_probabilities_and_false_alarms() -> None:
    cut, over = Session(np.full(5, 0.9), None, cut=True), Session(np.full(5, 0.9), 4, cut=True)
    assert (cut.decided, cut.clean) == (False, False)
    assert (over.decided, over.clean) == (True, False)
    assert (Session(np.full(5, 0.9), None).decided, Session(np.full(5, 0.9), None).clean) == (True, True)
    assert reliability([cut]) == ()
    assert [b.observed for b in reliability([cut, over])] == [1.0]


def test_episodes_that_were_truncated_sooner_than_a_window_are_no_failure() -> None:
    # One of five episodes is cut after two steps, of which no window of three was observed.
    generator = np.random.default_rng(0)
    lengths = [2 if number % 5 == 0 else T for number in range(100)]
    found = calibrate(
        [episode((generator.random(n) < 0.4).astype(float), np.ones(n)) for n in lengths], [constraint()], seed=0
    )
    (result,) = found.record.results
    assert result.coverage is not None
    assert 0.8 < result.coverage <= 1
    cut = episode([0.0, 0.0], [1.0, 1.0])
    assert [s.decided for s in sessions(found.cost_map, followed(found, cut), constraint(), 0, np.ones(1))] == [False]
    ended = episode([0.0, 0.0], [1.0, 1.0], terminated=True)
    assert [s.clean for s in sessions(found.cost_map, followed(found, ended), constraint(), 0, np.ones(1))] == [True]


def test_where_nothing_was_observed_no_coverage_is_told() -> None:
    found = calibrate([episode([1.0, 0.0], [1.0, 1.0])] * 40, [constraint()], seed=0)
    assert found.record.results[0].coverage is None


def test_predictions_of_a_calibrated_map_are_ordered() -> None:
    generator = np.random.default_rng(5)
    episodes = []
    for _ in range(40):
        value = 2 * generator.random(T) ** 2
        episodes.append(episode((generator.random(T) < value / 2).astype(np.float64), value))
    found = calibrate(episodes, [constraint()], seed=0)
    steps, values, allowed = np.arange(1, T + 1), np.linspace(0, 2, 9), np.arange(-1, 9) + 0.5

    def ask_map(forecast: float, left: int, allowance: float) -> list[float]:
        prediction = found.cost_map(
            torch.tensor([[[forecast]]]), torch.tensor([left]), torch.tensor([[float(allowance)]])
        )
        return [float(value[0, 0, 0]) for value in prediction]

    grid = np.array([[[ask_map(float(v), int(s), a) for a in allowed] for v in values] for s in steps])
    go, upper, probability = np.moveaxis(grid, -1, 0)
    rounding = 1e-4
    for ordered in (go, np.nan_to_num(upper, posinf=1e6), probability):  # a higher forecast
        assert (np.diff(ordered, axis=1) >= -rounding).all()
    assert (np.diff(go, axis=0) >= -rounding).all()  # more steps left
    assert (np.diff(probability, axis=2) <= 0).all()  # more allowed
    assert np.isfinite(go).all()
    assert probability.min() >= 1 / 13 - 1e-6


def test_with_two_constraints_each_is_calibrated_by_its_own_costs() -> None:
    generator = np.random.default_rng(2)
    episodes = []
    for _ in range(40):
        cost = np.stack([np.ones(T), (generator.random(T) < 0.3) * 2.0], axis=1)
        episodes.append(episode(cost, np.stack([np.full(T, 5.0), np.full(T, 3.0)], axis=1)))
    limits = [constraint(6.0, "always"), constraint(None, "sometimes")]
    found = calibrate(episodes, limits, seed=0)
    left = torch.tensor([T])
    forecast = found.forecast(torch.zeros(1, 1), torch.tensor([[[5.0], [3.0]]]), left)
    prediction = found.cost_map(forecast, left, torch.tensor([[11.0, torch.inf]]))
    assert prediction.cost_to_go[0, 0, 0] == pytest.approx(T, rel=1e-5)
    assert prediction.cost_to_go[0, 1, 0] == pytest.approx(0.6 * T, rel=0.2)
    assert prediction.violation_probability[0, :, 0].tolist() == [1, 0]
    first, second = found.record.results
    assert first.missed_share == 0  # it costs 1 at every step: with less than 12 allowed it is always over
    assert (second.constraint, second.missed_share, second.flagged_share) == ("sometimes", None, None)
    assert second.example is None


def test_the_record_says_what_was_used_for_what() -> None:
    found = calibrate([episode([1.0] * T, [5.0] * T)] * 100, [constraint()], seed=0, miss_rate=0.1)
    record = found.record
    assert record.lead_steps == 1
    assert record.episodes == {"fit": 30, "calibrate": 30, "alarm": 25, "test": 15}
    assert (record.modes, record.confidence, record.miss_rate) == ((DETERMINISTIC,), 0.9, 0.1)
    assert record.results[0].cost_to_go_mean == pytest.approx(T)
    assert record.results[0].episode_cost_mean == T
    assert record.results[0].coverage == 1


def test_of_many_episodes_most_fit() -> None:
    found = calibrate([episode([1.0] * T, [5.0] * T)] * 600, [constraint()], seed=0)
    assert found.record.episodes == {"fit": 334, "calibrate": 120, "alarm": 96, "test": 50}


def test_the_record_shows_flags_along_the_test_episode_that_cost_the_most() -> None:
    # Marked by their cost a step, 1 to 20, in an order that the split shuffles; budget and limit are 30.
    episodes = [episode([float(k)] * T, [5.0] * T) for k in range(1, 21)]
    found = calibrate(episodes, [constraint(30.0)], seed=0)
    (result,) = found.record.results
    shown = result.example
    assert shown is not None
    each = shown.spent[1]
    assert result.test_episodes == 2
    other = 2 * result.episode_cost_mean / T - each  # the cost a step of the other test episode
    assert 1 <= other < each <= 20
    assert shown.budget == 30
    assert shown.steps == tuple(range(T))
    assert shown.spent == tuple(each * t for t in range(T))
    assert shown.crossing == math.floor(30 / each)  # the step that takes the sum over 30
    followed_one = followed(found, episode([each] * T, [5.0] * T))
    (session,) = budget_sessions(found.cost_map, followed_one, constraint(30.0), 0, np.array([30.0]))
    assert shown.violation_probability == tuple(session.probability)


def test_no_episode_serves_two_purposes() -> None:
    # Marked by their cost, 1 to 20: what fits and calibrates is at most what those episodes cost.
    episodes = [episode([float(k)] * T, [5.0] * T) for k in range(1, 21)]
    record = calibrate(episodes, [constraint()], seed=0).record
    assert sum(record.episodes.values()) == 20
    assert record.episodes["calibrate"] == 9  # what a confidence of 0.9 needs


def test_the_same_seed_gives_the_same_map() -> None:
    generator = np.random.default_rng(0)
    episodes = [episode(generator.random(T), generator.random(T)) for _ in range(20)]
    first, again, other = (calibrate(episodes, [constraint()], seed=seed) for seed in (1, 1, 2))
    for one, two in ((first.cost_map, again.cost_map), (first.forecast, again.forecast)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(first.cost_map.table, other.cost_map.table)


def test_with_too_few_episodes_for_the_confidence_there_is_no_bound() -> None:
    found = calibrate([episode([1.0] * T, [5.0] * T)] * 12, [constraint()], seed=0)
    assert ask(found, 5.0, 1, 1.0)[1] == math.inf
    assert "cost_upper is infinite" in found.record.not_claimed[0]
    assert found.record.alarm_levels[0] <= 0.1


@pytest.mark.parametrize(("confidence", "miss_rate"), [(0.9, 0.05), (0.8, 0.3), (0.95, 0.01), (0.9, 0.004)])
def test_the_least_episodes_are_as_many_as_it_takes_to_claim(confidence: float, miss_rate: float) -> None:
    # Each exceeds budgets from 1.5 to 12, so all that choose alarm levels speak of the miss rate.
    over = episode([1.0] * T, [5.0] * T)
    for_confidence, for_miss_rate = least_episodes(confidence, miss_rate)

    def not_claimed(count: int) -> tuple[str, ...]:
        found = calibrate([over] * count, [constraint()], seed=0, confidence=confidence, miss_rate=miss_rate)
        return found.record.not_claimed

    for count, claimed in ((for_confidence, True), (for_confidence - 1, False)):
        if count >= MINIMUM_EPISODES:
            assert claimed == (not any("No bound" in sentence for sentence in not_claimed(count)))
    for count, claimed in ((for_miss_rate, True), (for_miss_rate - 1, False)):
        assert claimed == (not any("No miss rate" in sentence for sentence in not_claimed(count)))


def test_episodes_that_cannot_calibrate_are_refused() -> None:
    good = episode([1.0] * T, [5.0] * T)
    with pytest.raises(ExportError, match=r"at least 8 episodes.* it got 7"):
        calibrate([good] * 7, [constraint()], seed=0)
    blind = Episode(good.observation, good.reward, good.cost, False, None, None, None)
    with pytest.raises(ExportError, match="Episode 8 carries no cost value"):
        calibrate([good] * 8 + [blind], [constraint()], seed=0)
    with pytest.raises(ExportError, match="carries no cost value"):
        calibrate([good] * 8, [constraint(), constraint(name="another")], seed=0)
    with pytest.raises(NonFiniteError, match="cost_value of episode 0"):
        calibrate([episode([1.0] * T, [np.nan] * T)] * 8, [constraint()], seed=0)
    with pytest.raises(ExportError, match="more than the horizon of 12"):
        calibrate([episode([1.0] * 13, [1.0] * 13)] * 8, [constraint()], seed=0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        calibrate([good] * 8, [constraint()], seed=0, confidence=1.0)


# Further modes


def noisy(rate: float, count: int, seed: int) -> list[Episode]:
    generator = np.random.default_rng(seed)
    return [episode((generator.random(T) < rate).astype(np.float64), [1.0] * T) for _ in range(count)]


def test_a_further_mode_that_costs_more_raises_the_bound_and_one_that_costs_less_leaves_it() -> None:
    first = calibrate(noisy(0.3, 60, seed=0), [constraint()], seed=0)
    sampled = CalibratedMode(mode="sampled")
    dearer = calibrate_also(first, sampled, noisy(0.8, 60, seed=1), [constraint()], as_it_is, seed=0)
    cheaper = calibrate_also(first, sampled, noisy(0.05, 120, seed=2), [constraint()], as_it_is, seed=0)
    upper = [ask(found, 1.0, T, 6.0)[1] for found in (first, dearer, cheaper)]
    assert upper[0] == upper[2] < upper[1]
    probability = [ask(found, 1.0, T, 6.0)[2] for found in (first, dearer, cheaper)]
    assert probability[0] < 0.5 < probability[1]
    assert dearer.record.modes == (*first.record.modes, sampled)
    (other,) = dearer.record.other_modes
    assert other.episodes == {"calibrate": 30, "alarm": 15, "test": 15}
    assert coverage(other.results[0]) > 0.8
    assert dearer.record.alarm_levels[0] <= first.record.alarm_levels[0]


def test_figures_of_every_mode_are_of_the_last_map_at_the_last_levels() -> None:
    # Sampled episodes cost several times as much, all of it in their second half: the last map is more careful. Before
    # they begin to cost anything they look safe, so that its level is lower.
    sampled = CalibratedMode(mode="sampled")
    late = [episode([0.0] * (T // 2) + [1.0 + i % 3] * (T // 2), [1.0] * T) for i in range(200)]
    first = calibrate(noisy(0.3, 200, seed=0), [constraint()], seed=0, miss_rate=0.2)
    found = calibrate_also(first, sampled, noisy(0.4, 200, seed=1), [constraint()], as_it_is, seed=0)
    last = calibrate_also(found, sampled, late, [constraint()], as_it_is, seed=0)
    before, between, after = first.record, found.record, last.record
    (level,) = after.alarm_levels
    assert level < before.alarm_levels[0]
    assert f"cost: {level:.3g}, chosen on 952 sessions over budget of 50 episodes (sampled)." in after.method

    (result,) = after.results
    tested = first.tested[0].episodes
    tried = [session for e in tested for session in sessions(last.cost_map, e, constraint(), 0)]
    crossed, clean = ([s for s in tried if (s.crossing is None) == within] for within in (False, True))
    assert result.flagged_share == pytest.approx(np.mean([s.flagged_share(level) for s in clean]))
    late_enough = [s for s in crossed if s.crossing]
    assert result.missed_share == pytest.approx(np.mean([s.announced(1) <= level for s in late_enough]))
    assert result.too_soon_share == pytest.approx(1 - len(late_enough) / len(crossed))
    alone = [budget_sessions(last.cost_map, e, constraint(), 0, np.array([6.0]))[0] for e in tested]
    missed = [s.announced(1) <= level for s in alone if s.crossing]
    assert result.limit_missed_share == wilson(sum(missed), len(missed))
    assert result.reliability == reliability(tried)
    assert result.example is not None
    assert result.example.violation_probability in [
        tuple(budget_sessions(last.cost_map, e, constraint(), 0, np.array([6.0]))[0].probability) for e in tested
    ]
    assert coverage(result) > coverage(before.results[0])
    assert (len(between.other_modes), len(after.other_modes)) == (1, 2)
    assert coverage(after.other_modes[0].results[0]) > coverage(between.other_modes[0].results[0])
    assert after.other_modes[0].episodes == between.other_modes[0].episodes


def test_a_shield_keeps_the_levels_that_it_chose_by() -> None:
    first = calibrate(noisy(0.3, 60, seed=0), [constraint()], seed=0)
    shielded = CalibratedMode(mode="shielded", candidates=8)
    found = calibrate_also(first, shielded, noisy(0.9, 40, seed=1), [constraint()], as_it_is, seed=0)
    assert found.record.alarm_levels == first.record.alarm_levels
    assert found.record.other_modes[0].episodes == {"calibrate": 20, "test": 20}
    assert "shielded of 8: no miss rate" in found.record.not_claimed[-1]
    with pytest.raises(ExportError, match=r"at least 8 episodes.* it got 7"):
        calibrate_also(first, shielded, noisy(0.9, 7, seed=1), [constraint()], as_it_is, seed=0)


class AsTheCriticSays(CostForecast):
    """A forecast without a fit: each constraint's own cost value."""

    def forward(self, observation: torch.Tensor, cost_value: torch.Tensor, steps_left: torch.Tensor) -> torch.Tensor:
        return cost_value


def unfitted(episodes: object, constraints: Sequence[Constraint], normalize: object, seed: int) -> CostForecast:
    return AsTheCriticSays(1, T, np.ones(len(constraints))).eval()


def test_what_measures_and_what_chooses_alarm_levels_is_as_many_episodes_as_is_told() -> None:
    # All cost the same. Of 95, 28 calibrate and leave 1/29 at infinity, and 24 choose the level; of 40 in a further
    # mode 20 leave 1/21.
    constant = episode([1.0] * T, [5.0] * T)
    first = calibrate_normalized([constant] * 95, [constraint()], as_it_is, seed=0, fit=unfitted)
    also = calibrate_also(first, CalibratedMode(mode="sampled"), [constant] * 40, [constraint()], as_it_is, seed=0)
    assert [ask(found, 5.0, T, T)[2] for found in (first, also)] == pytest.approx([1 / 29, 1 / 21])
    assert "sessions over budget of 24 episodes" in first.record.method
    assert also.record.other_modes[0].episodes == {"calibrate": 20, "alarm": 10, "test": 10}


def of_two_costs(rates: tuple[float, float], count: int, seed: int) -> list[Episode]:
    """Costs of 1 and of 3, as often as an episode's critics say: anything up to the rates."""
    generator = np.random.default_rng(seed)
    episodes = []
    for _ in range(count):
        value = np.tile(rates * generator.random(2), (T, 1))
        episodes.append(episode((generator.random((T, 2)) < value) * np.array([1.0, 3.0]), value))
    return episodes


def figures(result: CalibrationResult) -> list[float]:
    """Those that are told of a constraint, and its example, which a further mode has none of."""
    names = ("coverage", "window_coverage", "rest_coverage", "missed_share", "too_soon_share", "flagged_share")
    further = ("lead_steps_median", "calibration_error", "cost_to_go_mean", "episode_cost_mean")
    shown = () if result.example is None else (result.example.spent, result.example.violation_probability)
    return [*(getattr(result, name) for name in (*names, *further)), *itertools.chain(*shown)]


# Sampled episodes lower the alarm level of the first, which is the higher one, and of both.
@pytest.mark.parametrize(("rates", "sampled_rates"), [((0.9, 0.4), (0.5, 0.9)), ((0.9, 0.9), (0.3, 0.3))])
def test_each_of_two_constraints_is_calibrated_as_if_it_were_alone(
    rates: tuple[float, float], sampled_rates: tuple[float, float]
) -> None:
    limits = [constraint(3.0, "often"), constraint(9.0, "seldom")]

    def found(costs: list[int]) -> CalibratedMap:
        def picked(episodes: list[Episode]) -> list[Episode]:
            return [episode(e.cost[:, costs], e.cost_value[:, costs]) for e in episodes if e.cost_value is not None]

        constraints = [limits[index] for index in costs]
        begun = picked(of_two_costs(rates, 60, seed=0))
        first = calibrate_normalized(begun, constraints, as_it_is, seed=0, miss_rate=0.2, fit=unfitted)
        sampled = picked(of_two_costs(sampled_rates, 60, seed=1))
        return calibrate_also(first, CalibratedMode(mode="sampled"), sampled, constraints, as_it_is, seed=0)

    both = found([0, 1])
    assert len(set(both.record.alarm_levels)) == 2
    left, value = torch.arange(1, T + 1), torch.tensor([[[0.5], [0.3]]]).expand(T, 2, 1)
    allowed = torch.tensor([[3.0, 6.0]]).expand(T, 2)
    together = both.cost_map(value, left, allowed)
    for index in (0, 1):
        alone = found([index])
        assert both.record.alarm_levels[index] == pytest.approx(alone.record.alarm_levels[0])
        for of_both, single in ((both.record, alone.record), (both.record.other_modes[0], alone.record.other_modes[0])):
            assert figures(of_both.results[index]) == pytest.approx(figures(single.results[0]))
        for told, of_one in zip(together, alone.cost_map(value[:, [index]], left, allowed[:, [index]]), strict=True):
            torch.testing.assert_close(told[:, [index]], of_one)


def test_shields_of_several_sizes_choose_by_what_stood_before_the_first() -> None:
    first = calibrate(noisy(0.3, 60, seed=0), [constraint()], seed=0)
    found = calibrate_also(
        first, CalibratedMode(mode="sampled"), noisy(0.5, 60, seed=1), [constraint()], as_it_is, seed=0
    )
    chosen_by, told = [], []
    for candidates, rate in ((4, 0.7), (8, 0.9)):
        shielded = CalibratedMode(mode="shielded", candidates=candidates)
        for each in (
            found,
            found := calibrate_also(found, shielded, noisy(rate, 60, seed=2), [constraint()], as_it_is, seed=0),
        ):
            forecast = each.forecast(torch.zeros(1, 1), torch.ones(1, 1, 1), torch.tensor([T]))
            asked = forecast, torch.tensor([T]), torch.tensor([[6.0]])
            chosen_by.append(each.cost_map.choosing_probability(*asked).item())
            told.append(each.cost_map(*asked).violation_probability.item())
    assert len(set(chosen_by)) == 1
    assert chosen_by[0] == told[0] < told[1] == told[2] < told[3]
    with pytest.raises(AssertionError, match="what a shield was rolled out with"):
        calibrate_also(found, CalibratedMode(mode="sampled"), noisy(0.9, 60, seed=3), [constraint()], as_it_is, seed=0)


def test_a_shield_is_tried_with_the_limit_alone_which_its_episodes_had() -> None:
    # Of episodes that cost 4 or 7, each is tried with a limit of 6, and one of 7 exceeds it at its last step: by then
    # with less than 1 left to spend it is always flagged. With a quarter of the limit those of 4 would exceed it, too.
    first = calibrate(noisy(0.5, 60, seed=0), [constraint()], seed=0)
    cheap, dear = (episode([0.0] * (T - cost) + [1.0] * cost, [1.0] * T) for cost in (4, 7))
    found = calibrate_also(
        first, CalibratedMode(mode="shielded", candidates=8), [cheap, dear] * 20, [constraint()], as_it_is, seed=0
    )
    (level,), (result,) = found.record.alarm_levels, found.record.other_modes[0].results
    tested = found.tested[1].episodes
    tried = [budget_sessions(found.cost_map, e, constraint(), 0, np.array([6.0]))[0] for e in tested]
    assert {session.crossing for session in tried} == {None, T - 1}
    clean = [session.flagged_share(level) for session in tried if session.crossing is None]
    assert result.flagged_share == pytest.approx(np.mean(clean))
    assert result.reliability == reliability(tried)
    assert found.record.not_claimed[-1].endswith(
        "nothing with another budget than the limit, which all its episodes had."
    )


@pytest.mark.parametrize(("mode", "candidates"), [("shielded", 1), ("sampled", 2), ("deterministic", 8)])
def test_only_a_shield_has_candidates(mode: Literal["deterministic", "sampled", "shielded"], candidates: int) -> None:
    with pytest.raises(ValidationError, match="two candidates or more"):
        CalibratedMode(mode=mode, candidates=candidates)
