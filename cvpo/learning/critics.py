"""Learning the critics: bootstrap values, targets, loss, and the slow copy that gives them."""

import torch
from torch import Tensor, nn


def bootstrap_target(total: Tensor, discount: Tensor, value: Tensor) -> Tensor:
    """n-step target: what was received, plus the discounted value of where it led.

    Args:
        total: discounted sum over the n steps, [B] or [B, C].
        discount: factor of the bootstrap value, of the same shape.
        value: V(s') of the policy that is judged: the mean over its actions, or that of its deterministic one. A mean
            over critic heads, [B] or [B, C], never the minimum: for a cost it would be optimistic about danger.
    """
    return total + discount * value


def critic_loss(reward_value: Tensor, reward_target: Tensor, cost_value: Tensor, cost_target: Tensor) -> Tensor:
    """Mean squared error over states, summed over heads and constraints.

    Args:
        reward_value: [reward_heads, B].
        reward_target: [B].
        cost_value: [cost_heads, B, C].
        cost_target: [B, C].
    """
    reward_loss = (reward_value - reward_target).square().mean(1).sum()
    cost_loss = (cost_value - cost_target).square().mean(1).sum()
    return reward_loss + cost_loss


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the target's parameters towards the source's by `rate` of their distance (Polyak averaging)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
