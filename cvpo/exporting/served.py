"""What a bundle computes, in torch: the reference that the ONNX graphs are held against."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvpo.calibration.costmap import CostMap, CostPrediction
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.shift import ShiftScore
from cvpo.learning.networks import Model


class NetworkValues(NamedTuple):
    """What the networks compute of K actions in each of N situations: all that an answer is made from."""

    normalized: Tensor  # [N, F], the observation as the networks see it
    action: Tensor  # [N, K, A], in [-1, 1]
    reward_value: Tensor  # [N, K], environment reward units
    cost_value: Tensor  # [N, C, K]
    shift_score: Tensor  # [N]


class Judgement(NamedTuple):
    """What is predicted of K actions in each of N situations."""

    reward_value: Tensor  # [N, K], environment reward units
    cost_value: Tensor  # [N, C, K]
    cost_to_go: Tensor  # [N, C, K]
    cost_upper: Tensor  # [N, C, K]
    violation_probability: Tensor  # [N, C, K]
    violation: Tensor  # [N, C, K] bool


class PolicyOutput(NamedTuple):
    """Outputs of `policy.onnx`, in its order: the chosen action and what is predicted of it."""

    action: Tensor  # [N, A], environment units
    chosen: Tensor  # [N] int64
    feasible: Tensor  # [N] bool: it raised no flag that a shield chooses by
    reward_value: Tensor  # [N]
    cost_value: Tensor  # [N, C]
    cost_to_go: Tensor  # [N, C]
    cost_upper: Tensor  # [N, C]
    violation_probability: Tensor  # [N, C]
    violation: Tensor  # [N, C] bool
    shift_score: Tensor  # [N]


class CriticOutput(NamedTuple):
    """Outputs of `critic.onnx`, in its order: what is predicted of the given action."""

    reward_value: Tensor  # [N]
    cost_value: Tensor  # [N, C]
    cost_to_go: Tensor  # [N, C]
    cost_upper: Tensor  # [N, C]
    violation_probability: Tensor  # [N, C]
    violation: Tensor  # [N, C] bool
    shift_score: Tensor  # [N]


class Answering(nn.Module, ABC):
    """What is made of the values of a policy's networks, wherever those are: predictions, flags, and the choice."""

    action_low: Tensor  # [A]
    action_high: Tensor  # [A]

    def __init__(
        self,
        forecast: CostForecast | None,
        cost_map: CostMap,
        action_low: NDArray[np.float64],
        action_high: NDArray[np.float64],
        reward_scale: float,
    ) -> None:
        """Put the parts together.

        Args:
            forecast: what the map of costs is asked with; None: the cost value.
            cost_map: calibrated or not.
            action_low: bounds of the action [A], environment units.
            action_high: the same above.
            reward_scale: the learner saw rewards divided by it; 0 where that is not known.
        """
        super().__init__()
        self.forecast, self.cost_map, self.reward_scale = forecast, cost_map, reward_scale
        self.register_buffer("action_low", torch.as_tensor(action_low, dtype=torch.float32))
        self.register_buffer("action_high", torch.as_tensor(action_high, dtype=torch.float32))

    @abstractmethod
    def policy_values(self, observation: Tensor, noise: Tensor) -> NetworkValues:
        """Of the candidates that standard normal noise [N, K, A] makes in raw observations [N, O]."""

    @abstractmethod
    def critic_values(self, observation: Tensor, action: Tensor) -> NetworkValues:
        """Of actions [N, A] in environment units, clipped to their bounds, in raw observations [N, O]; K is 1."""

    def act(
        self, observation: Tensor, noise: Tensor, steps_left: Tensor, cost_allowed: Tensor, alarm_level: Tensor
    ) -> PolicyOutput:
        """Choose among the candidates that the noise makes; what `policy.onnx` computes.

        The first candidate, as long as it raises no flag; else, of those that raise the fewest flags, the one with the
        least cost value. Of several constraints the largest counts, relative to `typical_cost_value`, among those that
        the first candidate is flagged for. The lowest index wins a tie. These flags are of the map's
        `choosing_probability`, and what is predicted of the chosen action is of the map itself.

        Args:
            observation: [N, O].
            noise: standard normal, [N, K, A]; zero is the policy's most likely action, which a shield has first.
            steps_left: [N] int64.
            cost_allowed: [N, C], undiscounted cost allowed over those steps; +inf: unconstrained.
            alarm_level: [C].
        """
        values = self.policy_values(observation, noise)
        forecast = self.forecasts(values.normalized, values.cost_value, steps_left)
        probability = self.cost_map.choosing_probability(forecast, steps_left, cost_allowed)
        flagged = probability > alarm_level[:, None]  # [N, C, K]
        flags = flagged.sum(1)  # [N, K]
        fewest = flags.amin(1, keepdim=True)
        relative = values.cost_value / self.typical_cost_value  # [N, C, K]
        worst = (relative * flagged[..., :1]).amax(1)  # [N, K]; 0 throughout where the first raises no flag
        chosen = worst.masked_fill(flags > fewest, torch.inf).argmin(1)
        rows = torch.arange(len(chosen))
        judged = self.judge(values, steps_left, cost_allowed, alarm_level)
        return PolicyOutput(
            self.environment_action(values.action[rows, chosen]),
            chosen,
            fewest[:, 0] == 0,
            *Judgement(*(value[rows, ..., chosen] for value in judged)),
            values.shift_score,
        )

    def evaluate(
        self, observation: Tensor, action: Tensor, steps_left: Tensor, cost_allowed: Tensor, alarm_level: Tensor
    ) -> CriticOutput:
        """Judge actions [N, A] in environment units, clipped to their bounds; what `critic.onnx` computes."""
        values = self.critic_values(observation, action)
        judged = self.judge(values, steps_left, cost_allowed, alarm_level)
        return CriticOutput(*Judgement(*(value[..., 0] for value in judged)), values.shift_score)

    def judge(self, values: NetworkValues, steps_left: Tensor, cost_allowed: Tensor, alarm_level: Tensor) -> Judgement:
        """Predict what follows the actions, if the policy goes on from there."""
        forecast = self.forecasts(values.normalized, values.cost_value, steps_left)
        predicted: CostPrediction = self.cost_map(forecast, steps_left, cost_allowed)
        violation = predicted.violation_probability > alarm_level[:, None]
        return Judgement(values.reward_value, values.cost_value, *predicted, violation)

    def forecasts(self, normalized: Tensor, cost_value: Tensor, steps_left: Tensor) -> Tensor:
        """What the map of costs is asked with, [N, C, K], for cost values [N, C, K]."""
        if self.forecast is None:
            return cost_value
        forecast: Tensor = self.forecast(normalized, cost_value, steps_left)
        return forecast

    @property
    def typical_cost_value(self) -> Tensor:
        """What cost values are measured by, so that those of several constraints can be compared, [C, 1].

        Their mean over the calibration's episodes; without calibration 1.
        """
        return torch.ones(self.cost_map.num_costs, 1) if self.forecast is None else self.forecast.typical_value[..., 0]

    def environment_action(self, action: Tensor) -> Tensor:
        """Actions [N, A] in [-1, 1] in environment units, inside the bounds whatever the rounding."""
        half = (self.action_high - self.action_low) / 2
        return (self.action_low + (action + 1) * half).clamp(self.action_low, self.action_high)


