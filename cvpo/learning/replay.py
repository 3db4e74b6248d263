"""The store of transitions: n-step returns are formed as steps arrive, batches are drawn from it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvpo.envs import VectorStep
from cvpo.learning.returns import NStepReturn, n_step_return

Float32Array = NDArray[np.float32]
FIELDS = ("observation", "action", "reward", "cost", "discount", "cost_discount", "next_observation")


@dataclass(frozen=True)
class Batch:
    """Transitions over up to n steps; the first `recent` of them are of the newest part of the store."""

    observation: Float32Array  # [B, O]
    action: Float32Array  # [B, A], in [-1, 1]
    reward: Float32Array  # [B], discounted sum over the n steps
    cost: Float32Array  # [B, C], the same, with a discount of each cost
    discount: Float32Array  # [B], factor of the reward value of next_observation; 0 after termination
    cost_discount: Float32Array  # [B, C], factors of its cost values; those of the next episode count as well
    next_observation: Float32Array  # [B, O]; that of the next episode after termination, or as `after_time_limit` says
    recent: int


class Replay:
    """A ring of the newest `capacity` transitions, numbered from the first that was ever stored.

    A transition is one row of `rows`, [capacity, W]: its fields, one after the other. Number i is in row i % capacity.
    Where a run stores `most` of them at most, there are no more rows than that.
    """

    def __init__(
        self, capacity: int, observation_size: int, action_size: int, num_costs: int, most: int | None = None
    ) -> None:
        self.capacity, self.total = capacity, 0
        widths = (observation_size, action_size, 1, num_costs, 1, num_costs, observation_size)
        self.rows = np.zeros((capacity if most is None else min(capacity, most), sum(widths)), np.float32)
        columns = np.split(self.rows, np.cumsum(widths)[:-1], axis=1)  # views, in the order of FIELDS
        self.observation, self.action, self.cost = (columns[i] for i in (0, 1, 3))
        self.cost_discount, self.next_observation = columns[5], columns[6]
        self.reward, self.discount = columns[2][:, 0], columns[4][:, 0]

    @property
    def size(self) -> int:
        """How many transitions are stored."""
        return min(self.total, self.capacity)

    @property
    def position(self) -> int:
        """Row of the next transition."""
        return self.total % self.capacity

    def add(
        self, observation: Float32Array, action: Float32Array, total: NStepReturn, next_observation: Float32Array
    ) -> None:
        """Store one transition in place of the oldest."""
        i = self.position
        self.observation[i], self.action[i], self.next_observation[i] = observation, action, next_observation
        self.reward[i], self.cost[i], self.discount[i], self.cost_discount[i] = total
        self.total += 1

    def sample(self, generator: np.random.Generator, batch_size: int, recent_size: int) -> Batch:
        """Draw a batch: its first half from the newest `recent_size` transitions, the rest from the whole store."""
        recent = batch_size // 2
        age = np.concatenate(
            [
                generator.integers(0, min(recent_size, self.size), recent),
                generator.integers(0, self.size, batch_size - recent),
            ]
        )
        index = (self.position - 1 - age) % self.capacity
        return Batch(
            self.observation[index],
            self.action[index],
            self.reward[index],
            self.cost[index],
            self.discount[index],
            self.cost_discount[index],
            self.next_observation[index],
            recent,
        )

    def reward_scale(self) -> float:
        """What rewards are divided by: their deviation or, where they are all the same but for rounding, their size."""
        reward = self.reward[: self.size]
        deviation, largest = float(reward.std()), float(np.abs(reward).max())
        return deviation if deviation > 1e-6 * largest else largest or 1.0

    def since(self, number: int) -> tuple[int, Float32Array]:
        """The rows [n, W] from that number on, oldest first, and the number of the first: later, if it is gone."""
        first = max(number, self.total - self.size)
        return first, self.rows[np.arange(first, self.total) % self.capacity]

    def restore(self, first: int, rows: Float32Array) -> None:
        """Put back rows that `since` gave, in the order of their numbers."""
        self.total = first + len(rows)
        self.rows[np.arange(first, self.total) % self.capacity] = rows


class _Pending(NamedTuple):
    """A step that waits for its successors."""

    observation: Float32Array  # [O]
    action: Float32Array  # [A]
    reward: float
    cost: NDArray[np.float64]  # [C]
    terminated: bool


class NStepCollector:
    """Turns the steps of N environments into n-step transitions of a replay.

    A transition is stored once its n steps are known, or the episode is cut off before. A termination cuts nothing off:
    the cost of the next episode follows it (see `n_step_return`). What follows a truncation is
    `critic.after_time_limit`'s.
    """

    def __init__(
        self,
        replay: Replay,
        num_envs: int,
        n_step: int,
        discount: float,
        cost_discounts: Sequence[float],
        after_time_limit: Literal["state", "next_episode"],
    ) -> None:
        self.replay, self.n_step, self.after_time_limit = replay, n_step, after_time_limit
        self.discount, self.cost_discount = discount, np.array(cost_discounts)
        self.pending: list[deque[_Pending]] = [deque() for _ in range(num_envs)]

    def add(self, observation: Float32Array, action: Float32Array, step: VectorStep) -> None:
        """Take one step of every environment.

        Args:
            observation: what the actions were chosen on, [N, O].
            action: in [-1, 1], [N, A].
            step: what they led to.
        """
        for i, steps in enumerate(self.pending):
            terminated = bool(step.terminated[i])
            steps.append(_Pending(observation[i], action[i], float(step.reward[i]), step.cost[i], terminated))
            cut = bool(step.truncated[i]) and not terminated
            goes_on = not terminated and (not cut or self.after_time_limit == "state")
            following = step.final_observation[i] if goes_on else step.observation[i]
            while steps and (cut or len(steps) == self.n_step):
                _, _, reward, cost, ends = map(np.array, zip(*steps, strict=True))
                total = n_step_return(reward, cost, ends, self.discount, self.cost_discount)
                first = steps.popleft()
                self.replay.add(first.observation, first.action, total, following)

    def state(self) -> list[list[tuple[list[float], list[float], float, list[float], bool]]]:
        """Steps of each environment that are still waiting for their successors, as plain values."""
        return [
            [(s.observation.tolist(), s.action.tolist(), s.reward, s.cost.tolist(), s.terminated) for s in steps]
            for steps in self.pending
        ]

    def restore(self, state: list[list[tuple[list[float], list[float], float, list[float], bool]]]) -> None:
        """Put back what `state` gave."""
        for steps, saved in zip(self.pending, state, strict=True):
            steps.clear()
            for observation, action, reward, cost, terminated in saved:
                float32 = np.array(observation, np.float32), np.array(action, np.float32)
                steps.append(_Pending(*float32, reward, np.array(cost), terminated))
