"""What a policy of CVPO is promised to cost: the threshold, and the terms that are logged beside it.

    E_π[Q_c] <= d + Δ_critic + Δ_E-step + Δ_M-step

with Δ_critic by how much the critic reads too little, Δ_E-step = max(0, least cost in the KL ball − d), and
Δ_M-step = |E_π[Q̂_c] − E_q[Q̂_c]|. Early in training the terms can be larger than d: they are what is known, no promise.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvpo.bundle import Constraint
from cvpo.learning.estep import DualSolution, solve_dual
from tests.theory.ring import Ring

Array = NDArray[np.float64]
KL_BOUND = 0.1


def project(weights: Array) -> Array:
    """The M-step of a policy that cannot tell states 0, 1, 2 from each other, nor 3, 4, 5, and so on.

    The maximum of mean_s sum_a q log π is the mean of q over such states.
    """
    S, K = weights.shape
    return np.repeat(weights.reshape(S // 3, 3, K).mean(1), 3, axis=0)


@pytest.mark.parametrize("tightness", [-1.0, 0.3, 3.0])  # slack, active, out of reach
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_cost_is_at_most_the_threshold_and_the_three_terms(tightness: float, error: float) -> None:
    for seed in range(10):
        ring = Ring.random(seed)
        exact = ring.action_value(ring.uniform, ring.cost)
        critic = exact + error * (np.random.default_rng(seed).normal(size=exact.shape) - 1)  # reads too little
        threshold = critic.mean() - tightness * math.sqrt(2 * KL_BOUND) * critic.std()
        solution = solve_dual(
            ring.action_value(ring.uniform, ring.reward), critic[..., None], np.array([threshold]), KL_BOUND
        )
        policy = project(solution.weights)
        critic_error = (policy * (exact - critic)).sum(1).mean()
        gap = abs(((policy - solution.weights) * critic).sum(1).mean())
        cost = (policy * exact).sum(1).mean()
        assert cost <= threshold + critic_error + solution.infeasibility[0] + gap + 1e-6
        check_terms(tightness, error, solution, critic_error)
        assert gap <= pinsker(solution.weights, policy, critic)


def check_terms(tightness: float, error: float, solution: DualSolution, critic_error: float) -> None:
    """Each term is there where it should be, and only there."""
    assert solution.feasible == (tightness < 1)
    assert (solution.infeasibility[0] > 0) == (tightness > 1)
    assert (critic_error > 0.1) == (error > 0)


# The projection gap.


def pinsker(q: Array, policy: Array, value: Array) -> float:
    """(max Q − min Q)·sqrt(KL(q ‖ π)/2) of each state, mean."""
    kl = (q * np.log(np.maximum(q, 1e-300) / policy)).sum(1)
    return float((np.ptp(value, axis=1) * np.sqrt(np.maximum(kl, 0) / 2)).mean())


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 10), st.floats(0.01, 10))
def test_the_projection_gap_is_bounded_by_the_kl_and_the_spread_of_the_critic(
    seed: int, sharpness: float, other: float
) -> None:
    # |E_π[Q] − E_q[Q]| <= (max Q − min Q)·TV(q, π) <= (max Q − min Q)·sqrt(KL(q ‖ π)/2), state by state.
    generator = np.random.default_rng(seed)
    q, policy = (generator.dirichlet(np.full(6, 1 / sharp), size=5) + 1e-12 for sharp in (sharpness, other))
    q, policy = q / q.sum(1, keepdims=True), policy / policy.sum(1, keepdims=True)
    value = generator.normal(size=(5, 6)) * 10.0 ** generator.uniform(-3, 3)
    for s in range(5):
        row = slice(s, s + 1)
        gap = abs(((policy[row] - q[row]) * value[row]).sum())
        assert gap <= pinsker(q[row], policy[row], value[row]) * (1 + 1e-9)


def test_the_projection_gap_comes_near_its_bound() -> None:
    # Two actions, q = (½ + x, ½ − x) and π = (½, ½): the gap is x and KL about 2x².
    x = 0.01
    q, policy = np.array([[0.5 + x, 0.5 - x]]), np.array([[0.5, 0.5]])
    value = np.array([[1.0, 0.0]])
    assert abs(((policy - q) * value).sum()) == pytest.approx(pinsker(q, policy, value), rel=1e-3)


# Units: an episodic limit d as a discounted threshold.


def constraint(limit: float, discount: float, horizon: int) -> Constraint:
    return Constraint(name="c", cost_limit=limit, discount=discount, horizon_steps=horizon, window_steps=1)


def discounted(cost: Array, discount: float) -> float:
    return float(cost @ discount ** np.arange(len(cost)))


@given(st.floats(0, 100), st.floats(0.01, 0.999), st.integers(1, 500))
def test_the_threshold_is_exact_where_cost_is_spread_evenly(limit: float, discount: float, horizon: int) -> None:
    cost = np.full(horizon, limit / horizon)
    assert constraint(limit, discount, horizon).threshold() == pytest.approx(discounted(cost, discount))


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.999), st.integers(2, 200))
def test_cost_that_comes_early_reads_more_than_the_threshold_and_cost_that_comes_late_less(
    seed: int, discount: float, horizon: int
) -> None:
    cost = np.sort(np.random.default_rng(seed).exponential(size=horizon))
    threshold = constraint(float(cost.sum()), discount, horizon).threshold()
    assert discounted(cost, discount) <= threshold * (1 + 1e-9)
    assert discounted(cost[::-1], discount) >= threshold * (1 - 1e-9)


def test_without_discount_the_threshold_would_be_the_limit() -> None:
    assert constraint(25.0, 1 - 1e-9, 1000).threshold() == pytest.approx(25, rel=1e-6)