class Served(Answering):
    """A model, its map of costs, and the units of the environment: everything both graphs are made from."""

    def __init__(
        self,
        model: Model,
        forecast: CostForecast | None,
        cost_map: CostMap,
        action_low: NDArray[np.float64],
        action_high: NDArray[np.float64],
        reward_scale: float,
        shift: ShiftScore,
    ) -> None:
        """Put the learned networks, the shift score and the parts of `Answering` together."""
        super().__init__(forecast, cost_map, action_low, action_high, reward_scale)
        self.model, self.shift = model, shift

    def policy_values(self, observation: Tensor, noise: Tensor) -> NetworkValues:
        return self._values(observation, self.model.distribution(observation).sample(noise).tanh())

    def critic_values(self, observation: Tensor, action: Tensor) -> NetworkValues:
        half = (self.action_high - self.action_low) / 2
        unit = (action - self.action_low) / half - 1
        return self._values(observation, unit.clamp(-1, 1).unsqueeze(1))

    def _values(self, observation: Tensor, action: Tensor) -> NetworkValues:
        reward_value, cost_value = self.model.values(observation, action)
        return NetworkValues(
            self.model.normalizer(observation),
            action,
            reward_value * self.reward_scale,
            cost_value.transpose(1, 2),
            self.shift_score(observation),
        )

    def shift_score(self, observation: Tensor) -> Tensor:
        """Largest distance of an observation outside of what was seen, in standard deviations, [N]; 0 inside."""
        score: Tensor = self.shift(self.model.normalizer.standardize(observation))
        return score
