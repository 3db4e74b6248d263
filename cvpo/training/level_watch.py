"""The level of the cost critics, measured on the episodes of a run."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo.envs import VectorStep
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig
from cvpo.learning.learner import LearnerState
from cvpo.learning.level import LevelMeter

Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]


class LevelWatch:
    """Compares what the cost critics say with what came, where an episode ends, and sets the model's cost factor."""

    def __init__(self, config: TrainConfig, num_costs: int, num_envs: int) -> None:
        """Begin with nothing seen."""
        self.config = config
        self.meter = LevelMeter.start(num_costs)
        # Observation, action in [-1, 1] and cost of the episodes under way; empty where the level stays.
        self.steps: list[list[tuple[Float32Array, Float32Array, Array]]] = [[] for _ in range(num_envs)]

    def take_in(
        self, state: LearnerState, observation: Float32Array, action: Float32Array, step: VectorStep, measured: int
    ) -> None:
        """Take in a step of all environments; where a measured episode ends, the state's model gets a new factor.

        Args:
            state: its critics are asked.
            observation: before the step, [N, O].
            action: in [-1, 1], [N, A].
            step: what came of them.
            measured: how many environments, the first ones, acted as the policy does whose level is meant.
        """
        if not state.updates or self.config.estep.constraint == "critic":
            return  # random actions; the paper's own form takes the critics as they are
        for steps in self.steps[measured:]:
            steps.clear()
        for i, steps in enumerate(self.steps[:measured]):
            steps.append((observation[i].copy(), action[i].copy(), step.cost[i].copy()))
            if step.terminated[i] or step.truncated[i]:
                observations, actions, cost = map(np.array, zip(*steps, strict=True))
                said = learner.cost_values(state, observations, actions)
                self.meter = self.meter.seeing(said, cost, np.array(self.config.cost_discounts))
                state.model.cost_factor.copy_(state.tensor(self.meter.factor()))
                steps.clear()

    def forget(self, env: int) -> None:
        """Leave out the episode that is under way in an environment."""
        self.steps[env].clear()

    def begin_anew(self) -> None:
        """Let all episodes so far count as one: they were of other policies than the one that is held from now on."""
        self.meter = self.meter.as_one_episode()
        for steps in self.steps:
            steps.clear()

    def state(self) -> dict[str, Any]:
        """What was seen, as tensors and plain values."""
        return {
            "level": {field.name: np.asarray(getattr(self.meter, field.name)).tolist() for field in fields(LevelMeter)},
            "measured_steps": [
                [torch.from_numpy(np.array(part)) for part in zip(*steps, strict=True)] for steps in self.steps
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.meter = LevelMeter(**{name: np.array(value) for name, value in state["level"].items()})
        self.steps = [list(zip(*(part.numpy() for part in parts), strict=True)) for parts in state["measured_steps"]]
