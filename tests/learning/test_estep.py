"""The E-step's solver: what it reports, slack and active thresholds, starts, refusals. See also tests/theory."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvpo.errors import NonFiniteError
from cvpo.learning import estep
from cvpo.learning.estep import least_excess, reachable_share, solve_dual
from tests.theory.duals import Case, case, cases


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


def test_an_infinite_threshold_leaves_only_its_own_constraint_out() -> None:
    problem = case(costs=2, tightness=0.4)
    one = solve_dual(problem.reward, problem.cost[..., [1]], problem.threshold[[1]], problem.kl_bound)
    threshold = np.array([np.inf, problem.threshold[1]])
    both = solve_dual(problem.reward, problem.cost, threshold, problem.kl_bound)
    np.testing.assert_allclose(both.weights, one.weights, atol=1e-9)
    np.testing.assert_allclose(both.cost_multiplier, [0, one.cost_multiplier[0]])
    assert both.cost_residual[0] == -np.inf


def test_infeasible_weights_do_not_depend_on_the_reward() -> None:
    problem = case(tightness=2.0, costs=2)
    other = Case(-5 * problem.reward, problem.cost, problem.threshold, problem.kl_bound)
    np.testing.assert_allclose(problem.solve().weights, other.solve().weights, atol=1e-9)


def test_only_what_is_over_its_threshold_is_infeasible() -> None:
    base = case(tightness=2.0, costs=3)
    threshold = np.array([np.inf, base.threshold[1] + 100.0, base.threshold[2]])
    solution = replace(base, threshold=threshold).solve()
    assert not solution.feasible
    assert solution.infeasibility[:2].tolist() == [0.0, 0.0]
    assert solution.infeasibility[2] == pytest.approx(solution.cost[2] - threshold[2])
    assert solution.infeasibility[2] > 0


def test_values_that_do_not_vary_over_actions_leave_the_old_policy() -> None:
    flat = solve_dual(np.ones((3, 4)), np.ones((3, 4, 1)), np.array([1.0]), 0.1)
    np.testing.assert_allclose(flat.weights, 0.25)
    assert flat.feasible
    too_much = solve_dual(np.ones((3, 4)), np.ones((3, 4, 1)), np.array([0.9]), 0.1)
    np.testing.assert_allclose(too_much.weights, 0.25)
    assert not too_much.feasible


def test_a_solution_that_ends_over_its_threshold_is_not_called_feasible(monkeypatch: pytest.MonkeyPatch) -> None:
    # SciPy, which takes over where Newton's method does not converge, may end early: here where it asks no price of
    # the costs, of which the second is under its threshold. What is answered is the q with the least excess, as where
    # nothing meets the thresholds.
    base = case(tightness=0.6, costs=2)
    problem = replace(base, threshold=base.threshold + np.array([0.0, 10.0]))
    least = least_excess(problem.cost, problem.threshold, problem.kl_bound)[1]
    solve: Callable[[estep._Problem, NDArray[np.float64]], estep._Minimum] = estep._minimize

    def ending_early(scaled: estep._Problem, start: NDArray[np.float64]) -> estep._Minimum:
        with_reward_and_costs = len(scaled.cost) and scaled.allowance is None
        free = np.append(start[:1], np.zeros(len(scaled.cost)))
        return estep._Minimum(free, 0.0, 1000) if with_reward_and_costs else solve(scaled, start)

    assert problem.solve().feasible
    monkeypatch.setattr(estep, "_minimize", ending_early)
    solution = problem.solve()
    assert not solution.feasible
    np.testing.assert_allclose(solution.cost, least)


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


def test_a_start_is_in_the_callers_units_and_of_the_constraint_that_it_is_for() -> None:
    base = case(states=64, actions=16, costs=2, tightness=0.6)
    threshold = 1000 * np.array([np.inf, base.threshold[1]])
    cold = solve_dual(base.reward, 1000 * base.cost, threshold, base.kl_bound)
    start = (cold.temperature, cold.cost_multiplier)
    assert solve_dual(base.reward, 1000 * base.cost, threshold, base.kl_bound, start).newton_steps <= 1


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


def test_a_share_of_nothing_that_is_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="asks no cost to fall"):
        reachable_share(case(costs=2).cost, np.array([0.0, 1.0]), 0.1)
