"""Whether any q in the KL ball meets the thresholds, and what several constraints can be asked for together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from cvpo.learning.estep import least_excess, reachable_share, solve_dual
from tests.theory.duals import Case, case, cases

Array = NDArray[np.float64]


@hypothesis_settings(max_examples=200)
@given(cases())
def test_infeasible_means_that_the_least_excess_is_positive_and_its_weights_reach_it(case: Case) -> None:
    solution = case.solve()
    excess, cost = least_excess(case.cost, case.threshold, case.kl_bound)
    assert solution.feasible == (excess <= 1e-9) or abs(excess) < 1e-6
    if not solution.feasible:
        # The solver's 1e-8; and what the temperature's floor leaves where the KL bound does not bind.
        tolerance = 1e-6 + 1e-4 * case.kl_bound
        assert solution.cost_residual.max() == pytest.approx(excess, abs=tolerance)
        np.testing.assert_allclose(solution.cost, cost, rtol=1e-9, atol=1e-9)
        assert solution.kl_residual <= 1e-6


def test_a_threshold_out_of_reach_is_answered_by_the_least_cost_in_the_ball() -> None:
    # w ∝ exp(−Q_c/eta_c), where eta_c maximizes −eta·bound − eta·mean log mean exp(−Q_c/eta).
    problem = case(tightness=2.0)
    solution = problem.solve()
    assert not solution.feasible
    found = optimize.minimize_scalar(
        lambda eta: -_least_cost(problem.cost[..., 0], problem.kl_bound, eta), bounds=(1e-3, 1e3), method="bounded"
    )
    assert solution.cost[0] == pytest.approx(-found.fun, abs=1e-6)
    assert solution.cost[0] > problem.threshold[0] + 0.1
    assert solution.kl == pytest.approx(problem.kl_bound, rel=1e-6)


def _least_cost(cost: Array, kl_bound: float, eta: float) -> float:
    return float(-eta * kl_bound - eta * np.log(np.exp(-cost / eta).mean(1)).mean())


def test_thresholds_that_each_can_be_met_but_not_both_are_infeasible() -> None:
    # What lowers one cost raises the other, so at best both exceed their thresholds alike.
    cost = np.random.default_rng(0).normal(size=(4, 8))
    cost -= cost.mean(1, keepdims=True)
    both, threshold = np.stack([cost, -2 * cost], axis=2), -0.1 * np.array([1.0, 2.0]) * cost.std()
    for i in range(2):
        assert solve_dual(np.zeros((4, 8)), both[..., [i]], threshold[[i]], 0.1).feasible
    solution = solve_dual(np.zeros((4, 8)), both, threshold, 0.1)
    assert not solution.feasible
    np.testing.assert_allclose(solution.cost_residual, 0.1, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_least_largest_excess_agrees_with_brute_force_over_distributions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    B, K, C, kl_bound = 2, 4, 1 + seed % 3, 0.1
    cost = generator.normal(size=(B, K, C)) * 10.0 ** generator.uniform(-3, 3, C)
    spread = (cost - cost.mean(1, keepdims=True)).std((0, 1))
    threshold = cost.mean((0, 1)) - generator.uniform(0, 1, C) * spread
    excess, reached = least_excess(cost, threshold, kl_bound)

    def q(x: Array) -> Array:
        return x[:-1].reshape(B, K)

    def room(x: Array) -> Array:
        kl = (q(x) * np.log(q(x) * K)).sum(1).mean()
        each = (np.einsum("bk,bkc->c", q(x), cost) / B - threshold) / spread
        return np.concatenate([[kl_bound - kl], x[-1] - each])

    brute = optimize.minimize(
        lambda x: x[-1],
        np.append(np.full(B * K, 1 / K), 5.0),
        method="SLSQP",
        bounds=[(1e-9, 1)] * (B * K) + [(None, None)],
        constraints=[{"type": "eq", "fun": lambda x: q(x).sum(1) - 1}, {"type": "ineq", "fun": room}],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert brute.success
    assert excess == pytest.approx(brute.fun, abs=1e-6)
    assert ((reached - threshold) / spread).max() == pytest.approx(excess, abs=1e-6)


@pytest.mark.parametrize("costs", [2, 3])
def test_several_constraints_out_of_reach_exceed_their_thresholds_as_little_as_they_can(costs: int) -> None:
    # At the least largest excess, nothing in the ball is better: the dual's multipliers prove it. For lambda on the
    # simplex and any q, max_i excess_i >= sum_i lambda_i·excess_i >= the least of the latter in the ball.
    for seed in range(10):
        problem = case(seed, states=16, actions=16, costs=costs, tightness=1.5)
        solution = problem.solve()
        assert not solution.feasible
        multiplier = solution.cost_multiplier * problem.cost_spread
        multiplier /= multiplier.sum()
        scaled = (problem.cost - problem.threshold) / problem.cost_spread
        together = (scaled @ multiplier)[..., None]
        _, least = least_excess(together, np.zeros(1), problem.kl_bound)
        assert solution.cost_residual.max() == pytest.approx(least[0], abs=1e-6)
        np.testing.assert_allclose(solution.infeasibility, np.maximum(solution.cost - problem.threshold, 0))


# What several constraints can be asked for together.


def advantages(seed: int, costs: int, correlation: float = 0.0) -> tuple[Array, Array]:
    """A_c [B, K, C] of costs that pull each other up or down, and how far each alone can fall in a ball of 0.1, [C]."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(12, 8, 1))
    cost = correlation * shared * np.where(np.arange(costs) % 2, -1, 1) + generator.normal(size=(12, 8, costs))
    cost *= 10.0 ** generator.uniform(-2, 2, costs)
    advantage = cost - cost.mean(1, keepdims=True)
    alone = np.array([least_excess(advantage[..., [i]], np.zeros(1), 0.1)[1][0] for i in range(costs)])
    return advantage, alone


