"""The M-step: fit the policy to the E-step's weights inside decoupled trust regions for its mean and covariance."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cvpo.learning.gaussian import Gaussian


def gaussian_kl(old: Gaussian, new: Gaussian) -> tuple[Tensor, Tensor]:
    """KL(old || new), split in the part of the mean and that of the covariance, [B] each.

    KL_mean = ½ (μ − μ_o)ᵀ Σ_o⁻¹ (μ − μ_o), KL_covariance = ½ [tr(Σ⁻¹ Σ_o) − A + log |Σ|/|Σ_o|], as in Liu et al., 2022,
    M-step (after Abdolmaleki et al., 2018). Both have a diagonal covariance, or both a full one.
    """
    mean_part = 0.5 * old.whiten(new.mean - old.mean).square().sum(-1)
    ratio = new.whiten(old.scale)  # L⁻¹ L_o, whose squares sum up to the trace
    if new.diagonal:
        variance_ratio = ratio.square()
        return mean_part, 0.5 * (variance_ratio - 1 - variance_ratio.log()).sum(-1)
    variance_ratio = ratio.diagonal(dim1=-2, dim2=-1).square()
    below = ratio.tril(-1).square().sum((1, 2))
    return mean_part, 0.5 * ((variance_ratio - 1 - variance_ratio.log()).sum(-1) + below)


def weighted_likelihood(weights: Tensor, sample: Tensor, old: Gaussian, new: Gaussian) -> Tensor:
    """sum_a w(a|s) log π(a|s) of each state, with mean and covariance decoupled.

    The new mean is judged under the old covariance and the other way round, so that neither moves to excuse the other.
    A state's weights sum to 1, so the scale does not depend on K. Of the samples, only their first two moments under
    the weights matter.

    Args:
        weights: [B, K], rows sum to 1.
        sample: u, [B, K, A].
        old, new: both with a diagonal covariance, or both with a full one.

    Returns:
        [B]; constants are left out.
    """
    deviation = sample - old.mean.unsqueeze(1)
    shift = torch.einsum("bk,bka->ba", weights, deviation)  # E_q[u] − μ_o
    if new.diagonal:
        root = torch.einsum("bk,bka->ba", weights, deviation.square()).sqrt()
    else:
        root = (weights.sqrt().unsqueeze(-1) * deviation).mT  # root·rootᵀ = E_q[(u − μ_o)(u − μ_o)ᵀ]
    by_mean = old.whiten(new.mean - old.mean - shift).square().sum(-1)
    by_covariance = new.whiten(root).square().flatten(1).sum(-1) + 2 * new.log_determinant()
    return -0.5 * (by_mean + by_covariance)


@dataclass(frozen=True)
class TrustRegion:
    """Bound on one part of the KL, and its multiplier, adapted once a period by the KL that was achieved."""

    bound: float  # nats
    log_multiplier: float = 0.0

    RATE = 0.2
    FLOOR = -2.0

    @property
    def multiplier(self) -> float:
        return math.exp(self.log_multiplier)

    def adapted(self, kl: float) -> "TrustRegion":
        """Raise or lower the multiplier by the achieved KL; dual ascent on its logarithm, a bounded step a period."""
        step = min(max(math.log(max(kl, 1e-12) / self.bound), -1.0), 1.0)
        return TrustRegion(self.bound, max(self.log_multiplier + self.RATE * step, self.FLOOR))

    def pull_back(self, kl: float) -> float:
        """Share of the parameters' way to keep: 1, or less when the KL ended over twice its bound.

        KL grows with the square of the way, so sqrt(2·bound/KL) of it ends near twice the bound.
        """
        return 1.0 if kl <= 2 * self.bound else math.sqrt(2 * self.bound / kl)


@torch.no_grad()
def interpolate(old: torch.nn.Module, new: torch.nn.Module, share: float) -> None:
    """Set the parameters of `new` to old + share·(new − old)."""
    for old_parameter, parameter in zip(old.parameters(), new.parameters(), strict=True):
        parameter.lerp_(old_parameter, 1 - share)
