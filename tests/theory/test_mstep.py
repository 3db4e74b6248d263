"""The M-step: KL in its two parts, and a likelihood of q (the ELBO's part that the policy decides) that never falls."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from cvpo.learning import learner
from cvpo.learning.gaussian import Gaussian
from cvpo.learning.mstep import gaussian_kl, weighted_likelihood
from tests.small_learners import config, create, one_step_batch

B, K, A = 5, 7, 3
covariances = pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
seeds = st.integers(0, 2**32 - 1)


def gaussian(seed: int, full: bool, spread: float = 1.0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(B, A, generator=generator, dtype=torch.float64)
    scale = torch.diag_embed(0.2 + torch.rand(B, A, generator=generator, dtype=torch.float64))
    if not full:
        return Gaussian(mean, spread * scale.diagonal(dim1=1, dim2=2))
    below = torch.randn(B, A, A, generator=generator, dtype=torch.float64).tril(-1)
    return Gaussian(mean, spread * (scale + 0.5 * below))


def torch_gaussian(mean: Tensor, scale: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mean, scale_tril=torch.diag_embed(scale) if scale.dim() == 2 else scale)


def weighted_samples(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(B, K, A, generator=generator, dtype=torch.float64)
    return torch.softmax(torch.randn(B, K, generator=generator, dtype=torch.float64), 1), sample


def log_likelihood(weights: Tensor, sample: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """sum_a w log π, [B], as torch has it."""
    each: Tensor = torch_gaussian(mean, scale).log_prob(sample.transpose(0, 1))  # type: ignore[no-untyped-call]
    return (weights * each.T).sum(1)


# The KL.


@covariances
def test_the_two_parts_are_the_kl_of_a_mean_alone_and_of_a_covariance_alone(full: bool) -> None:
    old, new = gaussian(0, full), gaussian(1, full)
    kl_mean, kl_covariance = gaussian_kl(old, new)
    base = torch_gaussian(*old)
    torch.testing.assert_close(kl_mean, kl_divergence(base, torch_gaussian(new.mean, old.scale)))
    torch.testing.assert_close(kl_covariance, kl_divergence(base, torch_gaussian(old.mean, new.scale)))


def test_the_kl_has_the_direction_old_to_new() -> None:
    # One dimension, old N(0, 1), new N(1, 2): ½·1² and ½(1/4 − 1 + log 4).
    old = Gaussian(torch.zeros(1, 1), torch.ones(1, 1))
    new = Gaussian(torch.ones(1, 1), torch.full((1, 1), 2.0))
    for pair in ((old, new), (Gaussian(old.mean, old.scale[..., None]), Gaussian(new.mean, new.scale[..., None]))):
        kl_mean, kl_covariance = gaussian_kl(*pair)
        assert kl_mean.item() == pytest.approx(0.5)
        assert kl_covariance.item() == pytest.approx(0.5 * (0.25 - 1 + math.log(4)))


@covariances
def test_the_old_policy_is_always_inside_the_trust_region(full: bool) -> None:
    old = gaussian(0, full)
    for part in gaussian_kl(old, old):
        torch.testing.assert_close(part, torch.zeros(B, dtype=torch.float64))


@given(seeds, seeds, st.booleans(), st.floats(0.1, 10))
def test_neither_part_is_negative(one: int, other: int, full: bool, spread: float) -> None:
    for part in gaussian_kl(gaussian(one, full), gaussian(other, full, spread)):
        assert (part >= -1e-12).all()


def test_a_full_covariance_without_correlation_is_a_diagonal_one() -> None:
    diagonal = [gaussian(seed, full=False) for seed in (0, 1)]
    full = [Gaussian(one.mean, torch.diag_embed(one.scale)) for one in diagonal]
    weights, sample = weighted_samples(0)
    for left, right in zip(gaussian_kl(*diagonal), gaussian_kl(*full), strict=True):
        torch.testing.assert_close(left, right)
    torch.testing.assert_close(
        weighted_likelihood(weights, sample, *diagonal), weighted_likelihood(weights, sample, *full)
    )
    torch.testing.assert_close(diagonal[0].sample(sample), full[0].sample(sample))
    torch.testing.assert_close(diagonal[0].standard_deviation(), full[0].standard_deviation())


@covariances
def test_samples_have_the_mean_and_the_covariance_of_their_gaussian(full: bool) -> None:
    one = gaussian(0, full)
    noise = torch.randn(B, 200_000, A, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample = one.sample(noise)
    exact = torch_gaussian(*one)
    torch.testing.assert_close(one.standard_deviation(), exact.stddev)
    torch.testing.assert_close(sample.mean(1), one.mean, atol=0.02, rtol=0)
    for b in range(B):
        torch.testing.assert_close(sample[b].T.cov(), exact.covariance_matrix[b], atol=0.03, rtol=0)


# The likelihood.


@covariances
def test_the_likelihood_is_that_of_a_gaussian_under_each_old_part(full: bool) -> None:
    old, new = gaussian(0, full), gaussian(1, full)
    weights, sample = weighted_samples(0)
    got = weighted_likelihood(weights, sample, old, new) - weighted_likelihood(weights, sample, old, old)
    by_mean = log_likelihood(weights, sample, new.mean, old.scale)
    by_covariance = log_likelihood(weights, sample, old.mean, new.scale)
    torch.testing.assert_close(got, by_mean + by_covariance - 2 * log_likelihood(weights, sample, *old))


@covariances
def test_the_best_fit_has_the_weighted_mean_and_the_weighted_spread_about_the_old_mean(full: bool) -> None:
    weights, sample = weighted_samples(0)
    old = gaussian(0, full)
    deviation = sample - old.mean.unsqueeze(1)
    moment = torch.einsum("bk,bka,bkc->bac", weights, deviation, deviation)
    best_scale = torch.linalg.cholesky(moment) if full else moment.diagonal(dim1=1, dim2=2).sqrt()
    best = Gaussian((weights.unsqueeze(-1) * sample).sum(1), best_scale)
    best.mean.requires_grad_()
    best.scale.requires_grad_()
    weighted_likelihood(weights, sample, old, best).sum().backward()  # type: ignore[no-untyped-call]
    for value in best:
        assert value.grad is not None
        torch.testing.assert_close(value.grad.tril() if value.dim() == 3 else value.grad, torch.zeros_like(value))


@given(seeds, st.floats(0, 1), st.lists(st.floats(0, 1), min_size=A, max_size=A), st.booleans())
def test_a_step_that_improves_both_parts_improves_the_likelihood_of_both_together(
    seed: int, share: float, shares: list[float], full: bool
) -> None:
    # Mean and covariance are judged apart, but move together. On the way to the best fit of each part, the likelihood
    # of the new policy is never less than that of the old: Σ_j w log π(a_j|s) is the part of the ELBO that it decides.
    old = gaussian(seed, full)
    weights, sample = weighted_samples(seed + 1)
    deviation = sample - old.mean.unsqueeze(1)
    moment = torch.einsum("bk,bka,bkc->bac", weights, deviation, deviation)
    if full:
        covariance = old.scale @ old.scale.mT
        scale = torch.linalg.cholesky((1 - share) * covariance + share * moment)
    else:
        part = torch.tensor(shares, dtype=torch.float64)
        scale = ((1 - part) * old.scale.square() + part * moment.diagonal(dim1=1, dim2=2)).sqrt()
    new = Gaussian(old.mean + share * (weights.unsqueeze(-1) * deviation).sum(1), scale)
    before, after = log_likelihood(weights, sample, *old), log_likelihood(weights, sample, *new)
    assert (after >= before - 1e-9).all()


@covariances
@pytest.mark.parametrize("measured", [0.0, 1000.0])  # far below the limit of 10, and far above it
def test_the_likelihood_of_a_period_does_not_fall_in_the_learner(
    full: bool, measured: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(network={"covariance": "full" if full else "diagonal"})
    state = create(settings, action_size=2)
    seen: list[tuple[Tensor, Tensor, Gaussian]] = []

    def spy(weights: Tensor, sample: Tensor, old: Gaussian, new: Gaussian) -> Any:
        seen.append((weights, sample, old))
        return weighted_likelihood(weights, sample, old, new)

    monkeypatch.setattr(learner, "weighted_likelihood", spy)
    batch = one_step_batch(np.random.default_rng(0), action_size=2)
    observation = torch.from_numpy(batch.next_observation)
    rises = []
    for _ in range(5):
        seen.clear()
        for _ in range(settings.mstep.period):
            learner.update(state, batch, np.array([measured]), 0, settings)
        with torch.no_grad():
            new = state.behavior_policy(state.model.normalizer(observation))
            rise = [
                log_likelihood(weights.double(), sample.double(), new.mean.double(), new.scale.double())
                - log_likelihood(weights.double(), sample.double(), old.mean.double(), old.scale.double())
                for weights, sample, old in seen
            ]
        rises.append(torch.stack(rise).mean().item())
    assert min(rises) >= -1e-4
    assert max(rises) > 1e-3
