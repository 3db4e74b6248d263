"""The M-step: KL in closed form, a likelihood whose scale is not K's, and trust regions that adapt."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from cvpo.mstep import TrustRegion, gaussian_kl, interpolate, weighted_likelihood
from cvpo.networks import GaussianPolicy


def gaussians(seed: int, B: int = 5, A: int = 3) -> tuple[Tensor, Tensor]:  # noqa: N803
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(B, A, generator=generator, dtype=torch.float64)
    return mean, 0.2 + torch.rand(B, A, generator=generator, dtype=torch.float64)


def torch_kl(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    kl: Tensor = kl_divergence(Independent(Normal(*old), 1), Independent(Normal(*new), 1))
    return kl


def test_the_two_parts_are_the_kl_of_a_mean_alone_and_of_a_covariance_alone() -> None:
    (old_mean, old_sd), (mean, sd) = gaussians(0), gaussians(1)
    kl_mean, kl_covariance = gaussian_kl(old_mean, old_sd, mean, sd)
    torch.testing.assert_close(kl_mean, torch_kl((old_mean, old_sd), (mean, old_sd)))
    torch.testing.assert_close(kl_covariance, torch_kl((old_mean, old_sd), (old_mean, sd)))


def test_the_kl_has_the_direction_old_to_new() -> None:
    # One dimension, old N(0, 1), new N(1, 2): ½·1² and ½(1/4 − 1 + log 4).
    one, zero, two = torch.ones(1, 1), torch.zeros(1, 1), torch.full((1, 1), 2.0)
    kl_mean, kl_covariance = gaussian_kl(zero, one, one, two)
    assert kl_mean.item() == pytest.approx(0.5)
    assert kl_covariance.item() == pytest.approx(0.5 * (0.25 - 1 + math.log(4)))


def test_the_kl_of_a_policy_to_itself_is_zero() -> None:
    mean, sd = gaussians(0)
    for part in gaussian_kl(mean, sd, mean, sd):
        torch.testing.assert_close(part, torch.zeros(5, dtype=torch.float64))


def likelihood_of_shift(weights: Tensor, sample: Tensor, shift: float, factor: float) -> float:
    """Change of the weighted likelihood when the mean moves by `shift` and the deviation by `factor`."""
    B, _, A = sample.shape
    mean, sd = torch.zeros(B, A, dtype=sample.dtype), torch.ones(B, A, dtype=sample.dtype)
    values = [
        weighted_likelihood(weights, sample, mean, sd, m, s) for m, s in ((mean + shift, sd * factor), (mean, sd))
    ]
    return (values[0] - values[1]).mean().item()


def test_the_scale_does_not_depend_on_the_number_of_samples() -> None:
    # The same weighted samples, each listed three times with a third of its weight.
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4, 8, 2, generator=generator, dtype=torch.float64)
    weights = torch.softmax(torch.randn(4, 8, generator=generator, dtype=torch.float64), 1)
    one = likelihood_of_shift(weights, sample, 0.3, 1.2)
    three = likelihood_of_shift(weights.repeat(1, 3) / 3, sample.repeat(1, 3, 1), 0.3, 1.2)
    assert three == pytest.approx(one, rel=1e-12)


def test_the_likelihood_is_that_of_a_gaussian_under_each_old_part() -> None:
    generator = torch.Generator().manual_seed(0)
    (old_mean, old_sd), (mean, sd) = gaussians(0), gaussians(1)
    sample = torch.randn(5, 7, 3, generator=generator, dtype=torch.float64)
    weights = torch.softmax(torch.randn(5, 7, generator=generator, dtype=torch.float64), 1)

    def expected(mean: Tensor, sd: Tensor) -> Any:
        by_mean = Normal(mean.unsqueeze(1), old_sd.unsqueeze(1)).log_prob(sample).sum(-1)  # type: ignore[no-untyped-call]
        by_sd = Normal(old_mean.unsqueeze(1), sd.unsqueeze(1)).log_prob(sample).sum(-1)  # type: ignore[no-untyped-call]
        return (weights * (by_mean + by_sd)).sum(1)

    got = weighted_likelihood(weights, sample, old_mean, old_sd, mean, sd)
    base = weighted_likelihood(weights, sample, old_mean, old_sd, old_mean, old_sd)
    torch.testing.assert_close(got - base, expected(mean, sd) - expected(old_mean, old_sd))


def test_the_best_fit_has_the_weighted_mean_and_the_weighted_spread_about_the_old_mean() -> None:
    sample = torch.tensor([[[-1.0], [0.5], [2.0]]], dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    old_mean, old_sd = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    mean = torch.full((1, 1), 0.95, dtype=torch.float64, requires_grad=True)  # -0.2 + 0.15 + 1.0
    spread = math.sqrt(0.2 * 1 + 0.3 * 0.25 + 0.5 * 4)
    sd = torch.full((1, 1), spread, dtype=torch.float64, requires_grad=True)
    weighted_likelihood(weights, sample, old_mean, old_sd, mean, sd).mean().backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert sd.grad is not None
    assert mean.grad.item() == pytest.approx(0, abs=1e-12)
    assert sd.grad.item() == pytest.approx(0, abs=1e-12)


# Trust regions.


def test_the_multiplier_rises_above_the_bound_and_falls_below_it() -> None:
    region = TrustRegion(0.01)
    assert region.multiplier == 1
    assert region.adapted(0.02).log_multiplier == pytest.approx(0.2 * math.log(2))
    assert region.adapted(0.005).log_multiplier == pytest.approx(-0.2 * math.log(2))
    assert region.adapted(0.01) == region


def test_one_period_moves_the_multiplier_by_a_bounded_step() -> None:
    region = TrustRegion(0.01)
    assert region.adapted(1e6).log_multiplier == pytest.approx(0.2)
    assert region.adapted(0.0).log_multiplier == pytest.approx(-0.2)


def test_a_slack_bound_does_not_wind_the_multiplier_down_for_ever() -> None:
    region = TrustRegion(0.01)
    for _ in range(100):
        region = region.adapted(0.0)
    assert region.log_multiplier == -2
    assert region.adapted(1.0).log_multiplier == pytest.approx(-1.8)


@pytest.mark.parametrize(("kl", "kept"), [(0.0, 1), (0.02, 1), (0.04, math.sqrt(0.5)), (2.0, 0.1)])
def test_a_step_is_pulled_back_only_beyond_twice_the_bound(kl: float, kept: float) -> None:
    assert TrustRegion(0.01).pull_back(kl) == pytest.approx(kept)


def test_interpolation_keeps_that_share_of_the_way() -> None:
    old, new = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = [0.75 * a + 0.25 * b for a, b in zip(old.parameters(), new.parameters(), strict=True)]
    before = [parameter.clone() for parameter in old.parameters()]
    interpolate(old, new, 0.25)
    for parameter, value in zip(new.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)
    for parameter, value in zip(old.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, value)


def test_a_policy_pulled_back_ends_near_twice_the_bound() -> None:
    torch.manual_seed(0)
    old, new = GaussianPolicy(3, 2, 16), GaussianPolicy(3, 2, 16)
    new.load_state_dict(old.state_dict())
    observation = torch.randn(64, 3)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        achieved = gaussian_kl(*old(observation), *new(observation))[0].mean().item()
        region = TrustRegion(achieved / 20)
        interpolate(old, new, region.pull_back(achieved))
        left = gaussian_kl(*old(observation), *new(observation))[0].mean().item()
    assert left == pytest.approx(2 * region.bound, rel=0.5)
