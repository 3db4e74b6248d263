"""What a run tells of itself while it goes on: how far it is, for people, and rows of metrics, for files."""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle import Evaluation
from cvpo.learning.learner import LearnerState, UpdateMetrics

Array = NDArray[np.float64]
ROW_EVERY = 1_000  # steps between two rows of metrics
_MEANS = {  # metrics of each constraint, and the field of UpdateMetrics that they are the mean of
    "critic/cost_value": "cost_value",
    "estep/cost_multiplier": "cost_multiplier",
    "estep/infeasibility": "infeasibility",
}


class Waits(NamedTuple):
    """How long a run has gone on in this process, and how much of that each side of it waited for the other."""

    seconds: float
    learner: float  # seconds
    simulators: float | None  # seconds, mean over environments; None where they are in the learner's process

    def since(self, before: "Waits") -> "Waits":
        """What came after `before`."""
        both = self.simulators is not None and before.simulators is not None
        return Waits(
            self.seconds - before.seconds,
            self.learner - before.learner,
            (self.simulators or 0.0) - (before.simulators or 0.0) if both else None,
        )

    def shares(self) -> tuple[float, float | None]:
        """Of the time, that learner and simulators waited."""
        seconds = max(self.seconds, 1e-9)
        return self.learner / seconds, None if self.simulators is None else self.simulators / seconds


@dataclass(frozen=True)
class Progress:
    """How far a run is; given several times a second."""

    steps: int
    total_steps: int
    steps_per_second: float
    train_return: float | None  # mean of the newest episodes; None before the first ends
    train_cost: Array  # measured, [C]
    cost_limit: Array  # that holds at this step, [C]
    unmet_steps: Array  # in a row that it was over its limit and no more could be asked for, [C]
    temperature: float | None  # None before the first update
    cost_multiplier: Array | None  # [C]
    infeasible_share: float  # of all updates so far
    updates_due: int  # before the next step; many when the warm-up ends
    waits: Waits


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint and what its deterministic policy did in evaluation episodes."""

    steps: int
    evaluation: Evaluation
    progress: Progress  # when the checkpoint was made; its evaluation ends later


class Reporter(Protocol):
    """Whoever shows a run to people."""

    def progress(self, progress: Progress) -> None:
        """Called after each step of the environments."""

    def checkpoint(self, report: CheckpointReport) -> None:
        """Called when a checkpoint has been evaluated."""

    def say(self, text: str) -> None:
        """Called with what people should know, in words."""


class Clock:
    """Steps a second over the newest seconds."""

    def __init__(self, steps: int) -> None:
        self._began = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._began, steps)], maxlen=50)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def rate(self, steps: int) -> float:
        """Take in the steps so far, and give the rate."""
        now = time.monotonic()
        if now - self._marks[-1][0] > 0.2:
            self._marks.append((now, steps))
        begin, first = self._marks[0]
        return (steps - first) / max(now - begin, 1e-9)


class Rows:
    """Sums up what happens between two rows of metrics; see cvpo/training/metrics.py for names and meaning."""

    def __init__(self, cost_names: Sequence[str]) -> None:
        self.cost_names = cost_names
        self.updates: list[UpdateMetrics] = []
        self._waits = Waits(0.0, 0.0, 0.0)
        self._checkpoint: dict[str, float | int] = {}

    def checkpoint(self, seconds: float, written: int) -> None:
        """Take in what a checkpoint cost."""
        self._checkpoint = {"checkpoint/seconds": seconds, "checkpoint/bytes": written}

    def take(self, progress: Progress, state: LearnerState) -> dict[str, float | int]:
        """The row of the time since the row before."""
        row: dict[str, float | int] = {
            "steps": progress.steps,
            "updates": state.updates,
            "steps_per_second": progress.steps_per_second,
        }
        learner, simulators = progress.waits.since(self._waits).shares()
        row["time/learner_waits"] = learner
        if simulators is not None:
            row["time/simulators_wait"] = simulators
        if progress.train_return is not None:
            row["train/return"] = progress.train_return
        row.update(self._named("train/cost", progress.train_cost))
        limits = self._named("train/cost_limit", progress.cost_limit)
        row.update({name: limit for name, limit in limits.items() if math.isfinite(limit)})
        row.update(self._named("limit/unmet_steps", progress.unmet_steps))
        if self.updates:
            row.update(self._learning(state))
        row.update(self._checkpoint)
        self._waits, self._checkpoint, self.updates = progress.waits, {}, []
        return row

    def state(self) -> list[dict[str, Any]]:
        """The updates since the row before, as plain values: a resume point is read without running code."""
        return [
            {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(update).items()}
            for update in self.updates
        ]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Put back what `state` gave."""
        self.updates = [_update(values) for values in state]

    def _learning(self, state: LearnerState) -> dict[str, float | int]:
        updates = self.updates
        row: dict[str, float | int] = {
            "critic/loss": _mean(m.critic_loss for m in updates),
            "estep/temperature": _mean(m.temperature for m in updates),
            "estep/kl_residual_max": max(m.kl_residual for m in updates),
            "estep/infeasible_share": _mean(not m.feasible for m in updates),
            "mstep/pulled_back": state.pulled_back_periods,
            "mstep/standard_deviation": _mean(m.standard_deviation for m in updates),
        }
        row.update(self._named("critic/cost_factor", state.model.cost_factor.cpu().double().numpy()))
        for prefix, name in _MEANS.items():
            row.update(self._named(prefix, np.mean([getattr(m, name) for m in updates], axis=0)))
        shares = [m.share for m in updates if m.share is not None]
        if shares:
            row.update(self._named("estep/share", np.mean(shares, axis=0)))
        residuals = self._named("estep/cost_residual_max", np.max([m.cost_residual for m in updates], axis=0))
        row.update({name: residual for name, residual in residuals.items() if math.isfinite(residual)})  # constrained
        periods = [m for m in updates if m.kl_mean is not None and m.kl_covariance is not None]
        if periods:
            row["mstep/kl_mean"] = _mean(m.kl_mean or 0.0 for m in periods)
            row["mstep/kl_covariance"] = _mean(m.kl_covariance or 0.0 for m in periods)
            gaps = [m.projection_gap for m in periods if m.projection_gap is not None]
            row.update(self._named("mstep/gap", np.mean(gaps, axis=0)))
        return row

    def _named(self, prefix: str, values: Array) -> dict[str, float]:
        return {f"{prefix}/{name}": float(value) for name, value in zip(self.cost_names, values, strict=True)}


def _update(values: dict[str, Any]) -> UpdateMetrics:
    arrays: dict[str, Any] = {name: np.array(value) for name, value in values.items() if isinstance(value, list)}
    return UpdateMetrics(**(values | arrays))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
