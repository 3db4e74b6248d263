"""The ring of transitions, and the n-step returns that are formed on the way into it."""

import json
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from cvpo.envs import VectorStep
from cvpo.learning.replay import FIELDS, NStepCollector, Replay
from cvpo.learning.returns import NStepReturn

GAMMA = 0.5


def filled(capacity: int, count: int) -> Replay:
    """A replay that `count` transitions went through; transition i has the reward i."""
    replay = Replay(capacity, 2, 1, 2)
    for i in range(count):
        observation, following = np.full(2, i, np.float32), np.full(2, i + 1, np.float32)
        total = NStepReturn(i, np.array([i, 2.0 * i]), 0.9, np.array([0.8, 0.7]))
        replay.add(observation, np.array([i / 100], np.float32), total, following)
    return replay


def rewards(replay: Replay) -> list[float]:
    """Of what is stored, oldest first."""
    restored = Replay(replay.total + 1, 2, 1, 2)
    restored.restore(*replay.since(0))
    return [float(value) for value in restored.reward[replay.total - replay.size : replay.total]]


def test_the_newest_take_the_place_of_the_oldest() -> None:
    assert rewards(filled(4, 3)) == [0, 1, 2]
    assert rewards(filled(4, 4)) == [0, 1, 2, 3]
    assert rewards(filled(4, 6)) == [2, 3, 4, 5]
    assert rewards(filled(4, 8)) == [4, 5, 6, 7]


def test_a_batch_keeps_each_transition_together() -> None:
    batch = filled(8, 11).sample(np.random.default_rng(0), 64, 4)
    i = batch.reward
    np.testing.assert_array_equal(batch.observation, np.stack([i, i], 1))
    np.testing.assert_array_equal(batch.next_observation, np.stack([i + 1, i + 1], 1))
    np.testing.assert_allclose(batch.action[:, 0], i / 100)
    np.testing.assert_array_equal(batch.cost, np.stack([i, 2 * i], 1))
    np.testing.assert_allclose(batch.discount, 0.9)
    np.testing.assert_allclose(batch.cost_discount, np.tile([0.8, 0.7], (64, 1)))


@pytest.mark.parametrize("count", [20, 37])
def test_half_of_a_batch_is_of_the_newest_and_the_rest_of_the_whole_store(count: int) -> None:
    batch = filled(20, count).sample(np.random.default_rng(0), 400, 5)
    assert batch.recent == 200
    assert set(batch.reward[:200]) == {count - 5, count - 4, count - 3, count - 2, count - 1}
    assert set(batch.reward[200:]) == set(range(count - 20, count))


def test_a_store_younger_than_the_recent_part_gives_what_it_has() -> None:
    batch = filled(20, 3).sample(np.random.default_rng(0), 64, 10)
    assert set(batch.reward) == {0, 1, 2}


def test_rewards_are_divided_by_their_deviation() -> None:
    assert filled(4, 6).reward_scale() == pytest.approx(1.25**0.5)  # of 2, 3, 4 and 5


@pytest.mark.parametrize(("reward", "scale"), [(-0.1, 0.1), (3e5, 3e5), (1.0, 1.0), (0.0, 1.0)])
def test_rewards_that_are_all_the_same_are_divided_by_their_size(reward: float, scale: float) -> None:
    replay = Replay(6_000, 2, 1, 2)
    for _ in range(5_000):  # of which float32 makes a deviation of 1.5e-8 for -0.1
        total = NStepReturn(reward, np.zeros(2), 0.9, np.ones(2))
        replay.add(np.zeros(2, np.float32), np.zeros(1, np.float32), total, np.zeros(2, np.float32))
    assert replay.reward_scale() == pytest.approx(scale)


@pytest.mark.parametrize("count", [5, 8, 13])
def test_a_restored_replay_draws_the_same_batches_and_goes_on_the_same(count: int) -> None:
    original = filled(8, count)
    restored = Replay(8, 2, 1, 2)
    first, rows = original.since(0)
    for start in range(0, len(rows), 3):  # in parts, as they are on disk
        restored.restore(first + start, rows[start : start + 3])
    for replay in (original, restored):
        total = NStepReturn(99, np.zeros(2), 0.0, np.ones(2))
        replay.add(np.zeros(2, np.float32), np.zeros(1, np.float32), total, np.zeros(2, np.float32))
    np.testing.assert_array_equal(restored.rows, original.rows)
    batches = [replay.sample(np.random.default_rng(1), 32, 4) for replay in (original, restored)]
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(batches[0], field), getattr(batches[1], field))


