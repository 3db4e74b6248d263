"""What the E-step promises of its q: reward does not fall where the old policy is admissible, and cost falls else."""

import math

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from cvpo.learning.estep import least_excess
from tests.theory.duals import Case, cases

# Tolerances: the solver's 1e-8 in standard deviations over actions, a hundred times; and where the KL bound does not
# bind, the temperature's floor.


@hypothesis_settings(max_examples=100)
@given(cases())
def test_reward_does_not_fall_when_the_old_policy_meets_its_thresholds(case: Case) -> None:
    if (case.cost.mean((0, 1)) > case.threshold).any():
        return
    solution = case.solve()
    assert solution.feasible  # q = old policy is
    gain = (solution.weights * case.reward).sum(1).mean() - case.reward.mean()
    assert gain / case.reward_spread >= -1e-6


@hypothesis_settings(max_examples=100)
@given(cases())
def test_cost_falls_to_the_threshold_or_as_far_as_the_ball_reaches_when_it_does_not(case: Case) -> None:
    over = case.cost.mean((0, 1)) > case.threshold
    if not over.any():
        return
    solution = case.solve()
    excess, _ = least_excess(case.cost, case.threshold, case.kl_bound)
    assert solution.cost_residual.max() <= max(excess, 0) + 1e-6 + 1e-4 * case.kl_bound
    assert solution.cost_residual.max() <= ((case.cost.mean((0, 1)) - case.threshold) / case.cost_spread).max() + 1e-6


@hypothesis_settings(max_examples=100)
@given(cases())
def test_how_far_reward_and_cost_move_is_bounded_by_the_ball(case: Case) -> None:
    # |E_q[Q] − E_old[Q]| <= spread of Q over a state's actions · sqrt(KL/2) in each state (Pinsker), so on average
    # at most the largest spread times the root of half the bound.
    solution = case.solve()
    for value in (case.reward, *np.moveaxis(case.cost, 2, 0)):
        moved = abs((solution.weights * value).sum(1).mean() - value.mean())
        assert moved <= np.ptp(value, axis=1).max() * math.sqrt(case.kl_bound * (1 + 1e-6) / 2) + 1e-9