@pytest.mark.parametrize("costs", [2, 3])
@pytest.mark.parametrize("correlation", [-2.0, 0.0, 2.0])
def test_the_reachable_share_is_where_feasibility_ends(costs: int, correlation: float) -> None:
    for seed in range(5):
        advantage, alone = advantages(seed, costs, correlation)
        change = alone * np.random.default_rng(seed).uniform(0.1, 1.0, costs)
        change[-1] *= 1 if seed % 2 else -1  # what may grow
        share = reachable_share(advantage, change, 0.1)
        assert share > 0
        assert least_excess(advantage, 0.999 * share * change, 0.1)[0] < 0
        assert least_excess(advantage, 1.001 * share * change, 0.1)[0] > 0
        assert least_excess(advantage, share * change, 0.1)[0] == pytest.approx(0, abs=1e-6)


def test_of_one_constraint_the_reachable_share_is_all_that_it_can_fall_by() -> None:
    advantage, alone = advantages(0, 1)
    assert reachable_share(advantage, 0.5 * alone, 0.1) == pytest.approx(2)


def test_costs_that_fall_together_can_both_be_asked_for_all() -> None:
    one, alone = advantages(0, 1)
    both = np.concatenate([one, 5 * one], axis=2)
    assert reachable_share(both, np.append(alone, 5 * alone), 0.1) == pytest.approx(1)


def test_of_opposed_costs_nothing_can_be_asked() -> None:
    one, alone = advantages(0, 1)
    both = np.concatenate([one, -one], axis=2)
    share = reachable_share(both, np.append(alone, alone), 0.1)
    assert share == pytest.approx(0, abs=1e-5)  # the temperature's floor of 1e-4, times the bound


def test_of_changes_that_are_nothing_beside_what_actions_differ_by_all_is_within_reach() -> None:
    advantage, _ = advantages(0, 2)
    assert reachable_share(advantage, np.array([-1e-13, -1e-14]), 0.1) == 1


def largest_feasible_share(advantage: Array, change: Array) -> float:
    """By bisection."""
    low, high = 0.0, 20.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        feasible = least_excess(advantage, middle * change, 0.1)[0] <= 1e-10
        low, high = (middle, high) if feasible else (low, middle)
    return low


@pytest.mark.parametrize("asked", [0.0, 1e-13, -1e-13, 1e-10, -1e-10, 1e-7, -1e-7, 1e-4, -1e-4])
def test_a_cost_of_which_nothing_is_asked_does_not_blow_up_what_is_asked_of_another(asked: float) -> None:
    # Cliffs: values that differ by orders of magnitude, whose mean over 12 actions is 0 but for rounding.
    for seed in range(20):
        generator = np.random.default_rng(seed)
        spread = generator.uniform(1.0, 20.0, 2)
        cost = np.logaddexp(0.0, spread * generator.normal(size=(8, 12, 2)) + 3 * generator.normal(size=(8, 1, 1)))
        advantage = cost - cost.mean(1, keepdims=True)
        alone, _ = (least_excess(advantage[..., [i]], np.zeros(1), 0.1)[1][0] for i in range(2))
        change = np.array([0.5 * alone, asked])
        share = reachable_share(advantage, change, 0.1)
        assert share == pytest.approx(largest_feasible_share(advantage, change), rel=1e-4, abs=1e-5)


@hypothesis_settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 3), st.floats(-2, 2), st.floats(0.05, 0.9))
def test_what_is_asked_within_reach_is_met_at_a_bounded_price(
    seed: int, costs: int, correlation: float, share: float
) -> None:
    advantage, alone = advantages(seed, costs, correlation)
    reward = np.random.default_rng(seed).normal(size=advantage.shape[:2])
    threshold = share * reachable_share(advantage, alone, 0.1) * alone
    solution = solve_dual(reward, advantage, threshold, 0.1)
    assert solution.feasible
    assert (solution.cost_residual <= 1e-6).all()
    assert (solution.cost_multiplier * advantage.std((0, 1)) / reward.std() <= 50).all()
