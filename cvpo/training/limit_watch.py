"""The measured cost of a run against its limits."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo.envs import EnvSpec
from cvpo.learning.config import TrainConfig
from cvpo.learning.learner import LearnerState, UpdateMetrics, held_at
from cvpo.learning.limit import CostMeter, limit_at
from cvpo.training.failures import room

Array = NDArray[np.float64]


class LimitWatch:
    """Measures the cost, moves the learner's controller by it, and sees where a limit is out of reach for long."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, num_envs: int, measured_envs: int) -> None:
        """Begin with nothing measured.

        Args:
            config: of the run.
            spec: of its environments.
            num_envs: how many they are.
            measured_envs: how many of them have their cost held.
        """
        self.config, self.spec, self.num_envs = config, spec, num_envs
        window = max(1, round(config.limit.window_episodes * spec.max_episode_steps))
        with room(
            f"the costs of {config.limit.window_episodes:g} episodes",
            "environment.max_episode_steps or limit.window_episodes",
        ):
            self.meter = CostMeter.start(window, measured_envs, len(spec.cost_names))
        self.unmet_steps = np.zeros(len(spec.cost_names))  # in a row, over a limit and with no more to ask for
        self._feasible: NDArray[np.bool_] | None = None  # in an update since the last step, [C]; None: there was none

    def measured(self) -> Array:
        """Cost of an episode, [C]."""
        return self.meter.measured(self.spec.max_episode_steps)

    def see(self, update: UpdateMetrics) -> None:
        """Take in what an update could ask for."""
        feasible = update.infeasibility <= 0
        self._feasible = feasible if self._feasible is None else self._feasible | feasible

    def take_in(self, state: LearnerState, cost: Array, steps: int, *, held: bool = False) -> None:
        """Take in the costs of one step, [N, C], of the environments whose cost is measured.

        Args:
            state: its controller is moved.
            cost: in environment units.
            steps: of the environments, with this one.
            held: the policy stays as it is, and so does the controller.
        """
        self.meter.add(cost)
        measured = self.measured()
        state.controller = state.controller.having_seen(cost, measured if self.meter.full else None)
        if not state.updates or held:
            return
        limit = limit_at(self.config, steps)
        gap = state.controller.gap(measured, held_at(limit, self.config))
        controller = state.controller.advanced(gap, self.num_envs, self.config.limit)
        at_rest = (limit == 0) & (measured == 0)
        state.controller = controller.taken_back(at_rest, self.num_envs, self.config.limit)
        if self.config.estep.constraint == "critic":
            exhausted = self.unmet_steps > 0 if self._feasible is None else ~self._feasible  # None: as it was
        else:
            exhausted = state.controller.exhausted(gap, self.config.limit)
        unmet = (measured > limit) & exhausted
        self.unmet_steps = np.where(unmet, self.unmet_steps + self.num_envs, 0.0)
        self._feasible = None

    def newly_unmet(self, steps: int) -> list[str]:
        """A sentence for each limit that, with this step, has been out of reach for long."""
        patience = self.config.limit.integral_steps
        newly = (self.unmet_steps >= patience) & (self.unmet_steps - self.num_envs < patience)
        measured, limit = self.measured(), limit_at(self.config, steps)
        return [
            f"limit   {self.spec.cost_names[i]} is {measured[i]:.3g} an episode, over its limit of "
            f"{limit[i]:g}, and for {patience:,} steps no more could be asked of an update. Perhaps "
            f"no policy can meet this limit. Training goes on towards less cost."
            for i in np.flatnonzero(newly)
        ]

    def state(self) -> dict[str, Any]:
        """What was measured, as tensors and plain values."""
        return {
            "cost_window": torch.from_numpy(self.meter.window.copy()),
            "cost_count": self.meter.count,
            "unmet_steps": self.unmet_steps.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.meter = CostMeter(state["cost_window"].numpy(), state["cost_count"])
        self.unmet_steps = np.array(state["unmet_steps"])
