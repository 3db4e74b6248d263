"""The level of the cost critics: what they say of the measured policy against what comes, and what puts it right.

An E-step on a measured cost needs the critics' slope alone, so nothing in learning keeps their level right. They learn
from explorers' costs, too, and lag behind a policy that changes: off by a factor of a half to three, which differs by
task. People and services read them as costs; so what they say is multiplied by the factor that was measured.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cvpo.learning.returns import seen_costs

Array = NDArray[np.float64]
EPISODES = 20.0  # an episode counts 1/e as much after so many more
BOUND = 5.0  # of the factor, and of its inverse: a critic that is further off needs more than a factor


@dataclass(frozen=True)
class LevelMeter:
    """Fading sums over episodes of the measured policy, each with the critics as they were at its end, [C]."""

    predicted: Array  # of what was seen to its end
    realized: Array
    said: Array  # predicted in all, with what follows the end
    episodes: Array  # the same sum of ones

    @classmethod
    def start(cls, num_costs: int) -> Self:
        return cls(*np.zeros((4, num_costs)))

    def seeing(self, cost_value: Array, cost: Array, discounts: Array) -> "LevelMeter":
        """Take in an episode, or a part of one without a gap.

        Args:
            cost_value: predicted after each step by the critics themselves, [T, C].
            cost: of each step, [T, C].
            discounts: of each cost, [C].
        """
        kept = 1 - 1 / EPISODES
        predicted, realized = seen_costs(cost_value, cost, discounts)
        return LevelMeter(
            kept * self.predicted + predicted,
            kept * self.realized + realized,
            kept * self.said + cost_value.sum(0),
            kept * self.episodes + 1,
        )

    def as_one_episode(self) -> "LevelMeter":
        """The same level, as if it had been seen in one episode: something for the pieces that come first to count by.

        A piece of a few steps would give a factor of a half or of `BOUND`, by whether one of them costs.
        """
        episodes = np.maximum(self.episodes, 1.0)
        return LevelMeter(
            self.predicted / episodes, self.realized / episodes, self.said / episodes, self.episodes / episodes
        )

    def factor(self) -> Array:
        """What the critics' costs are to be multiplied by, [C]: realized over predicted.

        One episode that came as it was predicted is counted besides, so that a few without any cost do not say that
        there is none.
        """
        as_said = np.where(self.predicted > 0, self.predicted, self.said) / np.maximum(self.episodes, 1.0)
        known = as_said > 0
        factor = (self.realized + as_said) / np.where(known, np.maximum(self.predicted, 0) + as_said, 1.0)
        return np.where(known, np.clip(factor, 1 / BOUND, BOUND), 1.0)
