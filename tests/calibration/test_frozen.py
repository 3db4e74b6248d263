"""How often in a row a value may repeat, from episodes in which it did so a known number of times."""

import numpy as np
from numpy.typing import NDArray

from cvpo.calibration.frozen import MARGIN, MOST_REPEATS, frozen_after_steps


def episode(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32).T


def test_a_value_may_repeat_twice_as_often_in_a_row_as_in_any_episode_and_a_margin() -> None:
    first = episode([0, 1, 2, 3, 4, 5], [0, 1, 1, 1, 2, 2])  # never; twice in a row, then once
    second = episode([0, 1, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8])  # once; never
    assert frozen_after_steps([first, second]) == (2 + MARGIN, 4 + MARGIN)


def test_repeats_do_not_go_on_from_one_episode_to_the_next() -> None:
    assert frozen_after_steps([episode([0, 1, 1]), episode([1, 1, 2])]) == (2 + MARGIN,)


def test_a_value_that_may_rest_never_counts_as_frozen() -> None:
    resting = [0.0] * (MOST_REPEATS + 1) + [1.0]  # MOST_REPEATS in a row
    longer = [0.0] * (MOST_REPEATS + 2)
    assert frozen_after_steps([episode(resting, longer)]) == (2 * MOST_REPEATS + MARGIN, None)
