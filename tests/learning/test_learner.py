"""One update: critics to hand-worked values, the policy towards reward or away from cost, periods, and its state."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvpo.errors import NonFiniteError
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig
from cvpo.learning.estep import DualSolution, solve_dual
from cvpo.learning.learner import LearnerState, UpdateMetrics, antithetic_noise
from cvpo.learning.mstep import TrustRegion, gaussian_kl
from cvpo.learning.networks import Critics
from cvpo.learning.replay import Batch
from tests.small_learners import B, config, create, learn, one_step_batch


def mean_action(state: LearnerState) -> float:
    observation = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    return state.model.distribution(observation)[0].tanh().mean().item()


def asked(metrics: UpdateMetrics) -> NDArray[np.float64]:
    """The share of the reachable cost change that an update asked for, [C]."""
    assert metrics.share is not None
    return metrics.share


# Critics.


def test_critics_learn_the_values_of_a_chain_by_hand() -> None:
    # 0 -> 1 -> the end, after which 0 is the next to begin; 2 -> 2 for ever (as a truncated episode does), whatever the
    # action; gamma 0.5. Reward ends with the episode: V(1) = 4, V(0) = 1 + V(1)/2 = 3. Cost goes on with the next one:
    # V(0) = 2 + V(1)/2 and V(1) = 5.5 + V(0)/2, so 6.33 and 8.67. V(2) = (1, 1.5)/(1 − 0.5) = (2, 3).
    settings = config()
    state = create(settings, observation_size=3)
    following = np.array([1, 0, 2])
    rows = np.tile(np.arange(3), 22)
    states = np.eye(3, dtype=np.float32)
    generator = np.random.default_rng(0)
    for _ in range(400):
        batch = Batch(
            states[rows],
            generator.uniform(-1, 1, (66, 1)).astype(np.float32),
            np.array([1, 4, 1], np.float32)[rows],
            np.array([[2], [5.5], [1.5]], np.float32)[rows],
            np.array([0.5, 0, 0.5], np.float32)[rows],
            np.full((66, 1), 0.5, np.float32),
            states[following[rows]],
            33,
        )
        learner.update(state, batch, np.array([10.0]), 0, settings)
    action = torch.linspace(-0.8, 0.8, 5).reshape(1, 5, 1).expand(3, 5, 1)
    with torch.no_grad():
        reward_value, cost_value = state.model.values(torch.eye(3), action)
    np.testing.assert_allclose(reward_value, np.array([[3], [4], [2]]) * np.ones((3, 5)), rtol=0.05)
    np.testing.assert_allclose(cost_value[..., 0], np.array([[19 / 3], [26 / 3], [3]]) * np.ones((3, 5)), rtol=0.05)


def test_targets_take_the_mean_of_the_heads() -> None:
    # Target heads that say 1 and 3 everywhere: the bootstrap value is 2, whatever the action.
    settings = config(network={"reward_heads": 2, "cost_heads": 2})
    state = create(settings)
    with torch.no_grad():
        state.target_critics.output_weight.zero_()
        # Members: two reward heads, then two cost heads behind a softplus, whose inverse is log(exp(x) − 1).
        levels = torch.tensor([1.0, 3.0, *np.log(np.expm1([1.0, 3.0]))])
        state.target_critics.output_bias.copy_(levels.reshape(4, 1, 1))
    batch = one_step_batch(np.random.default_rng(0), discount=0.5)
    with torch.no_grad():
        observation, action = torch.from_numpy(batch.observation), torch.from_numpy(batch.action).unsqueeze(1)
        reward_value, cost_value = (value[:, :, 0] for value in state.model.critics(observation, action))
    expected_reward = torch.from_numpy(batch.reward) + 0.5 * 2
    expected_cost = torch.from_numpy(batch.cost) + 0.5 * 2
    expected = ((reward_value - expected_reward) ** 2).mean(1).sum() + ((cost_value - expected_cost) ** 2).mean(1).sum()
    metrics = learner.update(state, batch, np.array([10.0]), 0, settings)
    assert metrics.critic_loss == pytest.approx(expected.item(), rel=1e-5)
    assert metrics.cost_value[0] == pytest.approx(2, rel=1e-6)


def test_each_cost_is_bootstrapped_with_its_own_discount() -> None:
    # Target critics that say 2 everywhere, and transitions over three steps, with gamma 0.5 of the reward, 0.9 and 0.1
    # of the costs. Those that terminated have no reward after them, but cost.
    settings = config((10.0, 10.0), network={"cost_heads": 1})
    state = create(settings)
    with torch.no_grad():
        state.target_critics.output_weight.zero_()
        state.target_critics.output_bias.copy_(torch.tensor([2.0, *np.log(np.expm1([2.0, 2.0]))]).reshape(3, 1, 1))
    batch = one_step_batch(np.random.default_rng(0), costs=2, discount=0.125)
    batch.discount[:5] = 0.0  # terminated
    batch.cost_discount[:] = [0.729, 0.001]
    with torch.no_grad():
        observation, action = torch.from_numpy(batch.observation), torch.from_numpy(batch.action).unsqueeze(1)
        reward_value, cost_value = (value[0, :, 0].numpy() for value in state.model.critics(observation, action))
    goes_on = batch.discount > 0
    reward_error = reward_value - (batch.reward + goes_on * 0.125 * 2)
    cost_error = cost_value - (batch.cost + np.array([0.729, 0.001]) * 2)
    metrics = learner.update(state, batch, np.zeros(2), 0, settings)
    expected = np.square(reward_error).mean() + np.square(cost_error).mean(0).sum()
    assert metrics.critic_loss == pytest.approx(expected, rel=1e-5)


def test_the_controller_answers_to_the_predicted_cost_at_the_level_that_was_measured() -> None:
    # The critics say 3 everywhere, and said 2 on average when 20 was measured: it is 30 now. Held at 20, the gap is a
    # half. Of the past, this update's own prediction is a small part.
    settings = config((20.0,))
    state = create(settings)
    state.measured_age = 1e9
    state.controller = state.controller.seeing(np.array([2.0]), np.array([20.0]), 1.0, settings.limit)
    with torch.no_grad():
        state.target_critics.output_weight.zero_()
        state.target_critics.output_bias.fill_(float(np.log(np.expm1(3.0))))
    metrics = learner.update(state, one_step_batch(np.random.default_rng(0)), np.array([20.0]), 0, settings)
    assert asked(metrics)[0] == pytest.approx(0.5 * settings.limit.gain_above, rel=1e-3)


@pytest.mark.parametrize(("updates", "gap"), [(0, 0.5), (1, 0.5), (2, -1.0)])
def test_the_level_is_not_taken_from_critics_that_have_not_begun_to_learn(updates: int, gap: float) -> None:
    # Until the updates of the warm-up are over, 3 discounted at 0.9 over 100 steps stands for 30, whatever is measured.
    settings = config((20.0,), schedule={"warmup_updates": 2})
    state = create(settings)
    state.updates = updates
    with torch.no_grad():
        state.target_critics.output_weight.zero_()
        state.target_critics.output_bias.fill_(float(np.log(np.expm1(3.0))))
    metrics = learner.update(state, one_step_batch(np.random.default_rng(0)), np.zeros(1), 0, settings)
    assert asked(metrics)[0] == pytest.approx(0.5 * gap, rel=1e-3)


def test_reward_is_learned_in_units_of_its_scale() -> None:
    settings = config()
    state = create(settings)
    state.reward_scale = 100.0
    generator = np.random.default_rng(0)
    for _ in range(150):
        batch = one_step_batch(generator)
        batch.reward[:] = 200.0
        learner.update(state, batch, np.array([10.0]), 0, settings)
    value, _ = state.model.values(torch.from_numpy(batch.observation), torch.from_numpy(batch.action).unsqueeze(1))
    assert value.mean().item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("judged", ["served", "behavior"])
def test_costs_are_those_of_the_policy_that_is_served(judged: str) -> None:
    # What follows the next state is judged by the policy's likeliest action there, or by those that it explores with.
    settings = config(network={"cost_heads": 1}, critic={"cost_policy": judged})
    state = create(settings)
    with torch.no_grad():
        state.behavior_policy.mean.bias.fill_(1.5)  # far from zero, so that the two differ
        state.target_critics.output_weight.mul_(30.0)
    batch = one_step_batch(np.random.default_rng(0), discount=0.5)
    with torch.no_grad():
        following = torch.from_numpy(batch.next_observation)
        old = state.behavior_policy(following)
        mean, deviation = old.mean, old.standard_deviation()
        u = torch.linspace(-4, 4, 2001)
        density = torch.exp(-0.5 * u**2)
        action = (mean.unsqueeze(1) + deviation.unsqueeze(1) * u.reshape(1, -1, 1)).tanh()
        everywhere = state.target_critics(following, action)[1][0, :, :, 0] @ (density / density.sum())
        likeliest = state.target_critics(following, mean.tanh().unsqueeze(1))[1][0, :, 0, 0]
    served, behavior = (value[: B // 2].mean().item() for value in (likeliest, everywhere))
    expected, other = (served, behavior) if judged == "served" else (behavior, served)
    metrics = learner.update(state, batch, np.array([10.0]), 0, settings)
    assert abs(metrics.cost_value[0] - expected) < 0.2 * abs(other - expected)  # 16 actions are a sample


def test_the_steps_of_the_policy_grow_smaller_as_the_run_ends() -> None:
    settings = config(settle={"share": 0.5, "floor": 0.25})  # of 1,000 steps
    pace = [learner.pace_at(settings, steps) for steps in (0, 500, 750, 1_000, 1_010)]
    assert pace == pytest.approx([1, 1, 0.5, 0.25, 0.25])
    early, late = create(settings), create(settings)
    first = learner.update(early, one_step_batch(np.random.default_rng(0)), np.zeros(1), 0, settings)
    last = learner.update(late, one_step_batch(np.random.default_rng(0)), np.zeros(1), 1_000, settings)
    assert last.temperature > 1.5 * first.temperature  # of a KL bound of a quarter: about 2, were it not sampled
    moved = [
        max(
            (a - b).abs().max().item()
            for a, b in zip(s.model.policy.parameters(), s.behavior_policy.parameters(), strict=True)
        )
        for s in (early, late)
    ]
    assert moved[1] == pytest.approx(0.25 * moved[0], rel=0.05)


def test_a_run_that_does_not_settle_keeps_its_pace() -> None:
    assert learner.pace_at(config(settle={"share": 0.0}), 1_000) == 1.0


# The policy.


def test_below_the_limit_the_policy_follows_the_reward() -> None:
    settings = config()
    state = create(settings)
    metrics = learn(state, settings, 150, measured=0.0)
    assert mean_action(state) > 0.3
    assert all(m.feasible and asked(m)[0] == -settings.limit.gain_below for m in metrics)


def test_above_the_limit_the_policy_lowers_the_cost_though_it_costs_reward() -> None:
    settings = config()
    state = create(settings)
    metrics = learn(state, settings, 150, measured=1000.0)
    assert mean_action(state) < -0.2
    assert all(m.feasible and asked(m)[0] == settings.limit.gain_above for m in metrics)
    assert np.mean([m.cost_multiplier[0] for m in metrics[50:]]) > 0


def test_the_cost_is_held_at_the_aim_with_room_below_the_limit() -> None:
    # Limit 50, aim 0.8: held at 40. Measured 60: (60 − 40)/40; measured 40: there.
    settings = config((50.0,), limit={"aim": 0.8})
    held = learner.held_at(np.array([50.0]), settings)
    assert held == pytest.approx([40.0])
    assert create(settings).controller.gap(np.array([60.0]), held) == pytest.approx([0.5])


SCHEDULE = {"schedule": [[0, [1000.0]], [500, [1000.0]]]}  # then 10


def test_the_controller_holds_the_limit_that_is_scheduled_for_now() -> None:
    # Measured 500: under a limit of 1000, over one of 10.
    settings = config(limit=SCHEDULE)
    state, batch = create(settings), one_step_batch(np.random.default_rng(0))
    before, after = (learner.update(state, batch, np.array([500.0]), steps, settings) for steps in (499, 500))
    assert asked(before)[0] == pytest.approx(-0.25)
    assert asked(after)[0] == pytest.approx(settings.limit.gain_above)


def test_the_critic_constraint_follows_the_schedule() -> None:
    # Every cost is 1 or so: under the threshold of a limit of 1000 (100), over that of 5 (0.5).
    settings = config((5.0,), estep={"constraint": "critic"}, limit=SCHEDULE)
    state = create(settings)
    generator = np.random.default_rng(0)
    before, after = (
        [learner.update(state, one_step_batch(generator), np.zeros(1), steps, settings) for _ in range(100)]
        for steps in (499, 500)
    )
    assert all(m.feasible and m.cost_multiplier[0] == 0 for m in before)
    assert all(m.cost_multiplier[0] > 0 for m in after)


def test_without_a_limit_no_cost_is_too_high() -> None:
    settings = config(cost_limits=(float("inf"),))
    state = create(settings)
    metrics = learn(state, settings, 150, measured=1e9)
    assert mean_action(state) > 0.3
    assert all(m.cost_multiplier[0] == 0 and m.feasible for m in metrics)


def test_one_cost_over_its_limit_counts_though_another_is_under() -> None:
    settings = config(cost_limits=(10.0, 10.0))
    state = create(settings)
    metrics = learn(state, settings, 150, measured=[0.0, 1000.0])
    assert mean_action(state) < -0.2
    assert all(m.feasible for m in metrics)


def critics_that_know(monkeypatch: pytest.MonkeyPatch, values: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Target critics whose values of actions [B, K, A] are given: reward [B, K] and cost [B, K, C]."""

    def evaluate(
        critics: Critics, observation: Tensor, action: Tensor, precision: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        reward_value, cost_value = values(action)
        return reward_value.unsqueeze(0), cost_value.unsqueeze(0)

    monkeypatch.setattr(Critics, "evaluate", evaluate)


def test_costs_that_cannot_fall_together_are_asked_for_less_and_reward_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first number of the action moves two costs against each other, the second both of them, a little; the third
    # is worth as much as it is. Each cost alone could fall a lot, both together only by the second number.
    def values(action: Tensor) -> tuple[Tensor, Tensor]:
        first, second, third = action.unbind(-1)
        return third, torch.stack([1 + first + 0.1 * second, 1 - first + 0.1 * second], -1)

    critics_that_know(monkeypatch, values)
    settings = config(cost_limits=(10.0, 10.0))
    state, batch = create(settings, action_size=3), one_step_batch(np.random.default_rng(0), costs=2, action_size=3)
    for _ in range(60):
        metrics = learner.update(state, batch, np.array([1000.0, 1000.0]), 0, settings)
        assert metrics.feasible
        assert metrics.kl_residual <= 1e-6
        assert (metrics.cost_residual <= 1e-6).all()
        assert 0 < asked(metrics)[0] == asked(metrics)[1] < 0.2 * settings.limit.gain_above
    with torch.no_grad():
        first, second, third = state.model.distribution(torch.from_numpy(batch.next_observation)).mean.mean(0).tolist()
    assert abs(first) < 0.1
    assert second < -0.2
    assert third > 0.2


def test_the_share_that_is_asked_of_two_costs_alike_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    critics_that_know(monkeypatch, lambda action: (action[..., 0], 1 + action[..., :1] * torch.tensor([1.0, 7.0])))
    settings = config(cost_limits=(10.0, 10.0))
    batch = one_step_batch(np.random.default_rng(0), costs=2)
    metrics = learner.update(create(settings), batch, np.array([1000.0, 1000.0]), 0, settings)
    np.testing.assert_allclose(asked(metrics), settings.limit.gain_above, rtol=1e-6)


def test_each_cost_is_asked_for_a_share_of_what_it_can_reach_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # A number of the action for each, which moves the second seven times as far. As hard to reach, a seventh a unit.
    critics_that_know(monkeypatch, lambda action: (action[..., 2], 1 + action[..., :2] * torch.tensor([1.0, 7.0])))
    settings = config(cost_limits=(10.0, 10.0))
    batch = one_step_batch(np.random.default_rng(0), costs=2, action_size=3)
    metrics = learner.update(create(settings, action_size=3), batch, np.array([1000.0, 1000.0]), 0, settings)
    one, other = metrics.cost_multiplier
    assert one == pytest.approx(7 * other, rel=0.3)


def test_a_cost_that_may_grow_is_not_held_back_where_others_cannot_fall_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def values(action: Tensor) -> tuple[Tensor, Tensor]:
        first, second, third = action.unbind(-1)
        return third, torch.stack([1 + first + 0.1 * second, 1 - first + 0.1 * second, 1 + third], -1)

    critics_that_know(monkeypatch, values)
    settings = config(cost_limits=(10.0,) * 3)
    state, batch = create(settings, action_size=3), one_step_batch(np.random.default_rng(0), costs=3, action_size=3)
    state.updates, measured = settings.schedule.warmup_updates, np.array([1000.0, 1000.0, 0.0])
    state.controller = state.controller.seeing(np.ones(3), measured, 1.0, settings.limit)
    one, other, grows = asked(learner.update(state, batch, measured, 0, settings))
    assert 0 < one == other < 0.2 * settings.limit.gain_above
    assert grows == pytest.approx(-settings.limit.gain_below, rel=0.01)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_full_covariance_learns_which_actions_go_together(covariance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Reward is lost where the two numbers of the action differ, whatever they are.
    critics_that_know(monkeypatch, lambda action: (-(action[..., 0] - action[..., 1]).square(), action[..., :1] * 0))
    settings = config(network={"covariance": covariance}, mstep={"kl_covariance_bound": 0.03})
    state, batch = create(settings, action_size=2), one_step_batch(np.random.default_rng(0), action_size=2)
    for _ in range(100):
        learner.update(state, batch, np.zeros(1), 0, settings)
    with torch.no_grad():
        distribution = state.model.distribution(torch.from_numpy(batch.next_observation))
        sample = distribution.sample(torch.randn(B, 500, 2, generator=torch.Generator().manual_seed(1)))
    correlation = float((sample - distribution.mean.unsqueeze(1)).flatten(0, 1).T.corrcoef()[0, 1])
    assert correlation > 0.5 if covariance == "full" else abs(correlation) < 0.05


def test_the_primal_residuals_hold_at_every_update() -> None:
    settings = config(cost_limits=(10.0, 12.0))
    for metrics in learn(create(settings), settings, 60, measured=[11.0, 9.0]):
        assert metrics.kl_residual <= 1e-6
        assert (metrics.cost_residual <= 1e-6).all()


def watch_duals(monkeypatch: pytest.MonkeyPatch) -> list[DualSolution]:
    """Every solution of a dual from now on."""
    solutions: list[DualSolution] = []

    def watched(*arguments: Any) -> DualSolution:
        solutions.append(solve_dual(*arguments))
        return solutions[-1]

    monkeypatch.setattr(learner, "solve_dual", watched)
    return solutions


def test_an_unreachable_threshold_is_counted_measured_and_answered_by_the_least_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The paper's own constraint, E_q[Q_c] <= threshold, where every action costs at least 1 and 0.5 is asked.
    settings = config(cost_limits=(5.0,), estep={"constraint": "critic"})
    state = create(settings)
    learn(state, settings, 100, measured=0.0)  # until the critics know
    before = state.infeasible_updates
    state.unit_threshold = np.array([0.004])
    solutions = watch_duals(monkeypatch)
    metrics = learn(state, settings, 100, measured=0.0)
    assert not any(m.feasible for m in metrics)
    for m, solution in zip(metrics, solutions, strict=True):
        np.testing.assert_allclose(m.infeasibility, solution.cost - 0.02)
    assert state.infeasible_updates == before + 100
    assert all(m.cost_residual[0] > 0 for m in metrics)
    assert mean_action(state) < -0.2


def test_the_dual_starts_from_the_last_update_that_could_meet_its_threshold() -> None:
    # Values of a cost are positive, so no q meets a threshold of -5; every q meets one of 5,000.
    settings = config(cost_limits=(5.0,), estep={"constraint": "critic"})
    state = create(settings)
    state.unit_threshold = np.array([1_000.0])
    (met,) = learn(state, settings, 1, measured=0.0)
    assert state.dual_start == (met.temperature, met.cost_multiplier)
    state.unit_threshold = np.array([-1.0])
    (unmet,) = learn(state, settings, 1, measured=0.0)
    assert (met.feasible, unmet.feasible) == (True, False)
    assert unmet.temperature != met.temperature
    assert state.dual_start == (met.temperature, met.cost_multiplier)


def test_the_critic_constraint_uses_the_discounted_threshold() -> None:
    # For each unit of the limit (1 − 0.9^100)/((1 − 0.9)·100) = 0.099997.
    np.testing.assert_allclose(create(config((10.0, float("inf")))).unit_threshold, (1 - 0.9**100) / 10)


# Periods of the M-step.


def test_the_behavior_policy_is_replaced_once_a_period() -> None:
    settings = config()
    state = create(settings)
    before = [parameter.clone() for parameter in state.behavior_policy.parameters()]
    metrics = learn(state, settings, 9, measured=0.0)
    assert same(before, list(state.behavior_policy.parameters()))
    assert not same(before, list(state.model.policy.parameters()))
    assert all(m.kl_mean is m.kl_covariance is m.kept_share is None for m in metrics)
    (last,) = learn(state, settings, 1, measured=0.0)
    assert same(list(state.behavior_policy.parameters()), list(state.model.policy.parameters()))
    assert last.kl_mean is not None
    assert last.kl_mean > 0
    assert last.kept_share == 1


def test_a_period_that_went_too_far_is_pulled_back_and_counted() -> None:
    settings = config(mstep={"kl_mean_bound": 1e-4, "kl_covariance_bound": 1e-4, "learning_rate": 1e-2})
    state = create(settings)
    learn(state, settings, 9, measured=0.0)
    old = [parameter.clone() for parameter in state.behavior_policy.parameters()]
    (last,) = learn(state, settings, 1, measured=0.0)
    assert last.kl_mean is not None
    assert last.kl_covariance is not None
    assert last.kept_share is not None
    assert last.kept_share < 1
    assert state.pulled_back_periods == 1
    assert state.mean_region.log_multiplier > 0  # for the M-step went too far
    assert 2 / last.kept_share**2 > 10  # how far,
    assert max(last.kl_mean, last.kl_covariance) == pytest.approx(2, rel=0.5)  # and what was kept of it
    assert max(achieved_kl(state, settings, old)) <= 2 * 2e-4


@pytest.mark.parametrize(("mean_bound", "covariance_bound"), [(0.02, 5e-3), (1.0, 5e-4)])
def test_the_trust_regions_shrink_as_the_run_ends(
    mean_bound: float, covariance_bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same period, but for its last update: within the bounds at full pace, over twice a tenth of them at the end.
    bounds = {"kl_mean_bound": mean_bound, "kl_covariance_bound": covariance_bound, "learning_rate": 1e-2}
    settings = config(mstep=bounds, settle={"share": 0.5, "floor": 0.1})
    for steps, pace in ((0, 1.0), (1_000, 0.1)):
        state, unhindered = create(settings), create(settings)
        learn(state, settings, 9, measured=0.0)
        learn(unhindered, settings, 9, measured=0.0)
        batch = one_step_batch(np.random.default_rng(1))
        with monkeypatch.context() as patch:
            patch.setattr(TrustRegion, "pull_back", lambda region, kl: 1.0)
            went = learner.update(unhindered, batch, np.zeros(1), steps, settings)
        last = learner.update(state, batch, np.zeros(1), steps, settings)
        assert went.kl_mean is not None
        assert went.kl_covariance is not None
        largest = max(went.kl_mean, went.kl_covariance)  # over the bound that held
        assert (largest > 2) == (pace < 1)
        assert last.kept_share == pytest.approx(min(1.0, (2 / largest) ** 0.5))
        for region, excess in ((state.mean_region, went.kl_mean), (state.covariance_region, went.kl_covariance)):
            assert region.log_multiplier == pytest.approx(TrustRegion(1.0).adapted(excess).log_multiplier)


def test_the_gap_between_policy_and_q_is_measured_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    # A policy that does not move: its samples are those of the old policy, so that the gap is all that q changes,
    # E_q[A_c]. Target critics that do not move, for the gap is of those that it is measured with.
    settings = config(mstep={"learning_rate": 1e-12, "period": 5}, critic={"target_rate": 1e-9})
    state = create(settings)
    with torch.no_grad():
        state.target_critics.action_weight.mul_(20)  # values that depend on the action
    solutions = watch_duals(monkeypatch)
    metrics = learn(state, settings, 10, measured=1000.0)
    for update, (m, solution) in enumerate(zip(metrics, solutions, strict=True), start=1):
        if m.projection_gap is None:
            assert update % 5
        else:
            assert update % 5 == 0
            assert solution.cost[0] < -1e-3
            np.testing.assert_allclose(m.projection_gap, -solution.cost, rtol=1e-3)


def test_the_achieved_kl_of_every_period_stays_near_its_bound() -> None:
    settings = config()
    state = create(settings)
    achieved = []
    for _ in range(40):
        old = [parameter.clone() for parameter in state.behavior_policy.parameters()]
        learn(state, settings, settings.mstep.period, measured=0.0)
        achieved.append(achieved_kl(state, settings, old))
    # Twice the bound is where pulling back begins; half as much again for other states than it was measured on.
    means, covariances = zip(*achieved, strict=True)
    assert max(means) <= 3 * settings.mstep.kl_mean_bound
    assert max(covariances) <= 3 * settings.mstep.kl_covariance_bound
    assert np.mean(means) > 0.1 * settings.mstep.kl_mean_bound  # and the room is used


def achieved_kl(state: LearnerState, config: TrainConfig, old: list[Tensor]) -> tuple[float, float]:
    """KL of mean and covariance between the old behavior policy, given by its parameters, and the present one."""
    before = create(config).behavior_policy
    with torch.no_grad():
        for parameter, value in zip(before.parameters(), old, strict=True):
            parameter.copy_(value)
        observation = torch.randn(500, 2, generator=torch.Generator().manual_seed(2))
        mean, covariance = gaussian_kl(before(observation), state.behavior_policy(observation))
    return mean.mean().item(), covariance.mean().item()


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


# Noise, state, failure.


def test_noise_comes_in_pairs_with_a_second_moment_of_one() -> None:
    noise = antithetic_noise(7, 16, 3, torch.Generator().manual_seed(0))
    assert noise.shape == (7, 16, 3)
    torch.testing.assert_close(noise[:, 8:], -noise[:, :8])
    torch.testing.assert_close(noise.square().mean(1), torch.ones(7, 3))


def test_the_fast_evaluation_learns_what_the_plain_forward_pass_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both in float32, whose rounding the optimizer's division by small gradients makes larger from step to step.
    def plain(critics: Critics, observation: Tensor, action: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        reward_value, cost_value = critics(observation, action)
        return reward_value, cost_value

    fast = create(config())
    fast_metrics = learn(fast, config(), 20, 30.0, discount=0.5)
    monkeypatch.setattr(Critics, "evaluate", plain)
    slow = create(config())
    slow_metrics = learn(slow, config(), 20, 30.0, discount=0.5)
    for one, other in zip(fast_metrics, slow_metrics, strict=True):
        assert one.critic_loss == pytest.approx(other.critic_loss, rel=1e-3)
        assert one.temperature == pytest.approx(other.temperature, rel=1e-3)
        np.testing.assert_allclose(one.cost_multiplier, other.cost_multiplier, rtol=1e-3)
    assert mean_action(fast) == pytest.approx(mean_action(slow), abs=1e-4)


def test_half_precision_learns_nearly_the_same_and_not_the_same() -> None:
    full, half = create(config()), create(config())
    full_metrics = learn(full, config(), 20, 30.0, discount=0.5)
    half_metrics = learn(half, config(compute={"precision": "bfloat16"}), 20, 30.0, discount=0.5)
    assert half_metrics[-1].critic_loss == pytest.approx(full_metrics[-1].critic_loss, rel=0.1)
    assert half_metrics[-1].critic_loss != full_metrics[-1].critic_loss
    assert mean_action(half) == pytest.approx(mean_action(full), abs=0.02)


def test_the_seed_decides_everything_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same_seed, other = create(config()), create(config()), create(config().model_copy(update={"seed": 1}))
    assert torch.equal(torch.rand(1), expected)
    assert same(list(one.model.parameters()), list(same_seed.model.parameters()))
    assert not same(list(one.model.parameters()), list(other.model.parameters()))
    for state in (one, same_seed):
        learn(state, config(), 12, measured=11.0)
    assert same(list(one.model.parameters()), list(same_seed.model.parameters()))


def test_a_restored_learner_goes_on_to_the_bit() -> None:
    settings = config()
    original, restored = create(settings), create(settings)
    learn(original, settings, 25, measured=12.0)  # in the middle of a period
    original.controller = original.controller.advanced(np.array([0.5]), 5_000, settings.limit)
    original.reward_scale = 3.0
    saved = io.BytesIO()
    torch.save(learner.state_dict(original), saved)
    saved.seek(0)
    learner.load_state_dict(restored, torch.load(saved, weights_only=True))
    left, right = (learn(state, settings, 25, measured=12.0) for state in (original, restored))
    for one, other in zip(left, right, strict=True):
        assert repr(one) == repr(other)
    assert same_state(learner.state_dict(original), learner.state_dict(restored))


def same_state(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_state(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same_state, left, right))
    return bool(left == right)


def test_critics_that_diverged_are_named() -> None:
    settings = config()
    state = create(settings)
    with torch.no_grad():
        state.target_critics.output_bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"reward_value of the target critics is nan for the observation \[-?\d"):
        learn(state, settings, 1, measured=0.0)


def test_a_policy_that_diverged_gives_no_action_but_the_observation_that_it_has_none_for() -> None:
    state = create(config())
    observation = np.array([[0.0, 0.0], [1.0, 2.5]], np.float32)
    learner.act(state, observation, deterministic=1)
    with torch.no_grad():  # finite for the first observation alone: 0 · inf is not a number, either
        state.behavior_policy.first.bias.zero_()
        state.behavior_policy.mean.bias.fill_(float("inf"))
    assert learner.act(state, observation, deterministic=2).tolist() == [[1.0], [1.0]]  # tanh(inf)
    with torch.no_grad():
        state.behavior_policy.first.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"The action of the policy is nan for the observation \[0\., 0\.\]"):
        learner.act(state, observation, deterministic=1)
