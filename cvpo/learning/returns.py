"""n-step and discounted returns of reward and cost alike; pure functions of arrays."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class NStepReturn(NamedTuple):
    """What came in the n steps after an action, and how the values of what follows count."""

    reward: float
    """Discounted sum."""
    cost: Array
    """Discounted sums [C]."""
    discount: float
    """Factor of the reward value that follows: gamma^n, or 0 after a termination."""
    cost_discount: Array
    """Factors of the cost values that follow [C]: gamma_c^n."""


def n_step_return(
    reward: Array, cost: Array, terminated: NDArray[np.bool_], discount: float, cost_discount: Array
) -> NStepReturn:
    """Sum up the n steps after an action.

    Reward ends with a termination. Cost does not: that of the next episode follows, since a policy is held to a cost
    per horizon of steps. Were it to end, an action that ends the episode would look safe.

    Args:
        reward: of the n steps, [n].
        cost: of the n steps, [n, C].
        terminated: whether a step ended its episode for good, so that the next one is of another episode, [n].
        discount: gamma of one step.
        cost_discount: gamma_c, that of each cost, [C].
    """
    n = len(reward)
    ended = np.cumsum(terminated) > 0
    counts = np.append(True, ~ended[:-1])  # a reward counts unless the episode had ended before it
    return NStepReturn(
        float((discount ** np.arange(n) * counts) @ reward),
        (cost_discount ** np.arange(n)[:, None] * cost).sum(0),
        0.0 if ended[-1] else discount**n,
        cost_discount**n,
    )


def discounted_returns(reward: Array, discount: float) -> Array:
    """Discounted sum of rewards from every step of a segment on to its last one, [T]."""
    returns = np.empty(len(reward))
    following = 0.0
    for t in range(len(reward) - 1, -1, -1):
        following = reward[t] + discount * following
        returns[t] = following
    return returns


def seen_costs(cost_value: Array, cost: Array, discounts: Array) -> tuple[Array, Array]:
    """Discounted cost from each step of a segment up to its last one, summed over steps: predicted and realized, [C].

    What follows the last step was not seen, so it is left out on both sides: from step t to the last one, T, a critic
    predicts Q_t − γ^(T−t)·Q_T. One that is wrong by a factor gives that factor, however short the segment is.

    Args:
        cost_value: Q_t of each step, [T, C].
        cost: of each step, [T, C].
        discounts: γ of each cost, [C].
    """
    left = np.arange(len(cost) - 1, 0, -1)[:, None]
    predicted = cost_value[:-1] - discounts**left * cost_value[-1]
    realized = [discounted_returns(column[:-1], discount) for column, discount in zip(cost.T, discounts, strict=True)]
    return predicted.sum(0), np.array([column.sum() for column in realized])


def window_cost(cost: Array, steps: NDArray[np.int64], terminated: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Undiscounted cost of the next steps[t] steps from step t of an episode on, [L, C], and whether it was seen, [L].

    After a termination nothing costs anything; what follows a truncation is unknown.

    Args:
        cost: of the episode's steps, [L, C].
        steps: [L].
        terminated: the episode ended for good.
    """
    length = len(cost)
    total = np.concatenate([np.zeros((1, cost.shape[1])), cost.cumsum(0)])
    start = np.arange(length)
    end = start + steps
    return total[np.minimum(end, length)] - total[start], (end <= length) | terminated
