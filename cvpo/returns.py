"""n-step and discounted returns of reward and cost alike; pure functions of arrays."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def n_step_return(
    reward: Array, cost: Array, discount: float, cost_discount: Array, terminated: bool
) -> tuple[float, Array, float]:
    """Sum up the n steps after an action, and say how the value of what follows them counts.

    Args:
        reward: of the n steps, [n].
        cost: of the n steps, [n, C].
        discount: gamma of one step.
        cost_discount: that of each cost, [C].
        terminated: whether the last step ended the episode for good. A truncated one goes on: its value counts.

    Returns:
        The discounted reward and cost [C] of the n steps, and the factor of the reward's bootstrap value: gamma^n, or 0
        when terminated.
    """
    n = len(reward)
    total, total_cost = discount ** np.arange(n) @ reward, (cost_discount ** np.arange(n)[:, None] * cost).sum(0)
    return float(total), total_cost, 0.0 if terminated else discount**n


def discounted_returns(reward: Array, discount: float, bootstrap: float = 0.0) -> Array:
    """Discounted sum of rewards from every step of a segment on, [T]; `bootstrap` is the value after its last step."""
    returns = np.empty(len(reward))
    following = bootstrap
    for t in range(len(reward) - 1, -1, -1):
        following = reward[t] + discount * following
        returns[t] = following
    return returns
