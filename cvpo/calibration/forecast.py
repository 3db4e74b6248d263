"""What the cost of the next steps may come to: the guess that the map of costs is asked with.

The cost critics have seen all of training, but judge a discounted mean. A forecast adds what the situation itself tells
of the next h steps, for any h. It need not be right: `conformal` measures what costs really follow each forecast.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvpo.learning.networks import uniform_parameter

Array = NDArray[np.float64]

QUANTILES = (0.5, 0.75, 0.9)  # fitted together; the forecast is their mean
HIDDEN = 128
DROPOUT = 0.1
TIMES = 2  # inputs that tell the number of steps
LEAK = 0.05  # of the gradient below zero, so that no output stays there for good


class CostForecast(nn.Module):
    """A relative forecast of the cost of the next steps: 1 is what as many steps of the policy cost on average.

    The network sees the number of steps beside the situation. Each constraint has a network of its own, which sees the
    cost value of its own critic.
    """

    typical_value: Tensor  # [C, 1, 1], of cost values

    def __init__(self, features: int, horizon: int, typical_value: Array) -> None:
        """Fresh parameters, from torch's global generator.

        Args:
            features: F, how many values the networks see of an observation.
            horizon: T, the most steps that a cost is forecast of.
            typical_value: of each critic's cost values, [C], positive.
        """
        super().__init__()
        C = len(typical_value)
        self.horizon = horizon
        self.register_buffer("typical_value", torch.as_tensor(typical_value[:, None, None], dtype=torch.float32))
        inputs = features + TIMES + 1
        self.state_weight = uniform_parameter((C, features + TIMES, HIDDEN), inputs)
        self.value_weight = uniform_parameter((C, 1, HIDDEN), inputs)
        self.first_bias = uniform_parameter((C, 1, HIDDEN), inputs)
        self.second_weight = uniform_parameter((C, HIDDEN, HIDDEN), HIDDEN)
        self.second_bias = uniform_parameter((C, 1, HIDDEN), HIDDEN)
        self.output_weight = uniform_parameter((C, HIDDEN, len(QUANTILES)), 100 * HIDDEN)
        self.output_bias = nn.Parameter(torch.full((C, 1, len(QUANTILES)), 1 / len(QUANTILES)))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, observation: Tensor, cost_value: Tensor, steps_left: Tensor) -> Tensor:
        """The relative forecast, [N, C, K]: the mean of the quantiles.

        Args:
            observation: as the networks see it, [N, F].
            cost_value: of K actions, [N, C, K].
            steps_left: [N] int64, at least 1.
        """
        # Quantile q is the sum of the first q increments.
        weight = torch.arange(len(QUANTILES), 0, -1.0) / len(QUANTILES)
        return torch.matmul(self.increments(observation, cost_value, steps_left), weight)

    def increments(self, observation: Tensor, cost_value: Tensor, steps_left: Tensor) -> Tensor:
        """Of the relative quantiles, [N, C, K, Q], never negative."""
        N, C, K = cost_value.shape
        value = cost_value.transpose(0, 1).reshape(C, N * K, 1)
        state = torch.cat([observation, self.times(steps_left)], 1) @ self.state_weight + self.first_bias  # [C, N, H]
        first = state.repeat_interleave(K, 1) + value / (value + self.typical_value) * self.value_weight
        hidden = self.dropout(first.relu())
        hidden = self.dropout((hidden @ self.second_weight + self.second_bias).relu())
        output = hidden @ self.output_weight + self.output_bias
        output = output.clamp(min=0) + LEAK * (output - output.detach())
        increments: Tensor = output.view(C, N, K, len(QUANTILES)).transpose(0, 1)
        return increments

    def times(self, steps_left: Tensor) -> Tensor:
        """A number of steps as the network sees it, [N, TIMES]: as a share of the horizon, and by its logarithm."""
        steps = steps_left.float()[:, None]
        return torch.cat([2 * steps / self.horizon - 1, steps.log() / np.log(self.horizon + 1)], 1)
