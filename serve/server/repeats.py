"""For how many steps in a row each value that a session observes has been exactly the same: a stuck sensor's is."""

import math
from collections.abc import Sequence
from operator import eq
from typing import NamedTuple

_MOST_STEPS = 2**32 - 1  # that are counted: more than any limit, and what four bytes of a state hold


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
        if not any(map(eq, observation, self.observation)):  # as of sensors that all work
            return Repeats(observation, [0] * len(observation))
        before = zip(self.steps, observation, self.observation, strict=True)
        return Repeats(
            observation, [steps + (steps < _MOST_STEPS) if value == last else 0 for steps, value, last in before]
        )
