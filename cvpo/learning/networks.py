"""The modules that learn: observation normalizer, Gaussian policy, and the stack of reward and cost critics."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn

from cvpo.learning.config import NetworkConfig
from cvpo.learning.gaussian import Gaussian

VARIANCE_FLOOR = 1e-8  # added to the variance of each feature, so that a constant one divides by something
NORMALIZED_BOUND = 10.0  # normalized features are clipped here
NEAREST = 0.02  # of a lidar's reach: distances are told apart down to this
NORM_EPSILON = 1e-5  # added to the variance of a layer: torch's default
MIN_STANDARD_DEVIATION = 1e-3  # of the policy, before tanh
INITIAL_STANDARD_DEVIATION = 0.6
MAX_SPREAD = 4.0  # the rest bends towards it: three in five actions are then within 4 % of their bounds


class Normalizer(nn.Module):
    """Running mean and variance of what the networks see; part of the model, saved and exported with it.

    They see the observation, and the inverse of the distance where it says how near something is. A lidar that reads
    0.93 at the edge of a hazard and 0.9 before it differs by a tenth of a standard deviation: too little to learn from.
    """

    mean: Tensor  # [F], as the next one
    variance: Tensor
    count: Tensor
    low: Tensor  # [O], as the next one
    high: Tensor

    def __init__(self, observation_size: int, closeness: Sequence[int] = ()) -> None:
        """Nothing seen yet.

        Args:
            observation_size: O.
            closeness: entries of the observation that say how near something is, from 0 to 1.
        """
        super().__init__()
        self.observation_size, self.closeness = observation_size, tuple(closeness)
        features = observation_size + len(self.closeness)  # F
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("low", torch.full((observation_size,), math.inf))
        self.register_buffer("high", torch.full((observation_size,), -math.inf))

    @torch.no_grad()
    def update(self, observation: Tensor) -> None:
        """Take in observations [B, O] (Chan, Golub and LeVeque's pairwise update)."""
        self.widen(observation)
        count = observation.shape[0]
        total = self.count + count
        features = self.features(observation)
        mean, variance = features.mean(0), features.var(0, correction=0)
        share = (count / total).float()
        delta = mean - self.mean
        self.variance.copy_(self.variance * (1 - share) + variance * share + delta**2 * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)

    @torch.no_grad()
    def widen(self, observation: Tensor) -> None:
        """Take in how low and how high observations [B, O] were, and nothing that the networks see."""
        torch.minimum(self.low, observation.amin(0), out=self.low)
        torch.maximum(self.high, observation.amax(0), out=self.high)

    def forward(self, observation: Tensor) -> Tensor:
        """What the networks see of observations [B, O]: [B, F]."""
        return self.standardize(observation).clamp(-NORMALIZED_BOUND, NORMALIZED_BOUND)

    def standardize(self, observation: Tensor) -> Tensor:
        """Features of observations [B, O] in standard deviations from the mean, however far, [B, F]."""
        return (self.features(observation) - self.mean) * torch.rsqrt(self.variance + VARIANCE_FLOOR)

    def features(self, observation: Tensor) -> Tensor:
        """Observations [..., O] and the inverse distances, [..., F]; where closeness is 1, that is 1/NEAREST."""
        if not self.closeness:
            return observation
        near = observation[..., list(self.closeness)].clamp(0, 1)
        return torch.cat([observation, 1 / (1 + NEAREST - near)], -1)


class GaussianPolicy(nn.Module):
    """Gaussian over u [A]; the action is tanh(u), in [-1, 1].

    The E-step and the M-step both speak of u, so that a saturated action does not hold the mean back. With a full
    covariance L is made of the standard deviations and of rows of length 1, which hold the correlations: what bounds
    one does not touch the other.
    """

    def __init__(
        self,
        features: int,
        action_size: int,
        hidden: int,
        covariance: Literal["diagonal", "full"] = "diagonal",
    ) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.mean = nn.Linear(hidden, action_size)
        self.spread = nn.Linear(hidden, action_size)
        pairs = action_size * (action_size - 1) // 2
        self.correlation = nn.Linear(hidden, pairs) if covariance == "full" and pairs else None
        nn.init.uniform_(self.mean.weight, -1e-3, 1e-3)
        nn.init.zeros_(self.mean.bias)
        nn.init.uniform_(self.spread.weight, -1e-3, 1e-3)
        nn.init.constant_(self.spread.bias, _inverse_spread(INITIAL_STANDARD_DEVIATION))
        if self.correlation is not None:
            nn.init.uniform_(self.correlation.weight, -1e-3, 1e-3)
            nn.init.zeros_(self.correlation.bias)

    def forward(self, observation: Tensor) -> Gaussian:
        """Distribution of u for what the networks see of observations, [B, F]."""
        hidden = _norm_relu(self.second(_norm_relu(self.first(observation))))
        spread = F.softplus(self.spread(hidden))
        standard_deviation = MAX_SPREAD * torch.tanh(spread / MAX_SPREAD) + MIN_STANDARD_DEVIATION
        if self.correlation is None:
            return Gaussian(self.mean(hidden), standard_deviation)
        rows = torch.diag_embed(torch.ones_like(standard_deviation))
        A = rows.shape[-1]
        below = torch.tril_indices(A, A, offset=-1, device=rows.device)
        rows[:, below[0], below[1]] = self.correlation(hidden)
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return Gaussian(self.mean(hidden), standard_deviation.unsqueeze(-1) * rows / length)


class Critics(nn.Module):
    """Reward and cost critics as one stack of E MLPs that share nothing but the matrix products.

    The observation's part of the first layer is computed once per state and shared by its K actions. Each layer is
    layer-normalized without parameters of its own. Cost critics end in a softplus: an expected discounted cost is
    never negative.
    """

    def __init__(
        self,
        features: int,
        action_size: int,
        num_costs: int,
        hidden: int,
        reward_heads: int,
        cost_heads: int,
    ) -> None:
        super().__init__()
        self.num_costs, self.reward_heads, self.cost_heads = num_costs, reward_heads, cost_heads
        members = reward_heads + cost_heads * num_costs
        inputs = features + action_size
        self.observation_weight = uniform_parameter((members, features, hidden), inputs)
        self.action_weight = uniform_parameter((members, action_size, hidden), inputs)
        self.first_bias = uniform_parameter((members, 1, hidden), inputs)
        self.second_weight = uniform_parameter((members, hidden, hidden), hidden)
        self.second_bias = uniform_parameter((members, 1, hidden), hidden)
        self.output_weight = uniform_parameter((members, hidden, 1), hidden)
        self.output_bias = nn.Parameter(torch.zeros(members, 1, 1))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Values of K actions per state.

        Args:
            observation: as the networks see it, [B, F].
            action: in [-1, 1], [B, K, A].

        Returns:
            reward_value [reward_heads, B, K] and cost_value [cost_heads, B, K, C], discounted; cost in environment
            units, reward in the learner's scaled units.
        """
        (B, K, A), (E, _, H) = action.shape, self.first_bias.shape
        state = torch.baddbmm(self.first_bias, observation.expand(E, -1, -1), self.observation_weight)  # [E, B, H]
        first = torch.matmul(action.reshape(B * K, A), self.action_weight).view(E, B, K, H) + state.unsqueeze(2)
        hidden = _norm_relu(first).view(E, B * K, H)
        hidden = _norm_relu(torch.baddbmm(self.second_bias, hidden, self.second_weight))
        return self._values(self._output(hidden, slice(None)).view(E, B, K))

    @torch.no_grad()
    def evaluate(self, observation: Tensor, action: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """As `forward`, for many actions per state and without gradients: the same up to rounding, in less time.

        Weights are centred over their outputs, which leaves only the scale of a layer to normalize; what follows each
        matrix product is done in place; and a CPU takes one member at a time, whose layers stay in its cache. Measured
        at 256 states, 16 actions and width 128: 4.0 ms instead of 6.0, of which the matrix products are 2.7.

        Args:
            observation, action: as `forward`.
            precision: of the second layer's matrix products, which are nearly all of the arithmetic.
        """
        E = len(self.output_bias)
        members = [slice(None)] if observation.is_cuda else [slice(e, e + 1) for e in range(E)]
        return self._values(torch.cat([self._evaluate(m, observation, action, precision) for m in members]))

    def _evaluate(self, members: slice, observation: Tensor, action: Tensor, precision: torch.dtype) -> Tensor:
        """Outputs of some members, [E, B, K]."""
        B, K, A = action.shape
        observation_weight, action_weight = _centred(self.observation_weight[members], self.action_weight[members])
        first_bias, weight, bias = _centred(
            self.first_bias[members], self.second_weight[members], self.second_bias[members]
        )
        E, _, H = weight.shape
        state = torch.baddbmm(first_bias, observation.expand(E, -1, -1), observation_weight)
        hidden = torch.matmul(action.reshape(B * K, A), action_weight)
        hidden.view(E, B, K, H).add_(state.unsqueeze(2))
        _rms_norm_relu_(hidden)
        if precision == weight.dtype:
            hidden = torch.baddbmm(bias, hidden, weight)
        else:
            hidden = torch.bmm(hidden.to(precision), weight.to(precision)).to(bias).add_(bias)
        return self._output(_rms_norm_relu_(hidden), members).view(E, B, K)

    def _output(self, hidden: Tensor, members: slice) -> Tensor:
        """The last layer, [E, B·K]. As one product of a matrix and a vector per member it takes ten times as long."""
        weight = self.output_weight[members].transpose(1, 2)
        product: Tensor = torch.linalg.vecdot(hidden, weight)
        return product + self.output_bias[members, 0]

    def _values(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Split outputs [E, B, K] in reward and cost values."""
        _, B, K = output.shape
        cost_value = F.softplus(output[self.reward_heads :]).view(self.cost_heads, self.num_costs, B, K)
        return output[: self.reward_heads], cost_value.permute(0, 2, 3, 1)


class Model(nn.Module):
    """Everything an exported policy is made of: it maps raw observations to distributions and values."""

    cost_factor: Tensor  # [C], puts the level of the cost critics right (cvpo/learning/level.py)

    def __init__(
        self, normalizer: Normalizer, policy: GaussianPolicy, critics: Critics, cost_factor: Tensor | None = None
    ) -> None:
        super().__init__()
        self.normalizer, self.policy, self.critics = normalizer, policy, critics
        self.register_buffer("cost_factor", torch.ones(critics.num_costs) if cost_factor is None else cost_factor)

    def distribution(self, observation: Tensor) -> Gaussian:
        """Of u, for raw observations [B, O]."""
        distribution: Gaussian = self.policy(self.normalizer(observation))
        return distribution

    def values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Values of actions [B, K, A] in raw observations [B, O]: reward [B, K] and cost [B, K, C].

        Heads are averaged: their minimum would be optimistic about danger.
        """
        reward_value, cost_value = self.critics(self.normalizer(observation), action)
        return reward_value.mean(0), cost_value.mean(0) * self.cost_factor


def build_model(
    network: NetworkConfig, observation_size: int, action_size: int, num_costs: int, closeness: Sequence[int] = ()
) -> Model:
    """A model with fresh parameters, from torch's global generator."""
    normalizer = Normalizer(observation_size, closeness)
    inputs = len(normalizer.mean)
    return Model(
        normalizer,
        GaussianPolicy(inputs, action_size, network.hidden, network.covariance),
        Critics(inputs, action_size, num_costs, network.hidden, network.reward_heads, network.cost_heads),
    )


def _inverse_spread(standard_deviation: float) -> float:
    """What the last layer must give for that standard deviation."""
    spread = MAX_SPREAD * math.atanh((standard_deviation - MIN_STANDARD_DEVIATION) / MAX_SPREAD)
    return math.log(math.expm1(spread))


def _norm_relu(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON).relu_()


def _rms_norm_relu_(x: Tensor) -> Tensor:
    """`_norm_relu` in place, for x whose mean over the last dimension is zero."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
    return x.mul_(mean_square.add_(NORM_EPSILON).rsqrt_()).relu_()


def _centred(*weights: Tensor) -> list[Tensor]:
    return [weight - weight.mean(-1, keepdim=True) for weight in weights]


def uniform_parameter(shape: tuple[int, ...], inputs: int) -> nn.Parameter:
    """Weights as nn.Linear draws them for so many inputs."""
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
