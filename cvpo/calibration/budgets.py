"""Episodes with budgets, as the service asks about them: what is left to spend, over the steps that are left."""

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo.bundle import Constraint
from cvpo.calibration.conformal import float32
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast_fit import ForecastEpisode
from cvpo.calibration.sessions import Session, crossing

Array = NDArray[np.float64]

# Of the limit, log-uniform from a quarter to twice: alarm levels must serve sessions that may spend less or more.
BUDGETS = 0.25 * 8 ** ((np.arange(21) + 0.5) / 21)
LIMIT_ALONE = np.ones(1)  # of the limit: what most sessions may spend, and what shielded episodes were rolled out with


def sessions(
    cost_map: CostMap, episode: ForecastEpisode, constraint: Constraint, index: int, budgets: Array = BUDGETS
) -> list[Session]:
    """The episode with each budget, a share of the limit, asked as the service asks: what is left, over the steps left.

    None without a limit.
    """
    if constraint.cost_limit is None:
        return []
    return budget_sessions(cost_map, episode, constraint, index, constraint.cost_limit * budgets)


def budget_sessions(
    cost_map: CostMap, episode: ForecastEpisode, constraint: Constraint, index: int, budgets: Array
) -> list[Session]:
    """The episode with each of some budgets, in the environment's cost units.

    Args:
        cost_map: says the probabilities.
        episode: of L steps.
        constraint: the one that is limited.
        index: its place among the costs.
        budgets: for the episode.
    """
    cost = episode.cost[:, index]
    steps = constraint.horizon_steps - np.arange(len(cost))
    forecast = float32(episode.forecast(steps)).unsqueeze(-1)  # [L, C, 1]
    cut = len(cost) < constraint.horizon_steps and not episode.terminated
    found = []
    for budget in budgets:
        allowed = torch.full(forecast.shape[:2], torch.inf)
        allowed[:, index] = float32(budget - (cost.cumsum() - cost))
        probability = cost_map(forecast, torch.from_numpy(steps), allowed).violation_probability[:, index, 0]
        found.append(Session(np.asarray(probability.double()), crossing(cost, budget), cut))
    return found
