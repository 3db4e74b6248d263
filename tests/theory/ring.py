"""A constrained decision process small enough for exact linear algebra."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ring:
    """S states in a ring; in each one, K actions lead 1 to K states ahead, in an order of its own.

    Episodes begin anywhere. So the uniform policy visits every state alike, and a plain mean over the states is a mean
    over those that it visits; any other policy visits some more than others.
    """

    successor: NDArray[np.intp]  # [S, K]
    reward: Array  # [S, K]
    cost: Array  # [S, K]
    discount: float

    @classmethod
    def random(cls, seed: int, states: int = 12, actions: int = 4, discount: float = 0.8) -> "Ring":
        """Costs from nothing to one a step, rewards that prefer what costs."""
        generator = np.random.default_rng(seed)
        ahead = generator.permuted(np.tile(np.arange(1, actions + 1), (states, 1)), axis=1)
        cost = generator.uniform(size=(states, actions))
        reward = cost + generator.normal(size=(states, actions))
        return cls((np.arange(states)[:, None] + ahead) % states, reward, cost, discount)

    @property
    def uniform(self) -> Array:
        """The policy that prefers nothing, [S, K]."""
        return np.full(self.cost.shape, 1 / self.cost.shape[1])

    def value(self, policy: Array, payoff: Array) -> Array:
        """V of each state: discounted payoff from there on, [S]."""
        return np.asarray(np.linalg.solve(self._bellman(policy), (policy * payoff).sum(1)))

    def action_value(self, policy: Array, payoff: Array) -> Array:
        """Q of each action, if the policy goes on from there, [S, K]."""
        return payoff + self.discount * self.value(policy, payoff)[self.successor]

    def advantage(self, policy: Array, payoff: Array) -> Array:
        """A = Q − V, [S, K]."""
        return self.action_value(policy, payoff) - self.value(policy, payoff)[:, None]

    def total(self, policy: Array, payoff: Array) -> float:
        """J: discounted payoff of an episode."""
        return float(self.value(policy, payoff).mean())

    def visits(self, policy: Array) -> Array:
        """Discounted share of the time spent in each state, [S]."""
        start = np.full(len(self.cost), 1 / len(self.cost))
        return np.asarray((1 - self.discount) * np.linalg.solve(self._bellman(policy).T, start))

    def _bellman(self, policy: Array) -> Array:
        """I − gamma·P, [S, S]."""
        transition = np.zeros((len(policy), len(policy)))
        for action in range(policy.shape[1]):
            transition[np.arange(len(policy)), self.successor[:, action]] += policy[:, action]
        return np.eye(len(policy)) - self.discount * transition
