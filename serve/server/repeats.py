"""For how many steps in a row each value that a session observes has been exactly the same: a stuck sensor's is."""

import math
from dataclasses import dataclass

from serve.values import Floats


@dataclass(frozen=True)
class Repeats:
    """What was observed last, and how often in a row each value of it had been observed before."""

    observation: list[float]  # [O]
    steps: list[int]  # [O]

    @classmethod
    def none(cls, observation_size: int) -> "Repeats":
        """Before the first observation, which repeats nothing."""
        return cls([math.nan] * observation_size, [0] * observation_size)

    def after(self, observation: Floats) -> "Repeats":
        """With one more observation, [1, O]."""
        (now,) = observation.tolist()
        before = zip(self.steps, now, self.observation, strict=True)
        return Repeats(now, [steps + 1 if value == last else 0 for steps, value, last in before])
