"""For how many steps in a row each value that a session observes has been exactly the same: a stuck sensor's is."""

import math
from collections.abc import Sequence
from operator import eq
from typing import NamedTuple


class Repeats(NamedTuple):
    """What was observed last, and how often in a row each value of it had been observed before."""

    observation: Sequence[float]  # [O]
    steps: list[int]  # [O]

    @classmethod
    def none(cls, observation_size: int) -> "Repeats":
        """Before the first observation, which repeats nothing."""
        return cls([math.nan] * observation_size, [0] * observation_size)

    def after(self, observation: Sequence[float]) -> "Repeats":
        """With one more observation, [O]."""
        same = list(map(eq, observation, self.observation))
        if True not in same:  # as of sensors that all work
            return Repeats(observation, [0] * len(same))
        return Repeats(observation, [steps + 1 if kept else 0 for steps, kept in zip(self.steps, same, strict=True)])
