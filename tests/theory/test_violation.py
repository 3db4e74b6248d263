"""The worst-case cost of a policy inside a trust region, in a decision process whose values are exact.

After Achiam et al., 2017, Theorem 1, which Liu et al., 2022, use for the E-step's q:

    J_c(π') − J_c(π) <= 1/(1 − γ) E[A_c] + 2γδ/(1 − γ)² E[TV(π' ‖ π)],  δ = max_s |E_{a~π'} A_c(s, a)|

with states visited by π, actions of π', and advantages A_c of π.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvpo.learning.estep import solve_dual
from tests.theory.ring import Ring

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def surrogate(ring: Ring, old: Array, new: Array) -> float:
    """First-order change of J_c."""
    change = (new * ring.advantage(old, ring.cost)).sum(1)
    return float(ring.visits(old) @ change) / (1 - ring.discount)


def largest_change(ring: Ring, old: Array, new: Array) -> float:
    """δ: the largest mean advantage of the new policy's actions in a state."""
    return float(np.abs((new * ring.advantage(old, ring.cost)).sum(1)).max())


def violation_bound(ring: Ring, old: Array, new: Array) -> float:
    total_variation = 0.5 * np.abs(new - old).sum(1)
    factor = 2 * ring.discount * largest_change(ring, old, new) / (1 - ring.discount) ** 2
    return surrogate(ring, old, new) + factor * float(ring.visits(old) @ total_variation)


seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_the_change_of_cost_is_the_advantage_where_the_new_policy_goes(seed: int) -> None:
    # Kakade and Langford, 2002: exact, with the new policy's own visits. It proves the linear algebra.
    ring, generator = Ring.random(seed), np.random.default_rng(seed)
    old, new = (softmax(generator.normal(size=ring.cost.shape)) for _ in range(2))
    change = ring.total(new, ring.cost) - ring.total(old, ring.cost)
    exact = ring.visits(new) @ (new * ring.advantage(old, ring.cost)).sum(1) / (1 - ring.discount)
    assert change == pytest.approx(exact, abs=1e-9)
    assert ring.visits(new).sum() == pytest.approx(1)


@given(seeds, st.floats(0, 3), st.floats(0.1, 0.98))
def test_no_policy_costs_more_than_the_bound(seed: int, step: float, discount: float) -> None:
    ring, generator = Ring.random(seed, discount=discount), np.random.default_rng(seed)
    logits = generator.normal(size=ring.cost.shape)
    old, new = softmax(logits), softmax(logits + step * generator.normal(size=ring.cost.shape))
    change = ring.total(new, ring.cost) - ring.total(old, ring.cost)
    assert change <= violation_bound(ring, old, new) + 1e-9


def test_without_the_term_for_other_states_the_bound_would_be_wrong() -> None:
    over = 0
    for seed in range(50):
        ring, generator = Ring.random(seed), np.random.default_rng(seed)
        old, new = (softmax(generator.normal(size=ring.cost.shape)) for _ in range(2))
        over += ring.total(new, ring.cost) - ring.total(old, ring.cost) > surrogate(ring, old, new)
    assert 0 < over < 50


@pytest.mark.parametrize("kl_bound", [1e-3, 1e-2, 0.1, 0.3])
def test_the_e_step_keeps_the_limit_up_to_the_bound(kl_bound: float) -> None:
    # Asking E_q[A_c] <= (1 − γ)(d − J_c(π)) leaves J_c(q) <= d + γ·sqrt(2·kl_bound)·δ/(1 − γ)²: Pinsker's inequality
    # makes the mean total variation at most sqrt(kl_bound/2).
    feasible = 0
    for seed in range(20):
        ring = Ring.random(seed)
        old = ring.uniform  # of which every action is a sample, and which visits every state alike
        np.testing.assert_allclose(ring.visits(old), 1 / len(old))
        before = ring.total(old, ring.cost)
        limit = before - 0.5 * math.sqrt(kl_bound)
        reward, advantage = ring.action_value(old, ring.reward), ring.advantage(old, ring.cost)
        threshold = np.array([(1 - ring.discount) * (limit - before)])
        solution = solve_dual(reward, advantage[..., None], threshold, kl_bound)
        excess = solution.infeasibility[0] / (1 - ring.discount)
        delta = largest_change(ring, old, solution.weights)
        slack = ring.discount * math.sqrt(2 * kl_bound) * delta / (1 - ring.discount) ** 2
        assert ring.total(solution.weights, ring.cost) <= limit + excess + slack + 1e-6
        assert surrogate(ring, old, solution.weights) <= limit - before + excess + 1e-6
        feasible += solution.feasible
    assert feasible >= 5


def test_the_smaller_the_step_the_closer_the_cost_comes_to_what_was_asked() -> None:
    # Both terms of the bound shrink with the step, the second as its square: what is left over the threshold goes to 0.
    ring = Ring.random(0)
    old = ring.uniform
    before = ring.total(old, ring.cost)
    advantage = ring.advantage(old, ring.cost)
    errors = []
    for kl_bound in (0.1, 0.01, 0.001, 0.0001):
        asked = -0.3 * math.sqrt(2 * kl_bound) * advantage.std()
        reward = ring.action_value(old, ring.reward)
        solution = solve_dual(reward, advantage[..., None], np.array([asked]), kl_bound)
        assert solution.feasible
        change = ring.total(solution.weights, ring.cost) - before
        errors.append(abs(change - asked / (1 - ring.discount)) / math.sqrt(kl_bound))
    assert errors[3] < errors[2] < errors[1] < errors[0]
    assert errors[3] < 0.1 * errors[0]
