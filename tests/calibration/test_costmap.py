"""The map of costs: values worked out by hand, its order, and what it says when it knows nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpo.bundle import Constraint
from cvpo.calibration.costmap import CostMap, CostPrediction, uncalibrated_map
from tests.small_policies import T, random_map

# One constraint, tabled at 2 and 10 steps and at cost values 0 and 1, two atoms each.
HAND_MADE = CostMap(
    horizons=np.array([2, 10]),
    nodes=np.array([[0.0, 1.0]]),
    atoms=np.array([[[[0.0, 1.0], [1.0, 2.0]], [[0.0, 5.0], [5.0, 10.0]]]]),
    mean=np.array([[[0.5, 1.5], [2.0, 8.0]]]),
    covered=np.array([[[0.6, 0.95], [0.5, 0.9]]]),
    confidence=0.9,
)


def ask(cost_map: CostMap, cost_value: float, steps_left: int, cost_allowed: float) -> tuple[float, float, float]:
    C = cost_map.num_costs
    prediction: CostPrediction = cost_map(
        torch.full((1, C, 1), cost_value), torch.tensor([steps_left]), torch.full((1, C), cost_allowed)
    )
    go, upper, probability = (float(value[0, 0, 0]) for value in prediction)
    return go, upper, probability


@pytest.mark.parametrize(
    ("cost_value", "steps_left", "cost_allowed", "expected"),
    [
        (0.0, 2, 0.0, (0.5, 1.0, 0.4)),  # atoms 0 and 1: 0.6 of the probability at or below what is allowed
        (0.0, 2, 0.5, (0.5, 1.0, 0.4)),
        (0.0, 2, 1.0, (0.5, 1.0, 0.05)),  # all atoms are: what lies at infinity remains
        (0.0, 1, 0.5, (0.25, 0.5, 0.05)),  # half way from nothing at 0 steps
        (0.0, 6, 3.0, (1.25, 3.0, 0.1)),  # half way from 2 to 10, in the cell up to 10
        (0.5, 6, 1.5, (3.0, 4.5, 0.5)),  # atoms 1.5 and 4.5; means 1.25 and 4.75 at the nodes
        (7.0, 10, 9.9, (8.0, 10.0, 0.5)),  # beyond the last node: as at it
        (0.0, 500, 5.0, (2.0, 5.0, 0.1)),  # beyond the last horizon: as at it
    ],
)
def test_predictions_are_the_ones_worked_out_by_hand(
    cost_value: float, steps_left: int, cost_allowed: float, expected: tuple[float, float, float]
) -> None:
    assert ask(HAND_MADE, cost_value, steps_left, cost_allowed) == pytest.approx(expected, abs=1e-6)


def test_nothing_limited_is_never_violated_and_less_than_nothing_always() -> None:
    assert ask(HAND_MADE, 1.0, 10, math.inf)[2] == 0
    assert ask(HAND_MADE, 0.0, 10, -0.1)[2] == 1
    assert ask(HAND_MADE, 0.0, 10, math.nan)[2] == 1  # the service refuses it; if it came through, it must not pass


def test_a_cost_value_that_is_not_a_number_is_a_certain_violation() -> None:
    assert ask(HAND_MADE, math.nan, 10, 100.0)[2] == 1


def test_there_is_no_bound_where_the_probability_never_reaches_the_confidence() -> None:
    one = np.ones((1, 1, 1, 1))
    lacking = CostMap(np.array([3]), np.array([[0.0]]), one, one[..., 0], np.array([[[0.89]]]), confidence=0.9)
    reaching = CostMap(np.array([3]), np.array([[0.0]]), one, one[..., 0], np.array([[[9 / 10]]]), confidence=0.9)
    assert ask(lacking, 0.0, 3, 1.0)[1] == math.inf
    assert ask(reaching, 0.0, 3, 1.0)[1] == 1


def test_a_constraint_without_a_bound_gets_none_from_another_that_has_one() -> None:
    one = np.ones((2, 1, 1, 1))
    covered = np.array([[[0.95]], [[0.89]]])
    cost_map = CostMap(np.array([3]), np.zeros((2, 1)), one, one[..., 0], covered, confidence=0.9)
    prediction = cost_map(torch.zeros(1, 2, 1), torch.tensor([3]), torch.zeros(1, 2))
    assert prediction.cost_upper.flatten().tolist() == [1, math.inf]


def test_the_bound_is_the_first_atom_that_reaches_the_confidence_up_to_rounding() -> None:
    def bound(*covered: float) -> float:
        atoms = np.array([[[[1.0, 2.0, 3.0]]]])
        cost_map = CostMap(
            np.array([3]), np.array([[0.0]]), atoms, atoms[..., 0], np.array([[covered]]), confidence=0.9
        )
        return ask(cost_map, 0.0, 3, 1.0)[1]

    assert bound(0.5, 0.92, 0.95) == 2
    assert bound(0.91, 0.92, 0.95) == 1
    assert 0.7 + 0.2 < 0.9
    assert bound(0.5, 0.7 + 0.2, 0.95) == 2


@given(
    seed=st.integers(0, 50),
    steps=st.tuples(st.integers(1, T), st.integers(1, T)),
    value=st.tuples(st.floats(0, 2), st.floats(0, 2)),
    allowed=st.tuples(st.floats(0, 60), st.floats(0, 60)),
)
@settings(deadline=None)
def test_more_steps_more_cost_value_and_less_allowance_never_lower_the_risk(
    seed: int, steps: tuple[int, int], value: tuple[float, float], allowed: tuple[float, float]
) -> None:
    cost_map = random_map(1, seed)
    slack = 1e-3  # atoms are sums in float32: a tie may fall either way, so move what is allowed clear of it
    low = ask(cost_map, min(value), min(steps), max(allowed) + slack)
    high = ask(cost_map, max(value), max(steps), min(allowed))
    assert low[0] <= high[0] + slack
    assert low[1] <= high[1] + slack
    assert low[2] <= high[2]


def test_an_uncalibrated_map_knows_only_a_mean_under_evenly_spread_cost() -> None:
    gamma, horizon = 0.99, 1000
    limited = Constraint(name="c", cost_limit=25, discount=gamma, horizon_steps=horizon, window_steps=100)
    cost_map = uncalibrated_map([limited])
    # The threshold is the cost value of a policy that spends its limit evenly; to go is then the limit's share.
    for steps in (1, 100, 1000):
        go, upper, probability = ask(cost_map, limited.threshold(), steps, 1e9)
        assert go == pytest.approx(25 * steps / horizon, rel=1e-4)
        assert upper == math.inf
        assert probability == 1
    assert ask(cost_map, 0.0, 100, math.inf)[2] == 0


def test_what_a_shield_chooses_by_stays_where_shielded_episodes_make_the_map_more_careful() -> None:
    # Of 2 steps, 0.6 of the probability is at the first atom, 0, and 0.95 at the second, 1.
    covered = np.array([[[0.3, 0.92], [0.5, 0.9]]])
    further, shielded = (HAND_MADE.also_covering(covered, shielded) for shielded in (False, True))
    twice = shielded.also_covering(np.array([[[0.2, 0.8], [0.5, 0.9]]]), shielded=True)
    situation = torch.zeros(1, 1, 1), torch.tensor([2]), torch.zeros(1, 1)
    told = [ask(each, 0.0, 2, 0.0)[2] for each in (HAND_MADE, further, shielded, twice)]
    chosen_by = [each.choosing_probability(*situation).item() for each in (HAND_MADE, further, shielded, twice)]
    assert told == pytest.approx([0.4, 0.7, 0.7, 0.8])
    assert chosen_by == pytest.approx([0.4, 0.7, 0.4, 0.4])
    assert ask(twice, 0.0, 2, 0.0)[1] == math.inf  # the bound is of what is told
    assert HAND_MADE.choosing_probability(*situation[:2], torch.full((1, 1), math.inf)).item() == 0


def test_constraints_do_not_mix() -> None:
    cost_map, steps = random_map(2), torch.tensor([7])
    before = cost_map(torch.tensor([[[0.7], [0.0]]]), steps, torch.tensor([[3.0, 5.0]]))
    after = cost_map(torch.tensor([[[0.7], [2.0]]]), steps, torch.tensor([[3.0, 1.0]]))
    for name, value in before._asdict().items():
        assert torch.equal(value[:, 0], getattr(after, name)[:, 0]), name
        assert not torch.equal(value[:, 1], getattr(after, name)[:, 1]), name
