"""A predictive distribution of the cost of the next steps, and how much probability really lies below its atoms.

Two groups of episodes make it. The first gives a distribution from steps left and forecast, as good as it happens to
be; the second measures how much probability lies at or below each of its atoms: a conformal predictive distribution,
whose bounds hold for a random step of a fresh episode whatever the first one was worth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from cvpo.bundle import Constraint
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast_fit import ForecastEpisode, horizon_grid

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

HORIZONS = 12  # about: a geometric grid from 1 to T; W is added
MOST_NODES = 40
LEVELS = 56  # equally spaced quantile levels of the first distribution, the last its maximum
STRETCH = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8])  # atoms beyond that maximum, as shares of it
POOLED_EPISODES = 1.0  # each node's distribution is mixed with this many episodes' worth of all nodes together
NODE_GAP = 1e-3  # least distance of two nodes, of the largest: keeps the map from being steeper than float32 allows
TIE = 1e-5  # of a cost: as near to it, an atom is taken to be equal, for it was interpolated in float32


def conformal_map(
    fit: Sequence[ForecastEpisode],
    calibrate: Sequence[ForecastEpisode],
    constraints: Sequence[Constraint],
    confidence: float,
) -> CostMap:
    """The map of costs, measured.

    What holds: for a fresh episode and a random one of its steps, P(cost of the next h steps <= cost_upper) is at least
    `confidence`, for the W steps of the window where those were observed, and for the steps that are left of the
    episode; a cost that is over the bound by a TIE, which is rounding, counts as within. For that an episode weighs in
    a cell of the grid by the share of its steps in it, and the fresh one as much as the heaviest of `calibrate`: n that
    weigh the same leave 1/(n + 1) of the probability at infinity, and none leave all of it there. That the fresh one
    weighs more than all of them, for it ends sooner, happens once in n + 1 times at most, and is not made up for.

    Args:
        fit: episodes with forecasts, for the first distribution.
        calibrate: others, for the probability of its atoms. The mean is taken over both groups.
        constraints: C of them, in the order of the costs.
        confidence: of `cost_upper`.
    """
    grid = _grid(constraints[0])
    both = [*fit, *calibrate]
    fitted = [_fit(fit, both, index, constraint) for index, constraint in enumerate(constraints)]
    nodes, atoms, mean = (np.stack(part) for part in zip(*fitted, strict=True))
    unproven = CostMap(grid, nodes, atoms, mean, np.zeros(atoms.shape[:2] + atoms.shape[3:]), confidence)
    return CostMap(grid, nodes, atoms, mean, covered(calibrate, unproven, constraints[0]), confidence)


def _fit(
    fit: Sequence[ForecastEpisode], seen: Sequence[ForecastEpisode], index: int, constraint: Constraint
) -> tuple[Array, Array, Array]:
    """The first predictive distribution of one constraint: nodes [B], atoms [H, B, M] and mean [H, B].

    Every step speaks for the two nodes its forecast lies between. A higher forecast or more steps left never mean less
    cost: along the nodes by isotonic regression, along the horizons by the running maximum.
    """
    grid = _grid(constraint)
    seen_in_fit = [_samples(fit, index, constraint, row) for row in range(len(grid))]
    nodes = _place_nodes(np.concatenate([samples.forecast for samples in seen_in_fit]), len(fit))
    atoms, mean = np.zeros((len(grid), len(nodes), LEVELS + len(STRETCH))), np.zeros((len(grid), len(nodes)))
    for row, samples in enumerate(seen_in_fit):
        if len(samples.cost):
            weight = samples.at(nodes)
            quantiles = _quantiles(samples.cost, weight)
            beyond = samples.cost.max() * (1 + STRETCH)
            atoms[row] = np.hstack([quantiles, np.tile(beyond, (len(nodes), 1))])
            atoms[row] = _isotonic(atoms[row], weight)
        samples = _samples(seen, index, constraint, row)
        if len(samples.cost):
            weight = samples.at(nodes)
            mean[row] = _isotonic((weight @ samples.cost / weight.sum(1))[:, None], weight)[:, 0]
    return nodes, np.maximum.accumulate(atoms, axis=0), np.maximum.accumulate(mean, axis=0)


def _grid(constraint: Constraint) -> NDArray[np.int64]:
    return horizon_grid(constraint.horizon_steps, constraint.window_steps, HORIZONS)


class _Samples(NamedTuple):
    """Costs that came in some number of steps, and what had been forecast."""

    forecast: Array  # [S]
    cost: Array  # [S]
    share: Array  # [S]; that of an episode's samples is 1, however many they are

    def at(self, nodes: Array) -> Array:
        """Weight of each sample for each node, [B, S].

        All together weigh POOLED_EPISODES at every node, so that none is without evidence.
        """
        hats = np.stack([np.interp(self.forecast, nodes, one) for one in np.eye(len(nodes))])
        weight: Array = hats * self.share + POOLED_EPISODES * self.share / max(self.share.sum(), 1)
        return weight


def _samples(episodes: Sequence[ForecastEpisode], index: int, constraint: Constraint, row: int) -> _Samples:
    """Of a number of steps of the grid.

    What was left of an episode speaks for the numbers of the grid around it, in proportion. Windows speak for W, and
    for numbers of which nothing was seen to its end.
    """
    grid = _grid(constraint)
    steps = grid[row]
    parts = []
    for episode in episodes:
        left = constraint.horizon_steps - np.arange(len(episode))
        cost, observed = episode.window_cost(left)
        near = np.interp(left, grid, np.eye(len(grid))[row]) * observed
        chosen = near > 0
        if chosen.any():
            scaled = cost[chosen, index] * steps / left[chosen]
            parts.append((episode.forecast(left)[chosen, index], scaled, near[chosen] / near.sum()))
        if steps == constraint.window_steps or not chosen.any():
            span = np.full(len(episode), steps)
            cost, observed = episode.window_cost(span)
            share = np.full(observed.sum(), 1 / max(observed.sum(), 1))
            parts.append((episode.forecast(span)[observed, index], cost[observed, index], share))
    return _Samples(*(np.concatenate([part[i] for part in parts]) for i in range(3)))


def _place_nodes(forecasts: Array, episodes: int) -> Array:
    """Quantiles of the forecasts that differ, apart enough to interpolate between: often most of them are zero."""
    count = min(max(episodes // 2, 2), MOST_NODES)
    nodes = np.quantile(np.unique(forecasts), (np.arange(count) + 0.5) / count).astype(np.float64)
    gap = NODE_GAP * max(nodes[-1], 1e-3)
    apart: Array = gap * np.arange(count)
    return np.maximum.accumulate(nodes - apart) + apart


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


def covered(episodes: Sequence[ForecastEpisode], cost_map: CostMap, constraint: Constraint) -> Array:
    """Probability that a cost is at most atom m, [C, H, M], for a random step of a fresh episode.

    In each cell over what is left of the episode at those of its steps; over windows of grid[h] steps where nothing
    was seen to its end. Of the window's own cell the lesser of both.

    Args:
        episodes: that made no part of the map.
        cost_map: its atoms.
        constraint: any of them, for the numbers of steps.
    """
    grid, horizon, window = _grid(constraint), constraint.horizon_steps, constraint.window_steps
    left = [horizon - np.arange(len(episode)) for episode in episodes]
    cells = [np.searchsorted(grid, steps) for steps in left]
    rows = []
    for row, steps in enumerate(grid):
        rest = share_within(cost_map, episodes, left, [cell == row for cell in cells])
        if steps == window or np.isinf(rest).any():
            rest = np.minimum(rest, share_within(cost_map, episodes, [np.full(len(e), steps) for e in episodes]))
        rows.append(np.where(np.isinf(rest), 0.0, rest))
    stacked = np.stack(rows, axis=1)
    return np.minimum.accumulate(stacked[..., ::-1], axis=-1)[..., ::-1]  # rounding may disorder equal atoms


def share_within(
    cost_map: CostMap,
    episodes: Sequence[ForecastEpisode],
    steps: Sequence[NDArray[np.int64]],
    among: Sequence[Bools] | None = None,
) -> Array:
    """Share of costs of the next `steps` [L] that are at most atom m, [C, M]; +inf where none was observed.

    Episodes weigh the same, or by the share of their steps that count; and there is one more, the fresh one, as heavy
    as the heaviest of them, whose costs are taken to be infinite.

    Args:
        cost_map: its atoms.
        episodes: of which.
        steps: for each episode, [L].
        among: for each episode, [L]: which of its steps count; all unless given.
    """
    within, weight = [], []
    for number, (episode, spans) in enumerate(zip(episodes, steps, strict=True)):
        cost, observed = episode.window_cost(spans)
        if among is not None:
            observed = observed & among[number]
        if observed.any():
            forecast = float32(episode.forecast(spans)[observed]).unsqueeze(-1)
            atoms, _ = cost_map.atoms(forecast, torch.from_numpy(spans[observed]))
            within.append(_within(float32(cost[observed]).unsqueeze(-1), atoms[:, :, 0]))
            weight.append(1.0 if among is None else among[number].mean())
    if not within:
        return np.full((cost_map.num_costs, cost_map.num_atoms), np.inf)
    relative = np.array(weight) / max(weight)
    total: Array = np.sum(within * relative[:, None, None], axis=0)
    share: Array = total / (relative.sum() + 1)
    return share


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


def float32(value: Array) -> torch.Tensor:
    """In the graphs' precision, so that equal costs stay equal."""
    return torch.from_numpy(value.astype(np.float32))
