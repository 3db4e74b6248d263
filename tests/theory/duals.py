"""Duals of the E-step to test the theory on: batches of values, from any scale and from slack to out of reach."""

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvpo.learning.estep import DualSolution, solve_dual

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
