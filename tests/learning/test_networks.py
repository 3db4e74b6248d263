"""The modules that learn: critics against plain networks, the normalizer against NumPy, the policy's start."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor

from cvpo.learning.config import NetworkConfig
from cvpo.learning.networks import Critics, GaussianPolicy, Model, Normalizer, build_model

B, K, S, A, C, H = 5, 4, 3, 2, 2, 8  # S: size of an observation


def critics(reward_heads: int = 2, cost_heads: int = 3) -> Critics:
    torch.manual_seed(0)
    made = Critics(S, A, C, H, reward_heads, cost_heads).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(B, S, generator=generator, dtype=torch.float64)
    return observation, torch.rand(B, K, A, generator=generator, dtype=torch.float64) * 2 - 1


def plain_member(stack: Critics, member: int, observation: Tensor, action: Tensor) -> Tensor:
    """One member as the MLP it stands for: [observation, action] -> 128 -> 128 -> 1, layer norm before each ReLU."""
    first = torch.cat([stack.observation_weight[member], stack.action_weight[member]])
    x = torch.cat([observation, action]) @ first + stack.first_bias[member, 0]
    x = F.layer_norm(x, (H,)).relu()
    x = F.layer_norm(x @ stack.second_weight[member] + stack.second_bias[member, 0], (H,)).relu()
    return (x @ stack.output_weight[member] + stack.output_bias[member, 0]).squeeze()


def test_sharing_the_first_layer_gives_the_plain_network_of_each_member() -> None:
    stack, (observation, action) = critics(), inputs()
    reward_value, cost_value = stack(observation, action)
    assert reward_value.shape == (2, B, K)
    assert cost_value.shape == (3, B, K, C)
    for b in range(B):
        for k in range(K):
            for head in range(2):
                expected = plain_member(stack, head, observation[b], action[b, k])
                torch.testing.assert_close(reward_value[head, b, k], expected)
            for head in range(3):
                for c in range(C):
                    expected = F.softplus(plain_member(stack, 2 + head * C + c, observation[b], action[b, k]))
                    torch.testing.assert_close(cost_value[head, b, k, c], expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_evaluating_without_gradients_gives_what_the_plain_forward_pass_gives(
    dtype: torch.dtype, tolerance: float
) -> None:
    stack, (observation, action) = critics().to(dtype), (tensor.to(dtype) for tensor in inputs())
    for fast, plain in zip(stack.evaluate(observation, action, dtype), stack(observation, action), strict=True):
        assert fast.shape == plain.shape
        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


def test_half_precision_stays_within_its_rounding() -> None:
    stack, (observation, action) = critics().float(), (tensor.float() for tensor in inputs())
    halved, plain = stack.evaluate(observation, action, torch.bfloat16), stack(observation, action)
    for fast, exact in zip(halved, plain, strict=True):
        torch.testing.assert_close(fast, exact, rtol=0.02, atol=0.02)  # bfloat16 has 8 bits: 0.004 per factor
        assert not torch.equal(fast, exact)


def test_a_cost_value_is_never_negative() -> None:
    stack, (observation, action) = critics(), inputs()
    with torch.no_grad():
        stack.output_bias.sub_(50.0)
        _, cost_value = stack(observation, action)
    assert (cost_value >= 0).all()
    assert cost_value.max() < 1e-9


def test_members_share_nothing() -> None:
    stack, (observation, action) = critics(1, 1), inputs()
    reward_value, _ = stack(observation, action)
    reward_value.sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1:].abs().sum() == 0


def test_heads_are_averaged_and_never_their_minimum() -> None:
    model = Model(Normalizer(S).double(), GaussianPolicy(S, A, H).double(), critics())
    observation, action = inputs()
    reward_heads, cost_heads = model.critics(observation, action)
    reward_value, cost_value = model.values(observation, action)
    torch.testing.assert_close(reward_value, sum(reward_heads) / 2, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cost_value, sum(cost_heads) / 3, rtol=1e-6, atol=1e-6)
    assert (cost_value > cost_heads.amin(0)).all()


def test_costs_are_read_at_their_measured_level() -> None:
    parts = Normalizer(S).double(), GaussianPolicy(S, A, H).double(), critics()
    factor = torch.linspace(0.5, 2.0, critics().num_costs).double()
    observation, action = inputs()
    reward_value, cost_value = Model(*parts, cost_factor=factor).values(observation, action)
    as_they_are = Model(*parts).values(observation, action)
    torch.testing.assert_close(reward_value, as_they_are[0])
    torch.testing.assert_close(cost_value, factor * as_they_are[1])


def test_the_normalizer_in_pieces_equals_numpy_on_the_whole() -> None:
    data = np.random.default_rng(0).normal([3.0, -100.0, 0.01], [2.0, 30.0, 0.001], (1000, 3))
    normalizer = Normalizer(3)
    for piece in np.split(data.astype(np.float32), [1, 6, 7, 300, 305, 900]):
        normalizer.update(torch.from_numpy(piece))
    np.testing.assert_allclose(normalizer.mean, data.mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.variance, data.var(0), rtol=1e-3)
    np.testing.assert_allclose(normalizer.low, data.min(0).astype(np.float32))
    np.testing.assert_allclose(normalizer.high, data.max(0).astype(np.float32))
    assert normalizer.count == 1000
    normalized = normalizer(torch.from_numpy(data.astype(np.float32))).numpy()
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(normalized.std(0), [1, 1, 0.995], atol=0.01)  # 0.001² is near the 1e-8 that is added


def test_many_small_updates_do_not_drift() -> None:
    data = np.random.default_rng(0).normal(5.0, 1.0, (20_000, 5, 1)).astype(np.float32)
    normalizer = Normalizer(1)
    for piece in data:
        normalizer.update(torch.from_numpy(piece))
    assert normalizer.mean.item() == pytest.approx(data.mean(dtype=np.float64), abs=1e-3)
    assert normalizer.variance.item() == pytest.approx(data.var(dtype=np.float64), rel=1e-3)


def test_normalized_observations_are_bounded_and_a_constant_one_is_zero() -> None:
    normalizer = Normalizer(2)
    normalizer.update(torch.tensor([[0.0, 7.0], [2.0, 7.0]]))
    torch.testing.assert_close(normalizer(torch.tensor([[1e9, 7.0]])), torch.tensor([[10.0, 0.0]]))


def test_a_fresh_normalizer_changes_nothing() -> None:
    observation = torch.tensor([[0.5, -2.0]])
    torch.testing.assert_close(Normalizer(2)(observation), observation)


def test_what_is_near_is_seen_by_its_distance_too() -> None:
    normalizer = Normalizer(3, (0, 2))
    seen = normalizer(torch.tensor([[0.0, 7.0, 0.98], [0.93, 7.0, 0.9]]))
    np.testing.assert_allclose(seen, [[0.0, 7.0, 0.98, 1 / 1.02, 10.0], [0.93, 7.0, 0.9, 10.0, 1 / 0.12]], rtol=1e-5)


def test_an_inverse_distance_has_a_mean_and_a_variance_of_its_own_and_is_finite_beyond_its_bounds() -> None:
    normalizer = Normalizer(1, (0,))
    observation = torch.tensor([[-3.0], [0.0], [1.0], [3.0]])
    normalizer.update(observation)
    assert (normalizer.low.tolist(), normalizer.high.tolist()) == ([-3.0], [3.0])
    inverse = np.array([1 / 1.02, 1 / 1.02, 50, 50])
    np.testing.assert_allclose(normalizer.mean, [0.25, inverse.mean()], rtol=1e-5)
    np.testing.assert_allclose(normalizer(observation)[:, 1], (inverse - inverse.mean()) / inverse.std(), rtol=1e-4)


def test_a_fresh_policy_is_centred_with_the_deviation_that_policies_begin_with() -> None:
    torch.manual_seed(0)
    mean, sd = GaussianPolicy(S, A, 32)(torch.randn(100, S))
    assert mean.abs().max() < 0.05
    assert (sd - 0.6).abs().max() < 0.02


def deviation(spread: float) -> Tensor:
    """Standard deviations where the network asks for `spread`, whatever it sees."""
    policy = GaussianPolicy(S, A, 8)
    with torch.no_grad():
        policy.spread.weight.zero_()
        policy.spread.bias.fill_(spread)
        found: Tensor = policy(torch.randn(4, S)).standard_deviation()
    return found


def test_the_deviation_stays_positive_and_bounded() -> None:
    assert (deviation(-1e3) >= 1e-3).all()
    assert (deviation(1e3) <= 4.001).all()
    # Up to 1 the bound is hardly felt: log(e − 1) gives a softplus of 1.
    np.testing.assert_allclose(deviation(float(np.log(np.e - 1))), 1.0, rtol=0.02)
    assert (deviation(3.0) > deviation(2.0)).all()


def test_a_full_covariance_adds_correlations_to_the_deviations() -> None:
    torch.manual_seed(0)
    full, observation = GaussianPolicy(S, 4, 8, "full"), torch.randn(6, S)
    scale = full(observation).scale
    assert scale.shape == (6, 4, 4)
    torch.testing.assert_close(scale, torch.diag_embed(torch.full((6, 4), 0.6)), atol=0.02, rtol=0)  # none at first
    assert full.correlation is not None
    with torch.no_grad():
        full.correlation.weight.normal_()
        full.spread.weight.normal_()
    diagonal = GaussianPolicy(S, 4, 8)
    diagonal.load_state_dict({n: value for n, value in full.state_dict().items() if "correlation" not in n})
    one, other = full(observation), diagonal(observation)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.standard_deviation(), other.scale)
    assert torch.equal(one.scale.triu(1), torch.zeros(6, 4, 4))
    assert (one.scale.diagonal(dim1=1, dim2=2) > 0).all()
    assert (one.scale.tril(-1).abs().amax((1, 2)) > 0.1).all()


def test_one_dimension_has_nothing_to_correlate_with() -> None:
    assert GaussianPolicy(S, 1, 8, "full")(torch.randn(4, S)).scale.shape == (4, 1)


def test_the_size_and_heads_of_a_model_are_those_of_its_config() -> None:
    model = build_model(NetworkConfig(hidden=16, reward_heads=2, cost_heads=3, covariance="full"), S, A, C)
    reward_heads, cost_heads = model.critics(torch.zeros(1, S), torch.zeros(1, 1, A))
    assert (reward_heads.shape, cost_heads.shape) == ((2, 1, 1), (3, 1, 1, C))
    assert model.policy.first.out_features == 16
    assert model.policy.correlation is not None
