"""A sensor that is stuck repeats its value to the last digit: how often in a row a value may do so."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_REPEATS = 10  # what has rested for longer may rest for as long as it likes, in another episode
MARGIN = 5  # steps beyond twice what was seen


def frozen_after_steps(observations: Sequence[NDArray[np.float32]]) -> tuple[int | None, ...]:
    """How many steps in a row each value may be exactly what it was before it counts as frozen, for each of O values.

    Twice the longest that it was so in any episode, and MARGIN more. None where that was more than MOST_REPEATS, as of
    a value that is constant by nature, or of a range finder that sees nothing: such a value never counts.

    Args:
        observations: of the steps of each episode, [T, O] each.
    """
    longest = np.max([_longest_repeats(episode) for episode in observations], axis=0)
    return tuple(None if most > MOST_REPEATS else 2 * most + MARGIN for most in longest.tolist())


def _longest_repeats(observation: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most steps in a row, of an episode [T, O], at which each value was what it was at the step before, [O]."""
    repeats = longest = np.zeros(observation.shape[1], np.int64)
    for same in observation[1:] == observation[:-1]:
        repeats = (repeats + 1) * same
        longest = np.maximum(longest, repeats)
    return longest
