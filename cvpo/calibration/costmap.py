"""From a forecast to statements about the cost of the next steps: the map inside both graphs."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvpo.bundle import Constraint

BELOW_EVERY_FORECAST = -1.0  # a forecast is never negative, so a ramp that ends here has always ended
LARGEST_COST_VALUE = 1e9  # up to here the uncalibrated map is linear


class CostPrediction(NamedTuple):
    """What is predicted of the undiscounted cost of the next `steps_left` steps, [N, C, K] each."""

    cost_to_go: Tensor
    """Its mean, environment cost units."""
    cost_upper: Tensor
    """A bound that it stays within with the stated confidence; +inf where the evidence supports none."""
    violation_probability: Tensor
    """Of the event that it exceeds `cost_allowed`; 0 where that is +inf, 1 where it is negative or NaN."""


class CostMap(nn.Module):
    """A predictive distribution of the cost of the next steps, tabled over steps left and a forecast.

    Atoms (possible costs, ascending) and the mean are piecewise linear in both: sums of clipped ramps, so that a cost
    that is the same at neighbouring nodes comes out exactly. How much probability lies at or below atom m depends on
    the cell of steps left alone and is what calibration measures; the rest lies at infinity.
    """

    horizon_lower: Tensor  # [H]
    horizon_width: Tensor  # [H]
    node_lower: Tensor  # [C, 1, B]
    node_width: Tensor  # [C, 1, B]
    table: Tensor  # [H, C·B·(M + 1)], increments along H and B of the atoms, then the mean
    tail: Tensor  # [H + 1, C, M + 1], probability beyond the first m atoms
    choosing_tail: Tensor  # the same, as a shield chooses by it: `tail` of before any shield was calibrated
    bound: Tensor  # [H + 1, C, M], 0 up to the atom that is the bound and -inf after it; all +inf: no bound

    def __init__(
        self,
        horizons: NDArray[np.int64],
        nodes: NDArray[np.float64],
        atoms: NDArray[np.float64],
        mean: NDArray[np.float64],
        covered: NDArray[np.float64],
        confidence: float,
    ) -> None:
        """Lay the tables out for evaluation.

        Args:
            horizons: steps at which atoms and mean are given, [H], ascending, the first at least 1; at 0 both are 0.
                A number of steps beyond the last is answered like the last.
            nodes: forecasts at which they are given, [C, B], ascending, not negative.
            atoms: [C, H, B, M], ascending along H and M.
            mean: [C, H, B].
            covered: probability that the cost is at most atom m, [C, H, M], ascending along M.
                Row h speaks of more steps than horizons[h - 1], up to horizons[h].
            confidence: of `cost_upper`.
        """
        super().__init__()
        C, H, B, M = atoms.shape
        self.num_costs, self.num_nodes, self.num_atoms = C, B, M
        values = np.concatenate([atoms, mean[..., None]], axis=-1)
        increments = np.diff(np.diff(values, axis=1, prepend=0), axis=2, prepend=0)  # [C, H, B, M + 1]
        horizon_lower = np.concatenate([[0], horizons[:-1]])
        ahead = np.full((C, 1), BELOW_EVERY_FORECAST)
        node_lower = np.concatenate([ahead - 1, nodes[:, :-1]], axis=1)
        node_upper = np.concatenate([ahead, nodes[:, 1:]], axis=1)
        for name, value in {
            "horizon_lower": horizon_lower,
            "horizon_width": horizons - horizon_lower,
            "node_lower": node_lower[:, None],
            "node_width": (node_upper - node_lower)[:, None],
            "table": increments.transpose(1, 0, 2, 3).reshape(H, -1),
        }.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self._set_covered(covered, confidence)

    def also_covering(self, covered: NDArray[np.float64], shielded: bool) -> "CostMap":
        """The map of which every probability holds as `covered` has it, too, [C, H, M]: of each the lesser.

        Where that is of shielded episodes, what a shield chooses by stays: by another choice they would be others.
        """
        other = copy.deepcopy(self)
        other._set_covered(np.minimum(self.covered, covered), self.confidence)
        if shielded:
            other.choosing_tail = self.choosing_tail
        return other

    def _set_covered(self, covered: NDArray[np.float64], confidence: float) -> None:
        self.covered, self.confidence = covered, confidence
        C, H, M = covered.shape
        tail = np.ones((H + 1, C, M + 1))  # row 0, for no steps left, is never asked for
        tail[1:, :, 1:] = 1 - covered.transpose(1, 0, 2)
        enough = covered.transpose(1, 0, 2) >= confidence - 1e-9  # 9 of 10 is 0.9
        bound = np.full((H + 1, C, M), np.inf)
        bound[1:] = np.where(np.cumsum(enough, axis=-1) <= 1, 0.0, -np.inf)
        bound[1:][~enough.any(axis=-1)] = np.inf
        for name in ("tail", "choosing_tail"):
            self.register_buffer(name, torch.as_tensor(tail, dtype=torch.float32))
        self.register_buffer("bound", torch.as_tensor(bound, dtype=torch.float32))

    def forward(self, forecast: Tensor, steps_left: Tensor, cost_allowed: Tensor) -> CostPrediction:
        """Predict the cost of the next steps.

        Args:
            forecast: of K actions, [N, C, K], not negative.
            steps_left: [N] int64, at least 1.
            cost_allowed: [N, C], undiscounted; +inf: unconstrained.
        """
        atoms, cost_to_go = self.atoms(forecast, steps_left)
        cost_upper = (atoms + self.bound[self._cell(steps_left)].unsqueeze(2)).amax(-1)
        return CostPrediction(cost_to_go, cost_upper, self._beyond(self.tail, atoms, steps_left, cost_allowed))

    def choosing_probability(self, forecast: Tensor, steps_left: Tensor, cost_allowed: Tensor) -> Tensor:
        """The violation probability that a shield chooses by, [N, C, K]; for the arguments see `forward`."""
        atoms, _ = self.atoms(forecast, steps_left)
        return self._beyond(self.choosing_tail, atoms, steps_left, cost_allowed)

    def _beyond(self, tail: Tensor, atoms: Tensor, steps_left: Tensor, cost_allowed: Tensor) -> Tensor:
        """Probability beyond what is allowed, [N, C, K]."""
        within = (atoms <= cost_allowed[..., None, None]).sum(-1)
        probability = torch.gather(tail[self._cell(steps_left)], 2, within)
        return torch.where((cost_allowed == torch.inf).unsqueeze(-1), 0.0, probability)

    def _cell(self, steps_left: Tensor) -> Tensor:
        """Rows of `tail` and `bound`, [N]."""
        return (steps_left[:, None] > self.horizon_lower).sum(-1)

    def atoms(self, forecast: Tensor, steps_left: Tensor) -> tuple[Tensor, Tensor]:
        """The possible costs, [N, C, K, M], and their mean, [N, C, K]."""
        along_horizon = ((steps_left[:, None] - self.horizon_lower) / self.horizon_width).clamp(0, 1)
        along_nodes = ((forecast.unsqueeze(-1) - self.node_lower) / self.node_width).clamp(0, 1)
        table = (along_horizon @ self.table).view(-1, self.num_costs, self.num_nodes, self.num_atoms + 1)
        values = along_nodes @ table
        return values[..., :-1], values[..., -1]


def uncalibrated_map(constraints: Sequence[Constraint]) -> CostMap:
    """The map of a policy that nothing was measured of: it says so by no bound and a certain violation.

    Its forecast is the cost value itself. Only `cost_to_go` carries information: cost spread evenly over an episode of
    T steps, the assumption behind `Constraint.threshold`, makes cost_value · (1 − γ)/(1 − γ^T) a cost per step.
    """
    C = len(constraints)
    T = constraints[0].horizon_steps
    per_step = np.array([(1 - c.discount) / (1 - c.discount**T) for c in constraints])
    nodes = np.tile([0.0, LARGEST_COST_VALUE], (C, 1))
    mean = (T * per_step[:, None] * nodes)[:, None]
    return CostMap(np.array([T]), nodes, np.zeros((C, 1, 2, 1)), mean, np.zeros((C, 1, 1)), confidence=1.0)
