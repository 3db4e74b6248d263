"""How much probability lies at or below each atom: worked out by hand, where a slip would make a bound too low."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cvpo.bundle import Constraint
from cvpo.calibration.conformal import HORIZONS, covered, share_within
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.forecast_fit import ForecastEpisode, horizon_grid
from cvpo.evaluate import Episode

T, W = 12, 3
GRID = horizon_grid(T, W, HORIZONS)
CONSTRAINT = Constraint(name="cost", cost_limit=6.0, discount=0.9, horizon_steps=T, window_steps=W)


def episode(cost: list[float], terminated: bool = False) -> ForecastEpisode:
    length = len(cost)
    costs = np.array(cost, np.float64)[:, None]
    observation, nothing = np.zeros((length, 1), np.float32), np.zeros((length, 1))
    plain = Episode(observation, np.zeros(length), costs, terminated, nothing, None, None)
    return ForecastEpisode(plain, CostForecast(1, T, np.ones(1)).eval(), lambda observation: observation)


def with_atoms(grid: NDArray[np.int64], *atoms: float) -> CostMap:
    """A map that says the same of every number of steps of the grid, and of every forecast."""
    H, M = len(grid), len(atoms)
    table = np.tile(np.array(atoms), (1, H, 1, 1))
    return CostMap(grid, np.zeros((1, 1)), table, table[..., 0], np.zeros((1, H, M)), 0.9)


@pytest.mark.parametrize(
    ("cost", "rest", "window"),
    [
        ([1.0] + [0.0] * (T - 1), 1.0, 0.9),  # with three steps left nothing is to come, but one window in ten costs
        ([0.0] * (T - 1) + [1.0], 0.0, 0.9),  # one window in ten costs, and it is all that is left
    ],
)
def test_of_the_cell_of_the_window_the_lesser_share_of_windows_and_of_what_is_left_counts(
    cost: list[float], rest: float, window: float
) -> None:
    # Four episodes that are alike and the fresh one, whose cost is infinite: shares of 4 in 5. Atoms are 0 and 1.
    found = covered([episode(cost)] * 4, with_atoms(GRID, 0.0, 1.0), CONSTRAINT)
    at = {int(steps): found[0, row] for row, steps in enumerate(GRID)}
    assert at[W] == pytest.approx([0.8 * min(rest, window), 0.8])
    assert at[W - 1] == pytest.approx([0.8 * rest, 0.8])  # which no windows speak of


def test_where_nothing_was_seen_to_its_end_windows_speak_and_of_more_steps_than_any_nothing_is_known() -> None:
    # Four episodes that were cut after six steps, of which the first costs: one window in six, in five, ... to one.
    found = covered([episode([1.0] + [0.0] * 5)] * 4, with_atoms(GRID, 0.0, 1.0), CONSTRAINT)
    for row, steps in enumerate(GRID):
        windows = 7 - steps
        expected = [0.8 * (windows - 1) / windows, 0.8] if windows > 0 else [0, 0]
        assert found[0, row] == pytest.approx(expected)


@pytest.mark.parametrize("off", [-1e-6, 0.0, 1e-6])
def test_a_cost_that_rounding_puts_beside_an_atom_counts_as_equal_to_it(off: float) -> None:
    # At two equal atoms: half of it at the first, all at the second. One episode and the fresh one: shares of a half.
    share = share_within(with_atoms(GRID, 0.0, 1.0, 1.0, 2.0), [episode([1.0 + off], terminated=True)], [np.array([T])])
    assert share[0].tolist() == [0, 0.25, 0.5, 0.5]


@pytest.mark.parametrize(("off", "share"), [(-1e-4, [0, 0.5, 0.5, 0.5]), (1e-4, [0, 0, 0, 0.5])])
def test_a_cost_further_from_an_atom_than_rounding_is_below_or_above_it(off: float, share: list[float]) -> None:
    found = share_within(with_atoms(GRID, 0.0, 1.0, 1.0, 2.0), [episode([1.0 + off], terminated=True)], [np.array([T])])
    assert found[0].tolist() == share
