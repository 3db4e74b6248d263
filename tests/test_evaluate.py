"""Episodes and what they add up to: fixed quotas, intervals, cost levels, and who acts."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cvpo.envs import EnvSpec, VectorEnv, make_env
from cvpo.evaluate import (
    CostLevel,
    Decision,
    Episode,
    EpisodeRunner,
    RandomActor,
    ServedActor,
    TorchActor,
    conditional_value_at_risk,
    cost_levels,
    interval,
    play,
    run_episodes,
    summarize,
    to_environment,
)
from cvpo.training.checkpoint import TrainedPolicy, load_policy
from cvpo.training.trainer import train
from tests.budget import Reports, never, small_config


class Alternating(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Episodes of 3 and 9 steps by turns, the short ones terminated; reward 1 a step, cost the action's two parts."""

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 10.0, (1,), np.float64)
        self.action_space = Box(np.array([0.0, 2.0]), np.array([1.0, 4.0]), dtype=np.float64)
        self.length, self.steps = 9, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.length, self.steps = 12 - self.length, 0
        return np.zeros(1), {}

    def step(self, action: NDArray[np.float64]) -> Any:
        self.steps += 1
        over, short = self.steps == self.length, self.length == 3
        costs = {"cost_a": float(action[0]), "cost_b": float(action[1])}
        return np.full(1, float(self.steps)), 1.0, over and short, over and not short, costs


class Recording:
    """Half the first part of the action, 3 of the other; notes what it was told is left and spent."""

    def __init__(self) -> None:
        self.steps_left: list[list[int]] = []
        self.spent: list[list[list[float]]] = []

    def act(
        self, observation: NDArray[np.float32], steps_left: NDArray[np.int64], spent: NDArray[np.float64]
    ) -> Decision:
        self.steps_left.append(steps_left.tolist())
        self.spent.append(spent.tolist())
        count = len(observation)
        return Decision(np.tile([0.5, 3.0], (count, 1)), cost_value=np.tile(observation, (1, 2)).astype(np.float64))


def alternating(num_envs: int) -> VectorEnv:
    return VectorEnv(
        "tests.test_evaluate:Alternating",
        num_envs=num_envs,
        workers=0,
        seed=0,
        cost_names=("cost_a", "cost_b"),
        max_episode_steps=20,
    )


# Running episodes.


def test_each_environment_runs_its_own_number_of_episodes_so_short_ones_are_not_favoured() -> None:
    # Five episodes in two environments: three and two, each beginning with a short one. Taking the first five to end
    # would have given three short ones and two long ones only by chance of who is ahead.
    with alternating(2) as env:
        episodes = run_episodes(env, Recording(), 5)
    assert [len(episode.reward) for episode in episodes] == [3, 9, 3, 3, 9]
    assert [episode.terminated for episode in episodes] == [True, False, True, True, False]


