"""The store of transitions: n-step returns are formed as steps arrive, batches are drawn from it."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvpo.returns import n_step_return

Float32Array = NDArray[np.float32]
FIELDS = ("observation", "action", "reward", "cost", "discount", "next_observation")


@dataclass(frozen=True)
class Batch:
    """Transitions over up to n steps; the first `recent` of them are of the newest part of the store."""

    observation: Float32Array  # [B, O]
    action: Float32Array  # [B, A], in [-1, 1]
    reward: Float32Array  # [B], discounted sum over the n steps
    cost: Float32Array  # [B, C], the same
    discount: Float32Array  # [B], factor of the value of next_observation; 0 after termination
    next_observation: Float32Array  # [B, O]
    recent: int


class Replay:
    """A ring of the newest `capacity` transitions."""

    def __init__(self, capacity: int, observation_size: int, action_size: int, num_costs: int) -> None:
        self.capacity, self.size, self.position = capacity, 0, 0
        self.observation = np.zeros((capacity, observation_size), np.float32)
        self.action = np.zeros((capacity, action_size), np.float32)
        self.reward = np.zeros(capacity, np.float32)
        self.cost = np.zeros((capacity, num_costs), np.float32)
        self.discount = np.zeros(capacity, np.float32)
        self.next_observation = np.zeros((capacity, observation_size), np.float32)

    def add(
        self,
        observation: Float32Array,
        action: Float32Array,
        reward: float,
        cost: NDArray[np.float64],
        discount: float,
        next_observation: Float32Array,
    ) -> None:
        """Store one transition in place of the oldest."""
        i = self.position
        self.observation[i], self.action[i], self.next_observation[i] = observation, action, next_observation
        self.reward[i], self.cost[i], self.discount[i] = reward, cost, discount
        self.position = (i + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

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
            self.next_observation[index],
            recent,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What is stored, oldest first, for a checkpoint."""
        order = (self.position - self.size + np.arange(self.size)) % self.capacity
        return {field: getattr(self, field)[order] for field in FIELDS}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Put back what `arrays` gave."""
        self.size = len(arrays["reward"])
        self.position = self.size % self.capacity
        for field in FIELDS:
            getattr(self, field)[: self.size] = arrays[field]


class NStepCollector:
    """Turns the steps of N environments into n-step transitions of a replay.

    A transition is stored once its n steps are known, or the episode ended before.
    """

    def __init__(self, replay: Replay, num_envs: int, n_step: int, discount: float) -> None:
        self.replay, self.n_step, self.discount = replay, n_step, discount
        self.pending: list[deque[tuple[Float32Array, Float32Array, float, NDArray[np.float64]]]] = [
            deque() for _ in range(num_envs)
        ]

    def add(
        self,
        observation: Float32Array,
        action: Float32Array,
        reward: NDArray[np.float64],
        cost: NDArray[np.float64],
        next_observation: Float32Array,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> None:
        """Take one step of every environment; `next_observation` is the true successor, before any reset.

        Args:
            observation, next_observation: [N, O].
            action: in [-1, 1], [N, A].
            reward: [N].
            cost: [N, C].
            terminated, truncated: [N].
        """
        for i, steps in enumerate(self.pending):
            steps.append((observation[i], action[i], float(reward[i]), cost[i]))
            ended = bool(terminated[i] or truncated[i])
            while steps and (ended or len(steps) == self.n_step):
                rewards = np.array([step[2] for step in steps])
                costs = np.array([step[3] for step in steps])
                total = n_step_return(rewards, costs, self.discount, bool(terminated[i]))
                self.replay.add(steps[0][0], steps[0][1], total[0], total[1], total[2], next_observation[i])
                steps.popleft()

    def state(self) -> list[list[tuple[list[float], list[float], float, list[float]]]]:
        """Steps of each environment that are still waiting for their successors, as plain values."""
        return [
            [
                (observation.tolist(), action.tolist(), reward, cost.tolist())
                for observation, action, reward, cost in steps
            ]
            for steps in self.pending
        ]

    def restore(self, state: list[list[tuple[list[float], list[float], float, list[float]]]]) -> None:
        """Put back what `state` gave."""
        for steps, saved in zip(self.pending, state, strict=True):
            steps.clear()
            for observation, action, reward, cost in saved:
                steps.append((np.array(observation, np.float32), np.array(action, np.float32), reward, np.array(cost)))
