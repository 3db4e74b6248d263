"""The proof at the end of a run: the policy stays as it is, for as long as it costs no more than it may.

A policy that is held at its limit rides the edge of what costs, and moves over it and back; what was measured is of
policies of before, and what the critics say of it lags behind. So the last one is not left to chance: it has been
measured in all that was left of the run, and the critics have learned what it costs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvpo.envs import EnvSpec
from cvpo.learning.config import TrainConfig
from cvpo.learning.learner import held_at

Array = NDArray[np.float64]


class Proof:
    """Whether the policy is held as it is, and what it has cost since."""

    def __init__(self, config: TrainConfig, spec: EnvSpec) -> None:
        """Begin with a policy that learns."""
        self.spec, self.limit = spec, np.array(config.cost_limits)
        # What was measured is of the policies before, too; so some of the room between the limit and what the cost is
        # held at is left.
        aim = held_at(self.limit, config)
        self.threshold = (aim + self.limit) / 2
        self.far_below = aim / 2
        self.first_step = (1 - config.settle.proof) * config.schedule.steps
        self.middle_step = (1 - config.settle.proof / 2) * config.schedule.steps
        # Without a limit there is nothing to prove.
        self.wanted = config.settle.proof > 0 and bool(np.isfinite(self.limit).any())
        self.held = False
        self.cost, self.steps = np.zeros_like(self.limit), 0  # of all environments, since it is held or learns again
        self.begun = False  # whether it is held since the last step
        self.news: list[str] = []  # of the last step, for people

    def take_in(self, cost: Array, measured: Array | None, steps: int) -> None:
        """Take in a step of all environments, and decide whether the policy is held.

        Args:
            cost: of each, [N, C], in environment units.
            measured: what an episode costs now, [C]; None: too little to tell by.
            steps: of the environments, with this one.
        """
        self.begun, self.news = False, []
        self.cost, self.steps = self.cost + cost.sum(0), self.steps + len(cost)
        due = steps >= self.first_step
        enough = self.steps >= len(cost) * self.spec.max_episode_steps
        if self.held and not due:
            self.news = [f"proof   From step {steps:,} on the policy learns again: the run is longer now."]
            self._turn()
        elif self.held and enough and not self._fits(self.episode_cost(), self.limit, steps):
            pairs = zip(self.spec.cost_names, self.episode_cost(), strict=True)
            spent = ", ".join(f"{name} {value:.3g}" for name, value in pairs)
            self.news = [f"proof   From step {steps:,} on the policy learns again: its episodes came to {spent}."]
            self._turn()
        elif not self.held and self.wanted and due and enough and measured is not None:
            self.begun = self._fits(measured, self.threshold, steps)
            if self.begun:
                self.news = [f"proof   From step {steps:,} on the policy stays as it is: its cost is within its limit."]
                self._turn()

    def _fits(self, cost: Array, most: Array, steps: int) -> bool:
        """Whether a cost of an episode, [C], is one to stay at: not too high, nor, while there is time, far too low."""
        return bool((cost <= most).all() and (steps >= self.middle_step or (cost >= self.far_below).any()))

    def _turn(self) -> None:
        self.held = not self.held
        self.cost, self.steps = np.zeros_like(self.limit), 0

    def episode_cost(self) -> Array:
        """What an episode has cost since the policy is held, or learns again, [C]; zero before the first step."""
        return np.asarray(self.cost * (self.spec.max_episode_steps / max(self.steps, 1)))

    def state(self) -> dict[str, Any]:
        """What was seen, as plain values."""
        return {"proof": [self.held, self.cost.tolist(), self.steps]}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.held, cost, self.steps = state["proof"]
        self.cost = np.array(cost)
