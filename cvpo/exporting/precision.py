"""Networks whose matrices are stored in fewer bits: how they are rounded, and how far that moves what they compute."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvpo.bundle import Precision, StoredWeights
from cvpo.errors import ExportError
from cvpo.learning.networks import Model

MOST_DIFFERENCE = 0.05  # of an action, in shares of its range, and of a value, in shares of the largest
LARGEST_INT8 = 127  # and -127: symmetric, so that zero stays zero


class Stored(NamedTuple):
    """A matrix as a graph stores it: `values` in fewer bits, times `scale` where it has one."""

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None

    def restored(self) -> NDArray[np.float32]:
        """The matrix in float32, which is what is computed with."""
        whole = self.values.astype(np.float32)
        return whole if self.scale is None else whole * self.scale


def store(matrix: NDArray[np.float32], precision: Precision, outputs: int | None = None) -> Stored:
    """Round a matrix to what is stored of it.

    int8 is for the matrices between two hidden layers, which have most of the weights; those of one unit that goes in
    share a scale. The others are then in float16: in int8 they move actions several times as much.

    Args:
        matrix: of any number of axes.
        precision: of the networks.
        outputs: the axis of the layer that follows, where the matrix is between hidden layers; None: it is not.
    """
    if precision == "int8" and outputs is not None:
        largest = np.abs(matrix).max(outputs, keepdims=True)
        scale = (np.where(largest > 0, largest, 1) / LARGEST_INT8).astype(np.float32)
        return Stored(np.rint(matrix / scale).astype(np.int8), scale)
    with np.errstate(over="ignore"):  # to infinity, which the comparison refuses
        return Stored(matrix.astype(np.float32 if precision == "float32" else np.float16))


def rounded(model: Model, precision: Precision) -> Model:
    """A copy of a model, whose matrices hold the values that are stored of them. Biases and normalizer stay."""
    narrow = copy.deepcopy(model)
    for part, outputs in ((narrow.policy, -2), (narrow.critics, -1)):
        for name, parameter in part.named_parameters():
            if name.endswith("weight"):
                hidden = name in ("second.weight", "second_weight")
                stored = store(parameter.detach().numpy(), precision, outputs if hidden else None)
                parameter.data = torch.from_numpy(stored.restored())
    return narrow


@torch.no_grad()
def compare(model: Model, narrow: Model, precision: Precision, observation: Tensor) -> StoredWeights:
    """How far a rounded model acts and values otherwise.

    Args:
        model: as it learned.
        narrow: as it is stored.
        precision: of its matrices.
        observation: real ones, [N, O]. At each, the deterministic action and a drawn one are compared, and the values
            of both.

    Raises:
        ExportError: by more than MOST_DIFFERENCE; says by how much.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(observation), 2, model.policy.mean.out_features, generator=generator)
    noise[:, 0] = 0
    action, moved = (each.distribution(observation).sample(noise).tanh() for each in (model, narrow))
    (reward, cost), (other_reward, other_cost) = (each.values(observation, action) for each in (model, narrow))
    differences = {
        "action": float((moved - action).abs().amax() / 2),
        "reward value": _share(other_reward.reshape(-1, 1), reward.reshape(-1, 1)),
        "cost value": _share(other_cost.flatten(0, 1), cost.flatten(0, 1)),
    }
    for name, difference in differences.items():
        if not difference <= MOST_DIFFERENCE:  # NaN is not
            raise ExportError(
                f"Stored in {precision}, the networks give another {name}: it differs from float32 by up to "
                f"{difference:.2%} of its {'range' if name == 'action' else 'largest'}, and {MOST_DIFFERENCE:.0%} is "
                "allowed. No bundle was written; export with another --precision."
            )
    return StoredWeights(
        precision=precision,
        action_difference=differences["action"],
        value_difference=max(differences["reward value"], differences["cost value"]),
        most_difference=MOST_DIFFERENCE,
    )


def _share(found: Tensor, expected: Tensor) -> float:
    """Largest difference of values [S, C], in shares of the largest value of their column."""
    return float(((found - expected).abs().amax(0) / expected.abs().amax(0).clamp(min=1e-30)).amax())