@pytest.mark.parametrize(("number", "first", "reward"), [(0, 5, 5), (5, 5, 5), (9, 9, 9), (12, 12, 12)])
def test_rows_are_given_from_a_number_on_or_from_the_oldest_that_is_left(number: int, first: int, reward: int) -> None:
    # 13 went through a store of 8: numbers 5 to 12 are left. A row is observation 2, action 1, reward, ...
    begin, rows = filled(8, 13).since(number)
    assert begin == first
    assert rows[:, 3].tolist() == list(range(reward, 13))


def test_nothing_new_is_no_row() -> None:
    first, rows = filled(8, 13).since(13)
    assert (first, rows.shape) == (13, (0, 11))


# n-step returns. Observations are the time within the episode, and FIRST where the next one begins; rewards are 1, 10,
# 100, ... so that each can be told apart in a sum; costs are (reward, 2·reward), so that they are summed as it is.

FIRST = -1


class Collected:
    """A collector of N environments and what it stored."""

    def __init__(
        self, num_envs: int = 1, n_step: int = 3, after_time_limit: Literal["state", "next_episode"] = "state"
    ) -> None:
        self.replay = Replay(100, 1, 1, 2)
        self.collector = NStepCollector(self.replay, num_envs, n_step, GAMMA, (GAMMA, GAMMA), after_time_limit)

    def step(
        self,
        time: list[int],
        reward: list[float],
        *,
        terminated: tuple[int, ...] = (),
        truncated: tuple[int, ...] = (),
    ) -> None:
        """One step of every environment; `terminated` and `truncated` list the environments that end."""
        last = [t + 1 for t in time]
        ends = np.arange(len(time))
        self.collector.add(
            column(time),
            column([t / 10 for t in time]),
            VectorStep(
                observation=column([FIRST if i in (*terminated, *truncated) else last[i] for i in ends]),
                final_observation=column(last),
                reward=np.array(reward),
                cost=np.array([[r, 2 * r] for r in reward]),
                terminated=np.isin(ends, terminated),
                truncated=np.isin(ends, truncated),
            ),
        )

    @property
    def transitions(self) -> list[tuple[float, float, float, float]]:
        """(observation, reward, discount, next observation) of each, oldest first."""
        stored = range(self.replay.size)  # fewer than the capacity
        arrays = {name: np.asarray(getattr(self.replay, name)[stored], np.float64) for name in FIELDS}
        np.testing.assert_allclose(arrays["action"], arrays["observation"] / 10, rtol=1e-6)
        goes_on = arrays["discount"] > 0
        np.testing.assert_array_equal(arrays["cost_discount"][goes_on], arrays["discount"][goes_on, None] * [1, 1])
        np.testing.assert_allclose(arrays["cost"][goes_on], arrays["reward"][goes_on, None] * [1, 2], rtol=1e-6)
        rows = zip(
            arrays["observation"][:, 0],
            arrays["reward"],
            arrays["discount"],
            arrays["next_observation"][:, 0],
            strict=True,
        )
        return [(float(a), float(b), float(c), float(d)) for a, b, c, d in rows]


def column(values: list[int] | list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)[:, None]


def test_a_transition_is_stored_when_its_n_steps_are_known() -> None:
    collected = Collected()
    collected.step([0], [1])
    collected.step([1], [10])
    assert collected.transitions == []
    collected.step([2], [100])
    assert collected.transitions == [(0, 1 + 5 + 25, 0.125, 3)]
    collected.step([3], [1000])
    assert collected.transitions[1:] == [(1, 10 + 50 + 250, 0.125, 4)]


def test_termination_ends_reward_but_the_cost_of_the_next_episode_follows() -> None:
    # Else the end of an episode would look as safe as a state from which nothing ever costs anything.
    collected = Collected()
    for t, reward in enumerate([1, 10]):
        collected.step([t], [reward])
    collected.step([2], [100], terminated=(0,))
    assert collected.transitions == [(0, 1 + 5 + 25, 0, FIRST)]
    collected.step([FIRST], [1000])
    collected.step([0], [10000])
    assert collected.transitions[1:] == [(1, 10 + 50, 0, 0), (2, 100, 0, 1)]
    cost = np.array([1 + 5 + 25, 10 + 50 + 250, 100 + 500 + 2500])
    np.testing.assert_array_equal(collected.replay.cost[:3], cost[:, None] * [1, 2])
    np.testing.assert_array_equal(collected.replay.cost_discount[:3], np.full((3, 2), 0.125))


