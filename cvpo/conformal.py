"""A predictive distribution of the cost of the next steps, and how much probability really lies below its atoms.

Two groups of episodes make it. The first gives a distribution from steps left and cost value, as good as it happens to
be; the second measures how much probability lies at or below each of its atoms: a conformal predictive distribution,
whose bounds hold for a random step of a fresh episode whatever the first one was worth.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from cvpo.bundle import Constraint
from cvpo.costmap import CostMap
from cvpo.evaluate import Episode

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

HORIZONS = 12  # about: a geometric grid from 1 to T; W is added
MOST_NODES = 8
LEVELS = 56  # equally spaced quantile levels of the first distribution, the last its maximum
STRETCH = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8])  # atoms beyond that maximum, as shares of it
POOLED_EPISODES = 1.0  # each node's distribution is mixed with this many episodes' worth of all nodes together
NODE_GAP = 1e-3  # least distance of two nodes, of the largest: keeps the map from being steeper than float32 allows
TIE = 1e-5  # of a cost: as near to it, an atom is taken to be equal, for it was interpolated in float32


def conformal_map(
    fit: Sequence[Episode], calibrate: Sequence[Episode], constraints: Sequence[Constraint], confidence: float
) -> CostMap:
    """The map of costs, measured.

    What holds: for a fresh episode and a random one of its steps, P(cost of the next h steps <= cost_upper) is at least
    `confidence`, for every h of the grid over the steps whose next h were observed, and for the steps that are left of
    the episode. In each cell 1/(n + 1) of the probability lies at infinity, n being the episodes of `calibrate` that
    spoke of it, and all of it where none did.

    Args:
        fit: episodes with the critic's cost values, for the first distribution.
        calibrate: others, for the probability of its atoms. The mean is taken over both groups.
        constraints: C of them, in the order of the costs.
        confidence: of `cost_upper`.
    """
    horizon, window = constraints[0].horizon_steps, constraints[0].window_steps
    grid = horizon_grid(horizon, window)
    both = [*fit, *calibrate]
    fitted = [_fit(fit, both, index, grid) for index in range(len(constraints))]
    nodes, atoms, mean = (np.stack(part) for part in zip(*fitted, strict=True))
    unproven = CostMap(grid, nodes, atoms, mean, np.zeros(atoms.shape[:2] + atoms.shape[3:]), confidence)
    return CostMap(grid, nodes, atoms, mean, _covered(calibrate, unproven, grid, horizon), confidence)


def horizon_grid(horizon: int, window: int) -> NDArray[np.int64]:
    """Numbers of steps at which costs are tabled: geometric from 1 to the horizon, the window among them."""
    grid = np.geomspace(1, horizon, HORIZONS).round().astype(np.int64)
    return np.union1d(grid, [window, horizon])


def window_cost(episode: Episode, steps: NDArray[np.int64]) -> tuple[Array, Bools]:
    """Undiscounted cost of the next steps[t] steps from step t on, [L, C], and whether all of them were observed, [L].

    After a termination nothing costs anything; what follows a truncation is unknown.
    """
    length = len(episode.cost)
    total = np.concatenate([np.zeros((1, episode.cost.shape[1])), episode.cost.cumsum(0)])
    start = np.arange(length)
    end = start + steps
    return total[np.minimum(end, length)] - total[start], (end <= length) | episode.terminated


def _fit(
    fit: Sequence[Episode], seen: Sequence[Episode], index: int, grid: NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """The first predictive distribution of one constraint: nodes [B], atoms [H, B, M] and mean [H, B].

    Every step speaks for the two nodes its cost value lies between. More cost value or more steps left never mean less
    cost: along the nodes by isotonic regression, along the horizons by the running maximum.
    """
    nodes = _place_nodes(np.concatenate([cost_values(episode)[:, index] for episode in fit]), len(fit))
    atoms, mean = np.zeros((len(grid), len(nodes), LEVELS + len(STRETCH))), np.zeros((len(grid), len(nodes)))
    for row, steps in enumerate(grid):
        cost, weight = _observed(fit, index, nodes, steps)
        if len(cost):
            quantiles = _quantiles(cost, weight)
            beyond = cost.max() * (1 + STRETCH)
            atoms[row] = np.hstack([quantiles, np.tile(beyond, (len(nodes), 1))])
            atoms[row] = _isotonic(atoms[row], weight)
        cost, weight = _observed(seen, index, nodes, steps)
        if len(cost):
            mean[row] = _isotonic((weight @ cost / weight.sum(1))[:, None], weight)[:, 0]
    return nodes, np.maximum.accumulate(atoms, axis=0), np.maximum.accumulate(mean, axis=0)


def _place_nodes(cost_value: Array, episodes: int) -> Array:
    """Quantiles of the cost values, apart enough to interpolate between."""
    count = min(max(episodes // 2, 2), MOST_NODES)
    nodes = np.quantile(cost_value, (np.arange(count) + 0.5) / count).astype(np.float64)
    gap = NODE_GAP * max(nodes[-1], 1e-3)
    apart: Array = gap * np.arange(count)
    return np.maximum.accumulate(nodes - apart) + apart


def _observed(episodes: Sequence[Episode], index: int, nodes: Array, steps: int) -> tuple[Array, Array]:
    """Costs of the windows that were observed, [S], and their weight for each node, [B, S].

    Episodes weigh the same, shared by their windows; all windows together weigh POOLED_EPISODES at every node, so that
    none is without evidence.
    """
    costs, shares, weights = [np.empty(0)], [np.empty(0)], [np.empty((len(nodes), 0))]
    for episode in episodes:
        cost, observed = window_cost(episode, np.full(len(episode.cost), steps))
        if observed.any():
            cost_value = cost_values(episode)[observed, index]
            costs.append(cost[observed, index])
            shares.append(np.full(len(cost_value), 1 / len(cost_value)))
            hats = np.stack([np.interp(cost_value, nodes, one) for one in np.eye(len(nodes))])
            weights.append(hats * shares[-1])
    share = np.concatenate(shares)
    return np.concatenate(costs), np.hstack(weights) + POOLED_EPISODES * share / max(share.sum(), 1)


def _quantiles(cost: Array, weight: Array) -> Array:
    """At each node, the smallest cost with at least a share m / LEVELS of the weight at or below it, [B, LEVELS]."""
    order = np.argsort(cost, kind="stable")
    below = weight[:, order].cumsum(1)
    levels = np.arange(1, LEVELS + 1) / LEVELS - 1e-9
    position = np.stack([np.searchsorted(row / row[-1], levels) for row in below])
    return cost[order][position]


def _isotonic(values: Array, weight: Array) -> Array:
    """Each column of `values` [B, M] as the nearest one that never falls along B.

    A node counts by the steps near it, `weight` [B, S], without what it was lent: one without any follows the others.
    """
    own = np.maximum(weight.sum(1) - POOLED_EPISODES, 1e-6)
    return np.stack([isotonic_regression(column, weights=own).x for column in values.T], axis=1)


def _covered(episodes: Sequence[Episode], cost_map: CostMap, grid: NDArray[np.int64], horizon: int) -> Array:
    """Probability that a cost is at most atom m, [C, H, M], for a random step of a fresh episode.

    The lesser of two: over windows of grid[h] steps, and over whatever is left of the episode at each of its steps.
    """
    rest = share_within(cost_map, episodes, [horizon - np.arange(len(episode.cost)) for episode in episodes])
    windows = [
        share_within(cost_map, episodes, [np.full(len(episode.cost), steps) for episode in episodes]) for steps in grid
    ]
    covered = np.stack([np.minimum(window, rest) for window in windows], axis=1)
    covered[np.isinf(covered)] = 0  # neither was observed
    covered = np.minimum.accumulate(covered, axis=1)  # more steps left never mean less cost
    return np.minimum.accumulate(covered[..., ::-1], axis=-1)[..., ::-1]  # rounding may disorder equal atoms


def share_within(cost_map: CostMap, episodes: Sequence[Episode], steps: Sequence[NDArray[np.int64]]) -> Array:
    """Share of costs of the next `steps` [L] that are at most atom m, [C, M]; +inf where none was observed.

    Episodes weigh the same, and there is one more, the fresh one, whose costs are taken to be infinite.
    """
    within = []
    for episode, spans in zip(episodes, steps, strict=True):
        cost, observed = window_cost(episode, spans)
        if observed.any():
            cost_value = float32(cost_values(episode)[observed]).unsqueeze(-1)
            atoms, _ = cost_map.atoms(cost_value, torch.from_numpy(spans[observed]))
            within.append(_within(float32(cost[observed]).unsqueeze(-1), atoms[:, :, 0]))
    if not within:
        return np.full((cost_map.num_costs, cost_map.num_atoms), np.inf)
    total: Array = np.sum(within, axis=0)
    return total / (len(within) + 1)


def _within(cost: torch.Tensor, atoms: torch.Tensor) -> Array:
    """Share of costs [Q, C, 1] that are at most atom m, [C, M], where one that equals several atoms is split evenly.

    Counted whole at the lowest of them, the zeros of safe states would make the first atoms of every state look safe:
    the randomized probability integral transform, in expectation.
    """
    rounding = TIE * cost
    below, upto = (atoms < cost - rounding).sum(-1, keepdim=True), (atoms <= cost + rounding).sum(-1, keepdim=True)
    rank = torch.arange(1, atoms.shape[-1] + 1)
    share: Array = ((rank - below) / (upto - below).clamp(min=1)).clamp(0, 1).double().mean(0).numpy()
    return share


def cost_values(episode: Episode) -> Array:
    """The critic's cost value of each action taken, [L, C]; `calibrate` refuses episodes without."""
    assert episode.cost_value is not None
    return episode.cost_value


def float32(value: Array) -> torch.Tensor:
    """In the graphs' precision, so that equal costs stay equal."""
    return torch.from_numpy(value.astype(np.float32))
