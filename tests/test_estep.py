"""The E-step's dual: known answers, a grid, finite differences, SciPy and brute force, KKT conditions as properties."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from cvpo.errors import NonFiniteError
from cvpo.estep import DualSolution, _Problem, least_excess, solve_dual

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    reward: Array  # [B, K]
    cost: Array  # [B, K, C]
    threshold: Array  # [C]
    kl_bound: float

    def solve(self) -> DualSolution:
        return solve_dual(self.reward, self.cost, self.threshold, self.kl_bound)

    @property
    def reward_spread(self) -> float:
        """Standard deviation over actions, pooled over states."""
        return float((self.reward - self.reward.mean(1, keepdims=True)).std())

    @property
    def cost_spread(self) -> Array:
        spread = (self.cost - self.cost.mean(1, keepdims=True)).std((0, 1))
        return np.where(spread > 0, spread, 1.0)


def case(
    seed: int = 0, states: int = 6, actions: int = 8, costs: int = 1, tightness: float = 0.3, kl_bound: float = 0.1
) -> Case:
    """Normal values; thresholds `tightness` KL radii (standard deviation times sqrt(2 kl_bound)) below the mean."""
    generator = np.random.default_rng(seed)
    reward, cost = generator.normal(size=(states, actions)), generator.normal(size=(states, actions, costs)) + 3.0
    spread = (cost - cost.mean(1, keepdims=True)).std((0, 1))
    return Case(reward, cost, cost.mean((0, 1)) - tightness * math.sqrt(2 * kl_bound) * spread, kl_bound)


def dual(case: Case, temperature: float, multiplier: Array) -> float:
    """g(eta, lambda), term by term as in Liu et al., 2022."""
    z = (case.reward - case.cost @ multiplier) / temperature
    peak = z.max(1, keepdims=True)
    log_mean = np.log(np.exp(z - peak).mean(1)) + peak[:, 0]
    return float(temperature * case.kl_bound + multiplier @ case.threshold + temperature * log_mean.mean())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Values of any scale, some costs sparse, some rewards proportional to a cost; from slack to out of reach."""
    B, K, C = draw(st.integers(2, 32)), draw(st.integers(4, 16)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    reward_scale = 10.0 ** draw(st.floats(-3, 3))
    cost_scale = 10.0 ** np.array(draw(st.lists(st.floats(-3, 3), min_size=C, max_size=C)))
    tightness = np.array(draw(st.lists(st.floats(-1.0, 1.2), min_size=C, max_size=C)))
    kl_bound = 10.0 ** draw(st.floats(-3, 0))
    reward = generator.normal(size=(B, K)) + 10 * generator.normal(size=(B, 1))
    cost = generator.normal(size=(B, K, C))
    match draw(st.sampled_from(["any", "any", "sparse", "proportional"])):
        case "sparse":
            cost = np.maximum(cost - 1, 0)
        case "proportional":
            cost[..., 0] = reward
    spread = (cost - cost.mean(1, keepdims=True)).std((0, 1))
    threshold = cost.mean((0, 1)) - tightness * math.sqrt(2 * kl_bound) * spread
    return Case(reward * reward_scale, cost * cost_scale, threshold * cost_scale, kl_bound)


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


@hypothesis_settings(max_examples=200)
@given(cases())
def test_the_reported_figures_are_those_of_the_weights(case: Case) -> None:
    solution = case.solve()
    K = solution.weights.shape[1]
    np.testing.assert_allclose(solution.weights.sum(1), 1)
    kl = (solution.weights * np.log(np.maximum(solution.weights * K, 1e-300))).sum(1).mean()
    cost = np.array([(solution.weights * case.cost[..., i]).sum(1).mean() for i in range(len(case.threshold))])
    assert solution.kl == pytest.approx(kl, abs=1e-12)
    assert solution.kl_residual == pytest.approx(kl / case.kl_bound - 1, abs=1e-9)
    np.testing.assert_allclose(solution.cost, cost)
    np.testing.assert_allclose(solution.cost_residual, (cost - case.threshold) / case.cost_spread, atol=1e-9)
    score = -(case.cost @ solution.cost_multiplier) + (case.reward if solution.feasible else 0)
    z = score / solution.temperature
    expected = np.exp(z - z.max(1, keepdims=True))
    np.testing.assert_allclose(solution.weights, expected / expected.sum(1, keepdims=True), atol=1e-6)


@hypothesis_settings(max_examples=200)
@given(cases())
def test_infeasible_means_that_the_least_excess_is_positive_and_its_weights_reach_it(case: Case) -> None:
    solution = case.solve()
    excess, cost = least_excess(case.cost, case.threshold, case.kl_bound)
    assert solution.feasible == (excess <= 1e-9) or abs(excess) < 1e-6
    if not solution.feasible:
        # SLSQP, which finds the multipliers of several constraints, stops within 1e-3 standard deviations.
        tolerance = 1e-6 + 1e-4 * case.kl_bound if len(case.threshold) == 1 else 1e-3
        assert solution.cost_residual.max() == pytest.approx(excess, abs=tolerance)
        np.testing.assert_allclose(solution.cost, cost, rtol=1e-9, atol=1e-9)
        assert solution.kl_residual <= 10 * tolerance


# Known answers.


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


# Slack, active, infeasible, unconstrained.


def test_a_slack_threshold_leaves_the_unconstrained_solution() -> None:
    problem = case(tightness=-5.0)
    slack = problem.solve()
    free = solve_dual(problem.reward, problem.cost, np.array([np.inf]), problem.kl_bound)
    assert slack.feasible
    assert slack.cost_multiplier[0] == 0
    assert slack.cost_residual[0] < 0
    assert slack.kl_residual == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(slack.weights, free.weights)
    assert free.cost_residual[0] == -np.inf
    assert free.feasible


def test_an_active_threshold_is_met_exactly_at_the_price_of_reward() -> None:
    problem = case(tightness=0.6)
    active = problem.solve()
    free = solve_dual(problem.reward, problem.cost, np.array([np.inf]), problem.kl_bound)
    assert active.feasible
    assert active.cost_multiplier[0] > 0.1
    assert active.cost[0] == pytest.approx(problem.threshold[0], abs=1e-6)
    assert active.kl == pytest.approx(problem.kl_bound, rel=1e-6)
    assert free.cost[0] > problem.threshold[0] + 0.1
    assert (active.weights * problem.reward).sum() < (free.weights * problem.reward).sum()


def test_a_threshold_out_of_reach_is_answered_by_the_least_cost_in_the_ball() -> None:
    # reference.md 6.7: w ∝ exp(−Q_c/eta_c), where eta_c maximizes −eta·bound − eta·mean log mean exp(−Q_c/eta).
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


def test_infeasible_weights_do_not_depend_on_the_reward() -> None:
    problem = case(tightness=2.0, costs=2)
    other = Case(-5 * problem.reward, problem.cost, problem.threshold, problem.kl_bound)
    np.testing.assert_allclose(problem.solve().weights, other.solve().weights, atol=1e-9)


def test_thresholds_that_each_can_be_met_but_not_both_are_infeasible() -> None:
    # What lowers one cost raises the other, so at best both exceed their thresholds alike.
    cost = np.random.default_rng(0).normal(size=(4, 8))
    cost -= cost.mean(1, keepdims=True)
    both, threshold = np.stack([cost, -2 * cost], axis=2), -0.1 * np.array([1.0, 2.0]) * cost.std()
    for i in range(2):
        assert solve_dual(np.zeros((4, 8)), both[..., [i]], threshold[[i]], 0.1).feasible
    solution = solve_dual(np.zeros((4, 8)), both, threshold, 0.1)
    assert not solution.feasible
    np.testing.assert_allclose(solution.cost_residual, 0.1, atol=1e-5)


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
    assert ((reached - threshold) / spread).max() == pytest.approx(excess, abs=1e-4)


def test_an_infinite_threshold_leaves_only_its_own_constraint_out() -> None:
    problem = case(costs=2, tightness=0.4)
    one = solve_dual(problem.reward, problem.cost[..., [1]], problem.threshold[[1]], problem.kl_bound)
    threshold = np.array([np.inf, problem.threshold[1]])
    both = solve_dual(problem.reward, problem.cost, threshold, problem.kl_bound)
    np.testing.assert_allclose(both.weights, one.weights, atol=1e-9)
    np.testing.assert_allclose(both.cost_multiplier, [0, one.cost_multiplier[0]])
    assert both.cost_residual[0] == -np.inf


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


# Invariances (reference.md 6.6).


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


def test_reward_does_not_fall_when_the_old_policy_meets_the_threshold() -> None:
    # reference.md 6.8: q = old policy is then admissible.
    for seed in range(10):
        problem = case(seed, costs=2, tightness=-0.2)
        solution = problem.solve()
        assert (solution.weights * problem.reward).sum(1).mean() >= problem.reward.mean() - 1e-9


# Starting elsewhere, and what is refused.


@hypothesis_settings(max_examples=100)
@given(cases(), st.floats(-6, 6), st.lists(st.one_of(st.just(-np.inf), st.floats(-6, 6)), min_size=3, max_size=3))
def test_a_start_does_not_change_the_solution(case: Case, log_temperature: float, log_multiplier: list[float]) -> None:
    C = len(case.threshold)
    scale = case.reward_spread / case.cost_spread
    start = (case.reward_spread * 10**log_temperature, scale * 10.0 ** np.array(log_multiplier[:C]))
    cold, warm = case.solve(), solve_dual(case.reward, case.cost, case.threshold, case.kl_bound, start)
    assert warm.feasible == cold.feasible
    assert warm.kl_residual <= 1e-6 or not cold.feasible
    rewards = [(solution.weights * case.reward).sum(1).mean() / case.reward_spread for solution in (cold, warm)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)  # the weights need not be unique where reward ∝ cost


def test_starting_at_the_solution_saves_steps() -> None:
    problem = case(states=64, actions=16, tightness=0.6)
    cold = problem.solve()
    start = (cold.temperature, cold.cost_multiplier)
    warm = solve_dual(problem.reward, problem.cost, problem.threshold, problem.kl_bound, start)
    assert warm.newton_steps < cold.newton_steps / 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("argument", ["reward_value", "cost_value"])
def test_values_that_are_not_finite_are_refused_by_name(argument: str, value: float) -> None:
    problem = case()
    {"reward_value": problem.reward, "cost_value": problem.cost}[argument][2, 3] = value
    with pytest.raises(NonFiniteError, match=argument):
        problem.solve()


def test_the_least_excess_names_the_cost_that_is_not_finite() -> None:
    problem = case()
    problem.cost[0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="cost_value"):
        least_excess(problem.cost, problem.threshold, problem.kl_bound)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_threshold_is_finite_or_plus_infinity(value: float) -> None:
    problem = case()
    with pytest.raises(NonFiniteError, match="cost_threshold"):
        solve_dual(problem.reward, problem.cost, np.array([value]), problem.kl_bound)


@pytest.mark.parametrize("kl_bound", [0.0, -0.1, np.inf, np.nan])
def test_a_kl_bound_is_positive_and_finite(kl_bound: float) -> None:
    problem = case()
    with pytest.raises(ValueError, match="kl_bound"):
        solve_dual(problem.reward, problem.cost, problem.threshold, kl_bound)


def test_shapes_that_do_not_fit_are_refused() -> None:
    problem = case(costs=2)
    with pytest.raises(ValueError, match=r"\[B, K, C\]"):
        solve_dual(problem.reward, problem.cost, problem.threshold[:1], problem.kl_bound)


def test_values_that_do_not_vary_over_actions_leave_the_old_policy() -> None:
    flat = solve_dual(np.ones((3, 4)), np.ones((3, 4, 1)), np.array([1.0]), 0.1)
    np.testing.assert_allclose(flat.weights, 0.25)
    assert flat.feasible
    too_much = solve_dual(np.ones((3, 4)), np.ones((3, 4, 1)), np.array([0.9]), 0.1)
    np.testing.assert_allclose(too_much.weights, 0.25)
    assert not too_much.feasible
