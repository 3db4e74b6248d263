"""Gaussians over u, what a policy is before tanh, with a diagonal or a full covariance."""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """One Gaussian for each of B states: mean + L·z, where z is standard normal and L Lᵀ is the covariance."""

    mean: Tensor  # [B, A]
    scale: Tensor  # L: its diagonal [B, A] where the covariance is diagonal, else a lower triangular [B, A, A]

    @property
    def diagonal(self) -> bool:
        """Whether the covariance is diagonal."""
        return self.scale.dim() == 2

    def sample(self, noise: Tensor) -> Tensor:
        """mean + L·noise, for standard normal noise [B, K, A]."""
        spread = self.scale.unsqueeze(1) * noise if self.diagonal else noise @ self.scale.mT
        return self.mean.unsqueeze(1) + spread

    def standard_deviation(self) -> Tensor:
        """Of each dimension, [B, A]."""
        if self.diagonal:
            return self.scale
        deviation: Tensor = torch.linalg.vector_norm(self.scale, dim=-1)
        return deviation

    def log_determinant(self) -> Tensor:
        """log |L|, half that of the covariance, [B]."""
        return (self.scale if self.diagonal else self.scale.diagonal(dim1=-2, dim2=-1)).log().sum(-1)

    def whiten(self, x: Tensor) -> Tensor:
        """L⁻¹ x, of a vector [B, A] or, where the covariance is full, also of a matrix [B, A, N]."""
        if self.diagonal:
            return x / self.scale
        columns = x.unsqueeze(-1) if x.dim() == 2 else x
        whitened: Tensor = torch.linalg.solve_triangular(self.scale, columns, upper=False)
        return whitened.squeeze(-1) if x.dim() == 2 else whitened
