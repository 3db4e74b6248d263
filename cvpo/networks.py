"""The modules that learn: observation normalizer, Gaussian policy, and the stack of reward and cost critics."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn

from cvpo.config import NetworkConfig

VARIANCE_FLOOR = 1e-8  # added to the variance of each observation, so that a constant one divides by something
NORMALIZED_BOUND = 10.0  # normalized observations are clipped here
MIN_STANDARD_DEVIATION = 1e-3  # of the policy, before tanh


class Normalizer(nn.Module):
    """Running mean and variance of the observations; part of the model, saved and exported with it."""

    mean: Tensor
    variance: Tensor
    count: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, observation_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation_size))
        self.register_buffer("variance", torch.ones(observation_size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("low", torch.full((observation_size,), math.inf))
        self.register_buffer("high", torch.full((observation_size,), -math.inf))

    @torch.no_grad()
    def update(self, observation: Tensor) -> None:
        """Take in observations [B, O] (Chan, Golub and LeVeque's pairwise update)."""
        count = observation.shape[0]
        total = self.count + count
        mean, variance = observation.mean(0), observation.var(0, correction=0)
        share = (count / total).float()
        delta = mean - self.mean
        self.variance.copy_(self.variance * (1 - share) + variance * share + delta**2 * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)
        torch.minimum(self.low, observation.amin(0), out=self.low)
        torch.maximum(self.high, observation.amax(0), out=self.high)

    def forward(self, observation: Tensor) -> Tensor:
        """Normalize observations [B, O]."""
        scale = torch.rsqrt(self.variance + VARIANCE_FLOOR)
        return ((observation - self.mean) * scale).clamp(-NORMALIZED_BOUND, NORMALIZED_BOUND)


class GaussianPolicy(nn.Module):
    """Diagonal Gaussian over u [A]; the action is tanh(u), in [-1, 1].

    The E-step and the M-step both speak of u, so that a saturated action does not hold the mean back.
    """

    def __init__(
        self, observation_size: int, action_size: int, hidden: int, initial_standard_deviation: float = 0.6
    ) -> None:
        super().__init__()
        self.first = nn.Linear(observation_size, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.mean = nn.Linear(hidden, action_size)
        self.spread = nn.Linear(hidden, action_size)
        nn.init.uniform_(self.mean.weight, -1e-3, 1e-3)
        nn.init.zeros_(self.mean.bias)
        nn.init.uniform_(self.spread.weight, -1e-3, 1e-3)
        nn.init.constant_(self.spread.bias, math.log(math.expm1(initial_standard_deviation)))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of u, [B, A] each, for normalized observations [B, O]."""
        hidden = _norm_relu(self.second(_norm_relu(self.first(observation))))
        return self.mean(hidden), F.softplus(self.spread(hidden)) + MIN_STANDARD_DEVIATION


class Critics(nn.Module):
    """Reward and cost critics as one stack of E MLPs that share nothing but the matrix products.

    The observation's part of the first layer is computed once per state and shared by its K actions. Each layer is
    layer-normalized without parameters of its own; weights are centred over their outputs first, so that the outputs'
    mean is zero and only their scale is left to normalize: the same result, and a quarter of the time at K = 16.
    Cost critics end in a softplus: an expected discounted cost is never negative.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        num_costs: int,
        hidden: int,
        reward_heads: int = 1,
        cost_heads: int = 1,
    ) -> None:
        super().__init__()
        self.num_costs, self.reward_heads, self.cost_heads = num_costs, reward_heads, cost_heads
        members = reward_heads + cost_heads * num_costs
        inputs = observation_size + action_size
        self.observation_weight = _uniform((members, observation_size, hidden), inputs)
        self.action_weight = _uniform((members, action_size, hidden), inputs)
        self.first_bias = _uniform((members, 1, hidden), inputs)
        self.second_weight = _uniform((members, hidden, hidden), hidden)
        self.second_bias = _uniform((members, 1, hidden), hidden)
        self.output_weight = _uniform((members, hidden, 1), hidden)
        self.output_bias = nn.Parameter(torch.zeros(members, 1, 1))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Values of K actions per state.

        Args:
            observation: normalized, [B, O].
            action: in [-1, 1], [B, K, A].

        Returns:
            reward_value [reward_heads, B, K] and cost_value [cost_heads, B, K, C], discounted; cost in environment
            units, reward in the learner's scaled units.
        """
        B, K, A = action.shape
        E, H = self.first_bias.shape[0], self.first_bias.shape[2]
        state = torch.matmul(observation, _centred(self.observation_weight)) + _centred(self.first_bias)  # [E, B, H]
        first = torch.matmul(action.reshape(B * K, A), _centred(self.action_weight)).view(E, B, K, H)
        hidden = _rms_norm_relu(first + state.unsqueeze(2)).view(E, B * K, H)
        hidden = _rms_norm_relu(torch.baddbmm(_centred(self.second_bias), hidden, _centred(self.second_weight)))
        value = torch.baddbmm(self.output_bias, hidden, self.output_weight).view(E, B, K)
        reward_value = value[: self.reward_heads]
        cost_value = F.softplus(value[self.reward_heads :]).view(self.cost_heads, self.num_costs, B, K)
        return reward_value, cost_value.permute(0, 2, 3, 1)


class Model(nn.Module):
    """Everything an exported policy is made of: it maps raw observations to distributions and values."""

    def __init__(self, normalizer: Normalizer, policy: GaussianPolicy, critics: Critics) -> None:
        super().__init__()
        self.normalizer, self.policy, self.critics = normalizer, policy, critics

    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of u, [B, A] each, for raw observations [B, O]."""
        mean, standard_deviation = self.policy(self.normalizer(observation))
        return mean, standard_deviation

    def values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Values of actions [B, K, A] in raw observations [B, O]: reward [B, K] and cost [B, K, C].

        Heads are averaged: their minimum would be optimistic about danger.
        """
        reward_value, cost_value = self.critics(self.normalizer(observation), action)
        return reward_value.mean(0), cost_value.mean(0)


def build_model(network: NetworkConfig, observation_size: int, action_size: int, num_costs: int) -> Model:
    """A model with fresh parameters, from torch's global generator."""
    return Model(
        Normalizer(observation_size),
        GaussianPolicy(observation_size, action_size, network.hidden),
        Critics(observation_size, action_size, num_costs, network.hidden, network.reward_heads, network.cost_heads),
    )


def _norm_relu(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]).relu_()


def _rms_norm_relu(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-5).relu_()


def _centred(weight: Tensor) -> Tensor:
    return weight - weight.mean(-1, keepdim=True)


def _uniform(shape: tuple[int, ...], inputs: int) -> nn.Parameter:
    bound = 1 / math.sqrt(inputs)  # as nn.Linear
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
