"""For how many steps in a row each value that a session observes has been exactly the same: a stuck sensor's is."""

from dataclasses import dataclass

import numpy as np

from serve.values import Floats, Integers


@dataclass(frozen=True)
class Repeats:
    """What was observed last, and how often in a row each value of it had been observed before."""

    observation: Floats  # [1, O]
    steps: Integers  # [1, O]

    @classmethod
    def none(cls, observation_size: int) -> "Repeats":
        """Before the first observation, which repeats nothing."""
        return cls(np.full((1, observation_size), np.nan, np.float32), np.zeros((1, observation_size), np.int64))

    def after(self, observation: Floats) -> "Repeats":
        """With one more observation, [1, O]."""
        return Repeats(observation, (self.steps + 1) * (observation == self.observation))
