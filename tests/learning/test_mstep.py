"""The M-step's parts: a likelihood whose scale is not K's, and trust regions that adapt. See also tests/theory."""

import math

import pytest
import torch
from torch import Tensor

from cvpo.learning.gaussian import Gaussian
from cvpo.learning.mstep import TrustRegion, gaussian_kl, interpolate, weighted_likelihood
from cvpo.learning.networks import GaussianPolicy


def likelihood_of_shift(weights: Tensor, sample: Tensor, shift: float, factor: float, full: bool) -> float:
    """Change of the weighted likelihood when the mean moves by `shift` and the deviation by `factor`."""
    B, _, A = sample.shape
    mean = torch.zeros(B, A, dtype=sample.dtype)
    scale = torch.eye(A, dtype=sample.dtype).expand(B, A, A) if full else torch.ones_like(mean)
    old, new = Gaussian(mean, scale), Gaussian(mean + shift, scale * factor)
    change = weighted_likelihood(weights, sample, old, new) - weighted_likelihood(weights, sample, old, old)
    return change.mean().item()


@pytest.mark.parametrize("full", [False, True])
def test_the_scale_does_not_depend_on_the_number_of_samples(full: bool) -> None:
    # The same weighted samples, each listed three times with a third of its weight.
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4, 8, 2, generator=generator, dtype=torch.float64)
    weights = torch.softmax(torch.randn(4, 8, generator=generator, dtype=torch.float64), 1)
    one = likelihood_of_shift(weights, sample, 0.3, 1.2, full)
    three = likelihood_of_shift(weights.repeat(1, 3) / 3, sample.repeat(1, 3, 1), 0.3, 1.2, full)
    assert three == pytest.approx(one, rel=1e-12)


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
        achieved = gaussian_kl(old(observation), new(observation))[0].mean().item()
        region = TrustRegion(achieved / 20)
        interpolate(old, new, region.pull_back(achieved))
        left = gaussian_kl(old(observation), new(observation))[0].mean().item()
    assert left == pytest.approx(2 * region.bound, rel=0.5)
