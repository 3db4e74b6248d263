"""What disturbances do to observations, how detections are counted, and that the page shows the committed results."""

import numpy as np

from benchmarks.shift import page
from benchmarks.shift.disturbances import (
    Detection,
    Disturbance,
    Observations,
    delayed,
    detected,
    disturbances,
    frozen,
    ordered,
    partly_frozen,
    scaled,
    shifted,
)


def shown(disturbance: Disturbance, begins: list[int]) -> Observations:
    """What environments that began an episode at these steps show at step 4, of values 10·time + environment."""
    history = [np.array([[10.0 * time + i, -1.0] for i in range(len(begins))], np.float32) for time in range(5)]
    return disturbance.change(history, np.array([4 - begin for begin in begins]))


def test_a_delay_shows_what_was_observed_before_and_never_another_episode() -> None:
    # Two steps ago; or, one step after a beginning, that one; or now, at the beginning itself.
    assert shown(delayed(2), [0, 3, 4])[:, 0].tolist() == [20, 31, 42]


def test_what_is_frozen_stays_as_it_was_at_that_step_of_the_episode() -> None:
    assert shown(frozen(1), [0, 1, 4])[:, 0].tolist() == [10, 21, 42]


def test_some_dimensions_are_frozen_while_others_go_on() -> None:
    history = [np.full((2, 2), 10.0 * time, np.float32) for time in range(5)]
    disturbance = partly_frozen(1, np.array([[True, False], [False, False]]))
    assert disturbance.change(history, np.array([4, 4])).tolist() == [[10, 40], [40, 40]]
    assert disturbance.begins == 1


def test_offsets_scales_and_orders_change_what_is_observed_now() -> None:
    assert shown(shifted(np.array([1.0, 2.0], np.float32)), [0, 0]).tolist() == [[41, 1], [42, 1]]
    assert shown(scaled(0.5), [0]).tolist() == [[20, -0.5]]
    assert shown(ordered(np.array([[1, 0], [0, 1]])), [0, 0]).tolist() == [[-1, 40], [41, -1]]


def test_one_dimension_is_shifted_and_two_are_swapped() -> None:
    deviation = np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    found = disturbances(deviation, 6, seed=0)
    history, steps = [np.tile(10 * np.arange(5, dtype=np.float32), (6, 1))], np.zeros(6, np.int64)
    change = found["one dimension shifted by 3"].change(history, steps) - history[0]
    assert ((change != 0).sum(1) == 1).all()
    assert ((change == 0) | (change == 3 * deviation)).all()
    swapped = found["two dimensions swapped"].change(history, steps)
    assert ((swapped != history[0]).sum(1) == 2).all()
    assert (np.sort(swapped, axis=1) == history[0]).all()
    permuted = found["all dimensions permuted"].change(history, steps)
    assert (np.sort(permuted, axis=1) == history[0]).all()


def test_detections_count_from_where_the_disturbance_shows_and_in_first_episodes_only() -> None:
    # The second environment begins its second episode at time 3, where nothing counts; the third notices nothing.
    steps = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 0, 3], [4, 1, 4]])
    over = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], np.bool_)
    # Counted are steps from 1 on: 4 of the first, 2 of the second, 4 of the third; over: 2, 1 and 0.
    # The first notices at its third step that counts, the second at its second.
    assert detected(over, steps, begins=1) == Detection(share_of_steps=0.3, flagged_episodes=2 / 3, median_steps=3.0)
    assert detected(np.zeros_like(over), steps, begins=1).median_steps is None


def test_the_page_shows_the_committed_results() -> None:
    text = page.PAGE.read_text()
    assert page.filled(text) == text, "Run `python -m benchmarks.shift.page`, and commit what it writes."
