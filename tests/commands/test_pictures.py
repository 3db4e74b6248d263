"""What the pictures of a page show, read back from the figures."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection

from cvpo.commands import pictures
from tests.serve import bundles

DRAWN = bundles.drawn(bundles.manifest())


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def lines(axis: Axes) -> dict[str, list[tuple[float, float]]]:
    """Points of each line, by its label."""
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())] for line in axis.lines
    }


def test_the_learning_curve_has_the_evaluations_the_limit_and_the_exported_checkpoint() -> None:
    gain, heat, wear = pictures.learning_curve(DRAWN).axes
    assert lines(gain)["_child0"] == [(250, 1), (500, 3), (1000, 5)]
    assert lines(heat)["_child0"] == [(250, 40), (500, 15), (1000, 19)]
    assert lines(heat)["limit"] == [(0, 20), (1, 20)]
    assert lines(wear)["limit"] == [(0, 8), (1, 8)]
    for axis in (gain, heat, wear):
        assert lines(axis)["exported"] == [(1000, 0), (1000, 1)]
    (band,) = heat.collections
    assert isinstance(band, PolyCollection)
    assert {(250, 39), (250, 41), (1000, 18)} <= {tuple(point) for point in np.asarray(band.get_paths()[0].vertices)}


def test_a_constraint_without_a_limit_has_no_line() -> None:
    _, heat, wear = pictures.learning_curve(bundles.drawn(bundles.manifest(cost_limit=(None, 8.0)))).axes
    assert "limit" not in lines(heat)
    assert "limit" in lines(wear)


def test_each_episode_is_a_point_and_those_over_the_limit_are_told_apart() -> None:
    heat, wear = pictures.costs(DRAWN).axes

    def points(axis: Axes) -> list[list[float]]:
        groups = [group for group in axis.collections if isinstance(group, PathCollection)]
        return [[float(x) for x, _ in np.asarray(group.get_offsets())] for group in groups]

    assert points(heat) == [[4, 20, 4], [21]]  # within the limit, and over it
    assert points(wear) == [[0, 8, 1], [9]]
    assert points(pictures.costs(bundles.manifest()).axes[0]) == [[], []]


def test_flags_along_an_episode_are_where_the_probability_is_over_the_alarm_level() -> None:
    assert DRAWN.calibration is not None
    spent, said = pictures.episode_examples(DRAWN, DRAWN.calibration).axes  # of heat alone: wear has none
    assert lines(spent)["spent so far"][7:9] == [(7, 18), (8, 21)]
    assert lines(spent)["budget"] == [(0, 20), (1, 20)]
    assert lines(said)["violation_probability"][:3] == [(0, 0.1), (1, 0.1), (2, 0.7)]
    assert lines(said)["alarm level"] == [(0, 0.6), (1, 0.6)]
    for axis in (spent, said):
        assert lines(axis)["budget exceeded"] == [(7, 0), (7, 1)]
        (flags,) = axis.collections
        starts = [float(np.asarray(path.vertices)[:, 0].min()) for path in flags.get_paths()]
        assert starts == [2, 5, 6, 7, 8, 9]  # a probability of 0.6 is not over 0.6


def test_an_episode_without_a_flag_within_its_budget_is_drawn() -> None:
    assert DRAWN.calibration is not None
    calm = DRAWN.calibration.model_copy(update={"alarm_levels": (1.0, 1.0)})
    spent, _ = pictures.episode_examples(DRAWN, calm).axes
    assert all(len(flags.get_paths()) == 0 for flags in spent.collections)
