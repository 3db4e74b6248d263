"""What both learners update on: the sizes of SafetyPointCircle1, FSRL's defaults, and made-up data.

Shared with peers' environments, so it needs the standard library and numpy only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Workload:
    """One update, in numbers; the defaults are FSRL's, and the sizes those of SafetyPointCircle1."""

    batch_size: int = 256
    samples: int = 16  # actions per state
    hidden: int = 128  # two hidden layers of this width, in the policy and in each critic
    costs: int = 1
    cost_heads: int = 1  # critics per cost; there is one for the reward
    observation_size: int = 28
    action_size: int = 2
    episode_steps: int = 500


class Transitions(NamedTuple):
    """Steps of made-up episodes."""

    observation: NDArray[np.float32]  # [N, O]
    action: NDArray[np.float32]  # [N, A], in [-1, 1]
    reward: NDArray[np.float64]  # [N]
    cost: NDArray[np.float64]  # [N], 0 or 1
    next_observation: NDArray[np.float32]  # [N, O]


def transitions(workload: Workload, count: int) -> Transitions:
    """N steps of a random walk: reward of the size that Circle gives, and a cost in every fifth step."""
    generator = np.random.default_rng(0)
    size = (count, workload.observation_size)
    observation = generator.normal(0.0, 1.0, size).astype(np.float32)
    return Transitions(
        observation,
        generator.uniform(-1.0, 1.0, (count, workload.action_size)).astype(np.float32),
        generator.normal(0.02, 0.05, count),
        (generator.random(count) < 0.2).astype(np.float64),
        observation + generator.normal(0.0, 0.1, size).astype(np.float32),
    )