def test_an_episode_has_what_was_seen_done_and_predicted_at_each_step() -> None:
    with alternating(1) as env:
        (episode,) = run_episodes(env, Recording(), 1)
    np.testing.assert_array_equal(episode.observation[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(episode.reward, [1, 1, 1])
    np.testing.assert_array_equal(episode.cost, [[0.5, 3.0]] * 3)
    assert episode.cost_value is not None
    np.testing.assert_array_equal(episode.cost_value, [[0, 0], [1, 1], [2, 2]])
    assert episode.cost_to_go is None
    assert episode.violation is None


def test_an_actor_is_told_how_many_steps_are_left() -> None:
    actor = Recording()
    with alternating(1) as env:
        run_episodes(env, actor, 2)
    assert [left for (left,) in actor.steps_left] == [20, 19, 18, 20, 19, 18, 17, 16, 15, 14, 13, 12]


def test_an_actor_is_told_what_the_episode_has_cost() -> None:
    actor = Recording()  # each step costs 0.5 and 3; a new episode has spent nothing
    with alternating(1) as env:
        run_episodes(env, actor, 2)
    assert [spent for (spent,) in actor.spent[:5]] == [[0, 0], [0.5, 3], [1, 6], [0, 0], [0.5, 3]]


def test_a_runner_advances_one_step_at_a_time() -> None:
    with alternating(2) as env:
        runner = EpisodeRunner(env, Recording(), 2, env.reset())
        for _ in range(3):
            assert not runner.finished
            assert runner.done == 0
            runner.advance()
        assert runner.finished
        assert runner.done == 2
        assert len(runner.result()) == 2


def test_an_episode_is_played_step_by_step_in_this_process() -> None:
    actor = Recording()
    made = make_env("tests.test_evaluate:Alternating", cost_names=("cost_a", "cost_b"), max_episode_steps=20)
    with contextlib.closing(made) as env:
        first, second = list(play(env, actor, seed=0)), list(play(env, actor, seed=0))
    assert [(step.terminated, step.truncated) for step in first] == [(False, False)] * 2 + [(True, False)]
    assert [step.truncated for step in second] == [False] * 8 + [True]
    assert [left for (left,) in actor.steps_left[:4]] == [20, 19, 18, 20]
    assert [spent for (spent,) in actor.spent[:4]] == [[0, 0], [0.5, 3], [1, 6], [0, 0]]


# What they add up to.


def episode(
    reward: list[float], cost: list[list[float]], value: list[list[float]] | None = None, terminated: bool = False
) -> Episode:
    steps = len(reward)
    predicted = None if value is None else np.array(value)
    return Episode(
        np.zeros((steps, 1), np.float32), np.array(reward), np.array(cost), terminated, predicted, None, None
    )


def test_an_evaluation_sums_episodes_and_counts_those_over_each_limit() -> None:
    episodes = [
        episode([1, 2], [[1, 0], [1, 0]]),
        episode([3], [[5, 1]]),
        episode([6], [[2, 9]]),
        episode([0], [[3, 0]]),
    ]
    evaluation = summarize(episodes, [2.0, float("inf")], "sampled")
    assert (evaluation.mode, evaluation.episodes) == ("sampled", 4)
    assert evaluation.episode_return.mean == 3
    assert [cost.mean for cost in evaluation.episode_cost] == [3, 2.5]
    assert evaluation.over_limit_share == (0.5, 0.0)  # 2 is at its limit of 2, not over it
    assert evaluation.cost_cvar90 == (5.0, 9.0)  # a tenth of four episodes is less than the worst one


@pytest.mark.parametrize(
    ("values", "level", "worst"),
    [
        (range(20), 0.9, (19 + 18) / 2),
        (range(25), 0.9, (24 + 23 + 0.5 * 22) / 2.5),  # the third worst counts by half
        (range(15), 0.9, (14 + 0.5 * 13) / 1.5),
        (range(5), 0.9, 4),  # less than one whole episode: the worst
        ([7], 0.9, 7),
        ([3, -1, 2], 0.0, 4 / 3),  # all of them: the mean
        ([0, 0, 0, 8], 0.5, 4),
    ],
)
def test_the_conditional_value_at_risk_is_the_mean_of_the_worst_share(
    values: Sequence[float], level: float, worst: float
) -> None:
    shuffled = np.random.default_rng(0).permutation(np.array(values, np.float64))
    assert conditional_value_at_risk(shuffled, level) == pytest.approx(worst, rel=1e-12, abs=1e-12)


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e3, 1e3)), st.floats(0, 0.99))
def test_the_conditional_value_at_risk_is_the_minimum_that_defines_it(
    values: NDArray[np.float64], level: float
) -> None:
    # Rockafellar and Uryasev, 2000, Theorem 1: min over x of x + mean(max(values − x, 0))/(1 − level), which is convex
    # and piecewise linear with its corners at the values.
    candidates = values + np.maximum(values[:, None] - values, 0).mean(0) / (1 - level)
    assert conditional_value_at_risk(values, level) == pytest.approx(candidates.min(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("count", "level"), [(0, 0.9), (3, 1.0), (3, -0.1)])
def test_there_is_no_conditional_value_at_risk_of_nothing_or_of_no_level(count: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"CVaR"):
        conditional_value_at_risk(np.ones(count), level)


def test_an_interval_is_the_students_for_many_normal_values() -> None:
    # Mean 10, standard deviation 2, n = 400: 10 ± 1.96·2/20.
    values = np.random.default_rng(0).normal(size=400)
    values = 10 + 2 * (values - values.mean()) / values.std()
    found = interval(values)
    assert found.mean == pytest.approx(10)
    assert found.low == pytest.approx(10 - 0.196, abs=0.02)
    assert found.high == pytest.approx(10 + 0.196, abs=0.02)


def test_an_interval_covers_its_mean_95_times_in_a_hundred() -> None:
    generator = np.random.default_rng(0)
    found = [interval(generator.exponential(size=50)) for _ in range(200)]
    # Skewed values and 50 of them: a percentile bootstrap covers a little less than it says.
    assert 0.88 <= np.mean([one.low <= 1 <= one.high for one in found]) <= 0.99


def test_the_interval_of_equal_values_or_of_one_has_no_width() -> None:
    for values in (np.full(10, 25.0), np.array([25.0])):
        found = interval(values)
        assert (found.mean, found.low, found.high) == (25, 25, 25)


def test_the_interval_is_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert interval(values) == interval(values)


def ratios(episodes: list[Episode], discounts: list[float]) -> list[float | None]:
    return [level.ratio for level in cost_levels(episodes, discounts)]


def test_the_cost_level_is_predicted_over_realized_discounted_cost() -> None:
    # gamma 0.5 and a cost of 1 a step for ever: 2 from each step on. Predictions of 3 are half as much too high, though
    # only four of the steps are seen.
    one = episode([0] * 4, [[1.0]] * 4, [[3.0]] * 4)
    assert ratios([one], [0.5]) == [pytest.approx(1.5)]


def test_the_realized_cost_is_a_mean_over_steps() -> None:
    # Costs 1, 0 and 1, and a step whose cost is not seen; gamma 0.5: 1.25, 0.5 and 1 followed. A second episode costs
    # nothing in its one step that is seen.
    one = episode([0] * 4, [[1.0], [0.0], [1.0], [9.0]], [[0.0]] * 4)
    other = episode([0] * 2, [[0.0], [9.0]], [[0.0]] * 2)
    assert cost_levels([one, other], [0.5]) == [CostLevel(predicted=0.0, realized=2.75 / 4)]


def test_what_was_not_seen_of_a_truncated_episode_does_not_count() -> None:
    # Costs 1, 1 and then a third step, whose cost and what follows it may be anything: 1.5 and 1 were seen, and
    # 4 − 8/4 = 2 and 6 − 8/2 = 2 predicted of it.
    one = episode([0] * 3, [[1.0], [1.0], [99.0]], [[4.0], [6.0], [8.0]])
    assert ratios([one], [0.5]) == [pytest.approx(4 / 2.5)]


def test_what_follows_a_termination_does_not_count_either() -> None:
    # What is predicted goes on with the next episode's cost, which is not in this one.
    one = episode([0] * 3, [[1.0], [1.0], [99.0]], [[4.0], [6.0], [8.0]], terminated=True)
    assert ratios([one], [0.5]) == [pytest.approx(4 / 2.5)]


def test_there_is_no_cost_level_where_nothing_was_realized_or_seen() -> None:
    assert ratios([episode([0] * 3, [[0.0]] * 3, [[1.0]] * 3)], [0.5]) == [None]
    assert ratios([episode([0], [[1.0]], [[1.0]])], [0.5]) == [None]


def test_each_cost_has_its_own_level() -> None:
    one = episode([0] * 2, [[1.0, 2.0], [0.0, 0.0]], [[2.0, 1.0], [0.0, 0.0]])
    assert ratios([one], [0.5, 0.5]) == [2.0, 0.5]


def test_each_cost_level_is_of_its_own_discount() -> None:
    # Two steps that cost 1, and a last one: 1.5 and 1 with gamma 0.5, 1.1 and 1 with gamma 0.1.
    one = episode([0] * 3, [[1.0, 1.0]] * 3, [[1.5, 1.1], [1.0, 1.0], [0.0, 0.0]])
    assert ratios([one], [0.5, 0.1]) == [pytest.approx(1), pytest.approx(1)]


def test_episodes_without_predictions_have_no_cost_level() -> None:
    with pytest.raises(ValueError, match="no cost_value"):
        cost_levels([episode([0], [[1.0]])], [0.5])


# Who acts.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "run"
    train(small_config(steps=400), path, Reports(), never)
    return path


@pytest.fixture(scope="module")
def policy(run: Path) -> TrainedPolicy:
    return load_policy(run, 400)


def test_actions_are_scaled_to_the_bounds_of_the_environment() -> None:
    scaled = to_environment(np.array([[-1.0, 0.0], [1.0, 0.5]]), np.array([0.0, -10.0]), np.array([1.0, 30.0]))
    np.testing.assert_allclose(scaled, [[0.0, 10.0], [1.0, 20.0]])


def test_the_deterministic_action_is_that_of_the_mean_and_its_cost_is_judged(policy: TrainedPolicy) -> None:
    observation = np.array([[1.0], [3.0]], np.float32)
    actor = TorchActor(policy.model, policy.spec)
    decision = actor.act(observation, np.full(2, 40), np.zeros((2, 1)))
    mean, _ = policy.model.distribution(torch.from_numpy(observation))
    np.testing.assert_allclose(decision.action, (mean.tanh().numpy() + 1) / 2, atol=1e-7)  # efforts are in [0, 1]
    _, cost_value = policy.model.values(torch.from_numpy(observation), mean.tanh().unsqueeze(1))
    assert decision.cost_value is not None
    np.testing.assert_allclose(decision.cost_value, cost_value[:, 0].numpy())
    np.testing.assert_array_equal(actor.act(observation, np.full(2, 40), np.zeros((2, 1))).action, decision.action)


def test_sampled_actions_follow_the_distribution_and_their_generator(policy: TrainedPolicy) -> None:
    observation = np.full((2_000, 1), 3.0, np.float32)
    actions = [
        TorchActor(policy.model, policy.spec, torch.Generator().manual_seed(7))
        .act(observation, np.full(2_000, 40), np.zeros((2_000, 1)))
        .action
        for _ in range(2)
    ]
    np.testing.assert_array_equal(actions[0], actions[1])
    mean, deviation = (float(value[0]) for value in policy.model.distribution(torch.tensor([[3.0]])))
    u = np.arctanh(np.clip(2 * actions[0] - 1, -1 + 1e-9, 1 - 1e-9))
    assert u.mean() == pytest.approx(mean, abs=0.05)
    assert u.std() == pytest.approx(deviation, rel=0.1)


def test_random_actions_fill_the_bounds(policy: TrainedPolicy) -> None:
    spec = EnvSpec("e", 1, np.array([0.0, -5.0]), np.array([1.0, 5.0]), ("cost",), 40, None)
    action = RandomActor(spec, 0).act(np.zeros((1_000, 1), np.float32), np.full(1_000, 40), np.zeros((1_000, 1))).action
    np.testing.assert_allclose(action.min(0), [0, -5], atol=0.05)
    np.testing.assert_allclose(action.max(0), [1, 5], atol=0.05)
    np.testing.assert_allclose(action.mean(0), [0.5, 0], atol=0.3)


def test_a_served_policy_is_asked_with_what_is_left_and_an_episode_over_its_limit_is_flagged_whatever_it_says() -> None:
    limits = [SimpleNamespace(cost_limit=2.0), SimpleNamespace(cost_limit=np.inf)]
    nothing = np.zeros((3, 2))
    said = SimpleNamespace(cost_value=nothing, cost_to_go=nothing, violation=np.zeros((3, 2), np.bool_))
    caller = mock.Mock()
    caller.get_policy.return_value = SimpleNamespace(constraints=limits)
    caller.act.return_value = SimpleNamespace(action=nothing, prediction=said)
    spent = np.array([[0.5, 9.0], [2.0, 9.0], [2.5, 9.0]])
    decision = ServedActor(caller).act(np.zeros((3, 1), np.float32), np.array([5, 5, 5]), spent)
    assert caller.act.call_args.kwargs["cost_allowed"].tolist() == [[1.5, np.inf], [0.0, np.inf], [0.0, np.inf]]
    assert decision.violation is not None
    assert decision.violation.tolist() == [[False, False], [False, False], [True, False]]
