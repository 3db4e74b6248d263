"""What the cost of the next steps may come to: the guess that the map of costs is asked with.

The cost critics have seen all of training, but judge a discounted mean. A forecast adds what the situation itself tells
of the next h steps, for any h. It need not be right: `conformal` measures what costs really follow each forecast.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

QUANTILES = (0.5, 0.75, 0.9)  # fitted together; the forecast is their mean
HIDDEN = 128
DROPOUT = 0.1
LEAK = 0.05  # of the gradient below zero, so that no output stays there for good


class CostForecast(nn.Module):
    """A relative forecast of the cost of the next steps: 1 is what as many steps of the policy cost on average.

    Between any two neighbouring knots, numbers of steps, the network says how much is to come there, never less than
    nothing. Each constraint has a network of its own, which sees the cost value of its own critic.
    """

    knot_lower: Tensor  # [H]
    knot_width: Tensor  # [H]
    typical_value: Tensor  # [C, 1, 1], of cost values

    def __init__(self, observation_size: int, knots: Integers, typical_value: Array) -> None:
        """Fresh parameters, from torch's global generator.

        Args:
            observation_size: O.
            knots: numbers of steps, [H], ascending.
            typical_value: of each critic's cost values, [C], positive.
        """
        super().__init__()
        C, H = len(typical_value), len(knots)
        lower = np.concatenate([[0], knots[:-1]])
        for name, value in {
            "knot_lower": lower,
            "knot_width": knots - lower,
            "typical_value": typical_value[:, None, None],
        }.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        inputs, outputs = observation_size + 1, H * len(QUANTILES)
        self.observation_weight = _uniform((C, observation_size, HIDDEN), inputs)
        self.value_weight = _uniform((C, 1, HIDDEN), inputs)
        self.first_bias = _uniform((C, 1, HIDDEN), inputs)
        self.second_weight = _uniform((C, HIDDEN, HIDDEN), HIDDEN)
        self.second_bias = _uniform((C, 1, HIDDEN), HIDDEN)
        self.output_weight = _uniform((C, HIDDEN, outputs), 100 * HIDDEN)
        self.output_bias = nn.Parameter(torch.full((C, 1, outputs), 1 / len(QUANTILES)))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, observation: Tensor, cost_value: Tensor, steps_left: Tensor) -> Tensor:
        """The relative forecast, [N, C, K].

        Args:
            observation: normalized, [N, O].
            cost_value: of K actions, [N, C, K].
            steps_left: [N] int64, at least 1.
        """
        return self.at(self.rates(observation, cost_value), steps_left)

    def rates(self, observation: Tensor, cost_value: Tensor) -> Tensor:
        """Cost per step between the knots, relative: the increments of its quantiles, [N, C, K, H, Q]."""
        N, C, K = cost_value.shape
        value = cost_value.transpose(0, 1).reshape(C, N * K, 1)
        state = observation @ self.observation_weight + self.first_bias  # [C, N, F]
        first = state.repeat_interleave(K, 1) + value / (value + self.typical_value) * self.value_weight
        hidden = self.dropout(first.relu())
        hidden = self.dropout((hidden @ self.second_weight + self.second_bias).relu())
        output = hidden @ self.output_weight + self.output_bias
        output = output.clamp(min=0) + LEAK * (output - output.detach())
        rates: Tensor = output.view(C, N, K, -1, len(QUANTILES)).transpose(0, 1)
        return rates

    def steps_between(self, steps_left: Tensor) -> Tensor:
        """How many of the steps lie between the knots, [N, H]."""
        return ((steps_left[:, None] - self.knot_lower) / self.knot_width).clamp(0, 1) * self.knot_width

    def at(self, rates: Tensor, steps_left: Tensor) -> Tensor:
        """The relative forecast, [N, C, K]: the mean of the quantiles."""
        steps = self.steps_between(steps_left)
        share = (steps / steps.sum(-1, keepdim=True))[:, None, None, :, None]
        # Quantile q is the sum of the first q increments.
        weight = torch.arange(len(QUANTILES), 0, -1.0) / len(QUANTILES)
        return torch.matmul((share * rates).sum(-2), weight)


def _uniform(shape: tuple[int, ...], inputs: int) -> nn.Parameter:
    bound = 1 / inputs**0.5  # as nn.Linear
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
