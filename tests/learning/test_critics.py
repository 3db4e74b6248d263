"""Critic targets, loss and the slow copy."""

import numpy as np
import pytest
import torch

from cvpo.learning.critics import bootstrap_target, critic_loss, follow


def test_the_target_adds_the_discounted_value_of_what_follows() -> None:
    total, discount, value = torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.0]), torch.tensor([10.0, 10.0])
    torch.testing.assert_close(bootstrap_target(total, discount, value), torch.tensor([10.0, 1.0]))


def test_cost_targets_are_made_as_reward_targets_one_per_constraint() -> None:
    total, value = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    target = bootstrap_target(total, torch.tensor([[0.5, 0.25], [0.0, 1.0]]), value)
    torch.testing.assert_close(target, torch.tensor([[6.0, 7.0], [3.0, 44.0]]))


def test_the_loss_is_a_mean_over_states_summed_over_heads_and_constraints() -> None:
    generator = torch.Generator().manual_seed(0)
    reward_value, reward_target = torch.randn(2, 7, generator=generator), torch.randn(7, generator=generator)
    cost_value, cost_target = torch.randn(3, 7, 2, generator=generator), torch.randn(7, 2, generator=generator)
    expected = sum(((head - reward_target) ** 2).mean() for head in reward_value)
    expected += sum(((head[:, c] - cost_target[:, c]) ** 2).mean() for head in cost_value for c in range(2))
    assert critic_loss(reward_value, reward_target, cost_value, cost_target).item() == pytest.approx(float(expected))


def test_the_target_follows_by_its_rate() -> None:
    source, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = [parameter.detach().numpy().copy() for parameter in target.parameters()]
    fixed = [parameter.detach().numpy().copy() for parameter in source.parameters()]
    follow(target, source, 0.1)
    for parameter, old, other in zip(target.parameters(), before, fixed, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), 0.9 * old + 0.1 * other, rtol=1e-6)
    for parameter, old in zip(source.parameters(), fixed, strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), old)
