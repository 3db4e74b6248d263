"""How far an observation is outside of what was seen: a score in the graph, and its threshold for false alarms.

Seen is a range for each value, training's, and one for each principal component of the exported policy's own
observations. A component has the values in it that go together, so that ordinary ones that do not are outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvpo.errors import ConfigError
from cvpo.learning.networks import Normalizer

Array = NDArray[np.float64]

RIDGE = 1e-3  # added to every variance, in training's: nothing counts as known to better than 3 % of its spread
MARGIN = 0.1  # standard deviations that still count as inside, for what never changed may round
FARTHEST = 1e6  # standard deviations; beyond, sums would leave float32, and the answer would be none at all
FALSE_ALARM_RATE = 1e-3  # share of an episode's steps


class ShiftScore(nn.Module):
    """Largest distance of an observation outside of what was seen, over D directions; 0 inside."""

    directions: Tensor  # [F, D], from training's standard deviations to those in each direction
    low: Tensor  # [D]
    high: Tensor  # [D]

    def __init__(self, directions: Tensor, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, standardized: Tensor) -> Tensor:
        """Score [N] of features [N, F] (see `Normalizer`) in training's standard deviations from their mean."""
        along = standardized.clamp(-FARTHEST, FARTHEST) @ self.directions
        return torch.maximum(self.low - along, along - self.high).amax(1).clamp(min=0)


def fit_shift_score(normalizer: Normalizer, observation: Tensor) -> ShiftScore:
    """Fit the score to observations of the policy as it will be served.

    Args:
        normalizer: what training saw: mean, standard deviation and range.
        observation: [N, O].
    """
    values = normalizer.standardize(observation).double().numpy()
    centred = values - values.mean(0)
    variance, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    components = vectors / np.sqrt(variance.clip(0) + RIDGE)
    along = values @ components
    return ShiftScore(
        torch.from_numpy(np.concatenate([np.eye(len(components)), components], axis=1)).float(),
        torch.cat([normalizer.standardize(normalizer.low), torch.from_numpy(along.min(0)).float()]) - MARGIN,
        torch.cat([normalizer.standardize(normalizer.high), torch.from_numpy(along.max(0)).float()]) + MARGIN,
    )


@dataclass(frozen=True)
class ShiftThreshold:
    """The score over which an observation counts as shifted, and what is claimed of it."""

    value: float
    false_alarm_rate: float | None = None  # None: nothing is claimed
    episodes: int = 0  # that it was set on


def choose_threshold(scores: Sequence[Array], false_alarm_rate: float = FALSE_ALARM_RATE) -> ShiftThreshold:
    """Find the lowest threshold that at most this share of an episode's steps is over, on average over n episodes.

    What is claimed of a fresh episode is more, (rate·n + 1)/(n + 1). Steps of one episode depend on each other, so
    episodes are what counts, and the fresh one may be over the threshold throughout: conformal risk control
    (Angelopoulos et al., arXiv 2208.02814). No threshold whatever can claim less than 1/(n + 1).

    Args:
        scores: of the steps of each episode, [T] each; the score was fitted on none of them.
        false_alarm_rate: share of steps.

    Raises:
        ConfigError: the rate is not between 0 and 1, or there is no episode.
    """
    count = len(scores)
    if not (0 < false_alarm_rate < 1 and count):
        raise ConfigError(
            f"A shift threshold takes episodes and a false-alarm rate between 0 and 1; there are {count} and "
            f"{false_alarm_rate:g}."
        )
    steps = np.concatenate(scores)
    shares = np.concatenate([np.full(len(episode), 1 / len(episode)) for episode in scores])
    order = np.argsort(-steps)
    above = shares[order].cumsum() - shares[order]  # what a threshold at each score leaves over it, of n episodes
    lowest = steps[order][above <= false_alarm_rate * count + 1e-9].min()
    return ShiftThreshold(float(lowest), (false_alarm_rate * count + 1) / (count + 1), count)
