"""The dual of the E-step (Liu et al., 2022): convexity, derivatives, KKT conditions, no gap, invariances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from cvpo.learning.estep import DualSolution, _Problem, solve_dual
from tests.theory.duals import Case, case, cases, dual

Array = NDArray[np.float64]


@hypothesis_settings(max_examples=100)
@given(cases(), st.integers(0, 2**32 - 1))
def test_the_dual_is_convex(case: Case, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(0.1, 3.0, (2, 1 + len(case.threshold)))
    scale = np.concatenate([[case.reward_spread], case.reward_spread / case.cost_spread])

    def g(point: Array) -> float:
        eta, *lam = point * scale
        return dual(case, eta, np.array(lam)) / case.reward_spread

    assert g((x + y) / 2) <= (g(x) + g(y)) / 2 + 1e-9 * (1 + abs(g(x)) + abs(g(y)))


@pytest.mark.parametrize("seed", range(5))
def test_gradient_and_hessian_agree_with_finite_differences(seed: int) -> None:
    generator = np.random.default_rng(seed)
    problem = case(seed, states=5, actions=6, costs=2)
    scaled = _Problem.scaled(problem.reward, problem.cost, problem.threshold, problem.kl_bound)
    x = generator.uniform(0.3, 2.0, 3)
    value, gradient, hessian = scaled.derivatives(x)
    h = 1e-5
    for i, step in enumerate(h * np.eye(3)):
        above, below = scaled.derivatives(x + step), scaled.derivatives(x - step)
        assert gradient[i] == pytest.approx((above[0] - below[0]) / (2 * h), abs=1e-8)
        np.testing.assert_allclose(hessian[i], (above[1] - below[1]) / (2 * h), atol=1e-8)
    assert np.linalg.eigvalsh(hessian).min() >= -1e-12
    # In the units of the caller: g is the scaled value times the reward's spread, plus what centring took out.
    eta, lam = x[0] * scaled.reward_scale, x[1:] * scaled.reward_scale / scaled.cost_scale
    level = problem.reward.mean()
    assert dual(problem, eta, lam) == pytest.approx(value * scaled.reward_scale + level)


# KKT conditions. Tolerances are in standard deviations over actions: a hundred times the solver's 1e-8, and where the
# KL bound does not bind, the temperature's floor of 1e-4 times the KL that is left.


@hypothesis_settings(max_examples=300)
@given(cases())
def test_a_feasible_solution_meets_the_kkt_conditions_with_no_duality_gap(case: Case) -> None:
    solution = case.solve()
    if not solution.feasible:
        return
    multiplier = solution.cost_multiplier * case.cost_spread / case.reward_spread
    assert solution.temperature > 0
    assert (multiplier >= 0).all()
    assert solution.kl_residual <= 1e-6
    assert (solution.cost_residual <= 1e-6).all()
    assert np.abs(multiplier * solution.cost_residual).max() <= 1e-6
    floor = 1e-4 * case.kl_bound
    assert solution.temperature / case.reward_spread * abs(case.kl_bound - solution.kl) <= floor + 1e-6
    primal = float((solution.weights * case.reward).sum(1).mean())
    gap = dual(case, solution.temperature, solution.cost_multiplier) - primal
    assert abs(gap) / case.reward_spread <= floor + 1e-6


@hypothesis_settings(max_examples=100)
@given(cases())
def test_no_state_is_further_than_log_k_from_the_old_policy(case: Case) -> None:
    weights = case.solve().weights
    K = weights.shape[1]
    assert (weights * np.log(np.maximum(weights * K, 1e-300))).sum(1).max() <= math.log(K) + 1e-12


@pytest.mark.parametrize("tightness", [-5.0, 1.5])
def test_a_kl_bound_of_log_k_or_more_cannot_bind(tightness: float) -> None:
    # At the bound log K a distribution may sit on the best action: reward is the maximum that the threshold leaves.
    base = case(actions=4, tightness=tightness)
    wide = [Case(base.reward, base.cost, base.threshold, bound).solve() for bound in (1.01 * math.log(4), 10.0)]
    for solution in wide:
        assert solution.feasible
        assert solution.kl <= math.log(4)
        assert solution.kl_residual < 0
    rewards = [(solution.weights * base.reward).sum(1).mean() for solution in wide]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-3)  # of the floor of the temperature
    if tightness < 0:
        np.testing.assert_array_equal(wide[0].weights.argmax(1), base.reward.argmax(1))
        assert rewards[0] == pytest.approx(base.reward.max(1).mean(), abs=1e-3)


# Known answers.


@pytest.mark.parametrize("seed", range(4))
def test_the_dual_solves_the_primal_problem(seed: int) -> None:
    # max_q mean_s E_q[Q_r]  with mean_s E_q[Q_c] <= d, mean_s KL(q || old) <= bound, over every distribution q.
    problem = case(seed, states=2, actions=4, costs=1 + seed % 2, tightness=0.4)
    solution = problem.solve()
    assert solution.feasible
    B, K = problem.reward.shape

    def q(x: Array) -> Array:
        return x.reshape(B, K)

    def room(x: Array) -> Array:
        kl = (q(x) * np.log(q(x) * K)).sum(1).mean()
        return np.append(problem.threshold - np.einsum("bk,bkc->c", q(x), problem.cost) / B, problem.kl_bound - kl)

    primal = optimize.minimize(
        lambda x: -(q(x) * problem.reward).sum(1).mean(),
        np.full(B * K, 1 / K),
        method="SLSQP",
        bounds=[(1e-9, 1)] * (B * K),
        constraints=[{"type": "eq", "fun": lambda x: q(x).sum(1) - 1}, {"type": "ineq", "fun": room}],
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert primal.success
    assert (solution.weights * problem.reward).sum(1).mean() == pytest.approx(-primal.fun, abs=1e-6)
    np.testing.assert_allclose(solution.weights, q(primal.x), atol=1e-3)


def test_the_dual_agrees_with_a_fine_grid() -> None:
    problem = case(tightness=0.5)
    solution = problem.solve()
    assert solution.feasible
    assert solution.cost_multiplier[0] > 0
    temperatures = solution.temperature * np.geomspace(0.8, 1.25, 81)  # the middle one is the solution
    multipliers = solution.cost_multiplier[0] + np.linspace(-0.2, 0.2, 81)
    grid = np.array([[dual(problem, eta, np.array([lam])) for lam in multipliers] for eta in temperatures])
    assert grid.argmin() == 40 * 81 + 40
    coarse = [
        dual(problem, eta, np.array([lam])) for eta in np.geomspace(1e-2, 1e3, 60) for lam in np.linspace(0, 20, 60)
    ]
    assert min(coarse) >= grid[40, 40]  # nor is there a lower place far away


def test_two_actions_give_the_answer_of_pencil_and_paper() -> None:
    # Two states alike, actions with reward 0 and 1: q(1) = p solves KL(p) = log 2 + p log p + (1-p) log(1-p) = bound,
    # and softmax(1/eta) = p gives eta = 1/log(p/(1-p)). With p = 0.8 the bound is 0.192745.
    bound = math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2)
    reward = np.array([[0.0, 1.0], [0.0, 1.0]])
    free = solve_dual(reward, np.zeros((2, 2, 1)), np.array([np.inf]), bound)
    np.testing.assert_allclose(free.weights, [[0.2, 0.8]] * 2, atol=1e-7)
    assert free.temperature == pytest.approx(1 / math.log(4), rel=1e-6)


def test_the_multiplier_is_the_price_that_makes_two_actions_meet_the_threshold() -> None:
    # One state's reward moves (0, 1), another's cost moves (0, 1); the mean cost is p/2, where p = q(1) in the second
    # state, so a threshold of 0.2 asks for p = 0.4, and exp(-lambda/eta) = p/(1-p) gives lambda.
    reward = np.array([[0.0, 1.0], [0.0, 0.0]])
    cost = np.array([[[0.0], [0.0]], [[0.0], [1.0]]])
    solution = solve_dual(reward, cost, np.array([0.2]), 0.1)
    assert solution.weights[1, 1] == pytest.approx(0.4, abs=1e-7)
    eta = solution.temperature
    assert solution.cost_multiplier[0] == pytest.approx(eta * math.log(0.6 / 0.4), rel=1e-6)
    assert solution.weights[0, 1] == pytest.approx(1 / (1 + math.exp(-1 / eta)), rel=1e-6)


@pytest.mark.parametrize("costs", [1, 3])
def test_newton_agrees_with_scipy(costs: int) -> None:
    problem = case(seed=3, states=20, actions=16, costs=costs, tightness=0.3)
    solution = problem.solve()
    assert solution.feasible
    result = optimize.minimize(
        lambda x: dual(problem, x[0], x[1:]),
        np.concatenate([[1.0], np.ones(costs)]),
        method="L-BFGS-B",
        bounds=[(1e-6, None)] + [(0, None)] * costs,
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000},
    )
    # Finite differences leave SciPy a gradient of about 1e-8, and the minimizer the root of that.
    np.testing.assert_allclose([solution.temperature, *solution.cost_multiplier], result.x, atol=1e-4)
    assert dual(problem, solution.temperature, solution.cost_multiplier) <= result.fun + 1e-10


# Invariances.


@pytest.mark.parametrize("tightness", [-2.0, 0.4, 2.0])
def test_a_constant_per_state_on_the_reward_changes_nothing(tightness: float) -> None:
    problem = case(tightness=tightness)
    shift = np.random.default_rng(1).normal(size=(len(problem.reward), 1))
    moved = Case(problem.reward + 100 * shift, problem.cost, problem.threshold, problem.kl_bound)
    assert_same_solution(problem.solve(), moved.solve())


@pytest.mark.parametrize("tightness", [-2.0, 0.4, 2.0])
def test_a_constant_per_state_on_the_cost_needs_its_mean_on_the_threshold(tightness: float) -> None:
    problem = case(tightness=tightness)
    shift = np.random.default_rng(1).normal(size=(len(problem.reward), 1, 1))
    threshold = problem.threshold + shift.mean()
    moved = Case(problem.reward, problem.cost + shift, threshold, problem.kl_bound)
    assert_same_solution(problem.solve(), moved.solve())


def test_scaling_everything_scales_the_temperature_alone() -> None:
    problem = case(tightness=0.4)
    scaled = Case(7 * problem.reward, 7 * problem.cost, 7 * problem.threshold, problem.kl_bound)
    assert_same_solution(problem.solve(), scaled.solve(), temperature=7)


def test_scaling_the_cost_scales_the_multiplier_inversely() -> None:
    problem = case(tightness=0.4)
    scaled = Case(problem.reward, 50 * problem.cost, 50 * problem.threshold, problem.kl_bound)
    assert_same_solution(problem.solve(), scaled.solve(), multiplier=1 / 50)


def test_the_order_of_states_and_actions_does_not_matter() -> None:
    problem = case(tightness=0.4)
    shuffled = Case(problem.reward[::-1, ::-1], problem.cost[::-1, ::-1], problem.threshold, problem.kl_bound)
    np.testing.assert_allclose(shuffled.solve().weights[::-1, ::-1], problem.solve().weights, atol=1e-8)


def assert_same_solution(
    left: DualSolution, right: DualSolution, *, temperature: float = 1, multiplier: float = 1
) -> None:
    assert left.feasible == right.feasible
    np.testing.assert_allclose(right.weights, left.weights, atol=1e-7)
    assert right.temperature == pytest.approx(temperature * left.temperature, rel=1e-5)
    np.testing.assert_allclose(right.cost_multiplier, multiplier * left.cost_multiplier, rtol=1e-5)