def test_a_truncation_soon_after_a_termination_cuts_the_returns_of_both_episodes_off() -> None:
    collected = Collected()
    collected.step([7], [1], terminated=(0,))
    collected.step([0], [10], truncated=(0,))
    assert collected.transitions == [(7, 1, 0, 1), (0, 10, 0.5, 1)]
    np.testing.assert_array_equal(collected.replay.cost[:2, 0], [1 + 5, 10])
    np.testing.assert_array_equal(collected.replay.cost_discount[:2, 0], [0.25, 0.5])


def test_the_next_episode_may_follow_a_truncation() -> None:
    collected = Collected(n_step=2, after_time_limit="next_episode")
    for t, reward in enumerate([1, 10]):
        collected.step([t], [reward])
    collected.step([2], [100], truncated=(0,))
    assert collected.transitions == [(0, 1 + 5, 0.25, 2), (1, 10 + 50, 0.25, FIRST), (2, 100, 0.5, FIRST)]


def test_truncation_ends_every_return_but_the_value_of_what_follows_counts() -> None:
    collected = Collected()
    for t, reward in enumerate([1, 10, 100]):
        collected.step([t], [reward])
    collected.step([3], [1000], truncated=(0,))
    assert collected.transitions == [
        (0, 1 + 5 + 25, 0.125, 3),
        (1, 10 + 50 + 250, 0.125, 4),
        (2, 100 + 500, 0.25, 4),
        (3, 1000, 0.5, 4),
    ]


def test_an_episode_shorter_than_n_is_stored_whole() -> None:
    collected = Collected(n_step=5)
    collected.step([0], [1])
    collected.step([1], [10], truncated=(0,))
    assert collected.transitions == [(0, 1 + 5, 0.25, 2), (1, 10, 0.5, 2)]


def test_terminated_and_truncated_at_once_is_terminated() -> None:
    collected = Collected(n_step=1)
    collected.step([0], [1], terminated=(0,), truncated=(0,))
    assert collected.transitions == [(0, 1, 0, FIRST)]


def test_no_return_reaches_over_into_the_next_episode() -> None:
    collected = Collected()
    collected.step([0], [1])
    collected.step([1], [10], truncated=(0,))
    for t, reward in enumerate([100, 1000, 10000]):
        collected.step([t], [reward])
    assert collected.transitions[2:] == [(0, 100 + 500 + 2500, 0.125, 3)]


def test_environments_out_of_step_with_each_other_do_not_mix() -> None:
    # The first begins at 0 and ends after its time 1; the second is at time 7 and runs on.
    collected = Collected(num_envs=2)
    collected.step([0, 7], [1, 2])
    collected.step([1, 8], [10, 20], truncated=(0,))
    assert collected.transitions == [(0, 1 + 5, 0.25, 2), (1, 10, 0.5, 2)]
    collected.step([0, 9], [100, 200])
    assert collected.transitions[2:] == [(7, 2 + 10 + 50, 0.125, 10)]
    collected.step([1, 10], [1000, 2000], truncated=(1,))
    assert collected.transitions[3:] == [(8, 20 + 100 + 500, 0.125, 11), (9, 200 + 1000, 0.25, 11), (10, 2000, 0.5, 11)]
    collected.step([2, 0], [10000, 0])
    assert collected.transitions[6:] == [(0, 100 + 500 + 2500, 0.125, 3)]


def test_a_restored_collector_goes_on_where_it_was() -> None:
    original, restored = Collected(num_envs=2), Collected(num_envs=2)
    original.step([0, 4], [1, 0.1])
    original.step([1, 5], [10, 0.3], terminated=(0,), truncated=(1,))
    np.testing.assert_allclose(original.transitions, [(4, 0.25, 0.25, 6), (5, 0.3, 0.5, 6)], rtol=1e-6)
    state = json.loads(json.dumps(original.collector.state()))  # plain values: they survive any file format
    restored.collector.restore(state)
    for collected in (original, restored):
        collected.step([2, 0], [100, 7])
    assert restored.transitions == original.transitions[2:]
    assert restored.collector.state() == original.collector.state()
