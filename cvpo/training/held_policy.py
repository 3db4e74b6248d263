"""The last policy that held its limits, to go back to when they are lost.

Far over a limit the critics may see no action that costs less: a robot that is much too fast is so for many steps,
whatever it does, and reward is all that is left to tell actions apart. Learning does not come back from there.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cvpo.learning import learner
from cvpo.learning.learner import LearnerState
from cvpo.learning.limit import limit_at
from cvpo.training.limit_watch import LimitWatch

Parameters: TypeAlias = dict[str, Tensor]
# A limit is lost when for so many windows of what is measured it was over, with no more to ask for.
_PATIENCE_WINDOWS = 3


@dataclass(frozen=True)
class _Kept:
    """A policy as it was."""

    policy: Parameters
    normalizer: Parameters  # what it saw observations by
    steps: int  # of the environments
    cost: NDArray[np.float64]  # of an episode, measured from then on, [C]; NaN: not yet


class HeldPolicy:
    """Keeps the policy of the last window in which all limits were held."""

    def __init__(self, watch: LimitWatch) -> None:
        self._watch = watch
        self._window = len(watch.meter.window) * watch.num_envs
        self._held: _Kept | None = None
        self._tried: _Kept | None = None  # what the window that is under way began with

    def take_in(self, state: LearnerState, steps: int) -> str | None:
        """Take in that a step was measured; where a limit is lost, put the policy back, and return a sentence of that.

        Args:
            state: its policy is kept, or put back.
            steps: of the environments, with this one.
        """
        watch = self._watch
        if not state.updates or watch.config.estep.constraint == "critic":
            return None  # random actions; the paper's own form has no measured cost
        measured, limit = watch.measured(), limit_at(watch.config, steps)
        if self._tried is None:
            self._tried = _kept(state, steps)
        elif steps - self._tried.steps >= self._window:
            if (measured <= limit).all():
                self._held = replace(self._tried, cost=measured)
            self._tried = _kept(state, steps)
        lost = watch.unmet_steps >= _PATIENCE_WINDOWS * self._window
        if self._held is None or not lost.any() or not (self._held.cost <= limit).all():
            return None
        learner.put_back(state, self._held.policy, self._held.normalizer)
        self._tried = None
        watch.unmet_steps[:] = 0.0
        i = int(np.argmax(lost))
        return (
            f"limit   {watch.spec.cost_names[i]} is {measured[i]:.3g} an episode, over its limit of {limit[i]:g}, and "
            f"no more could be asked of an update: the policy is put back to that of step {self._held.steps:,}, the "
            f"last that held it ({self._held.cost[i]:.3g})."
        )

    def state(self) -> dict[str, Any]:
        """What is kept, as tensors and plain values."""
        return {"held_policy": _document(self._held), "tried_policy": _document(self._tried)}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._held, self._tried = _read(state["held_policy"]), _read(state["tried_policy"])


def _kept(state: LearnerState, steps: int) -> _Kept:
    unknown = np.full(len(state.unit_threshold), np.nan)
    return _Kept(_copy(state.behavior_policy), _copy(state.model.normalizer), steps, unknown)


def _copy(module: nn.Module) -> Parameters:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _document(kept: _Kept | None) -> list[Any] | None:
    return None if kept is None else [kept.policy, kept.normalizer, kept.steps, kept.cost.tolist()]


def _read(document: list[Any] | None) -> _Kept | None:
    if document is None:
        return None
    policy, normalizer, steps, cost = document
    return _Kept(policy, normalizer, steps, np.array(cost))
