"""Showing people how a job is going: a line that moves on a terminal, and a row per checkpoint anywhere."""

import sys
from datetime import timedelta
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from cvpo.training.progress import CheckpointReport, Progress

stderr = Console(stderr=True, highlight=False, soft_wrap=True)

HEADER = f"{'steps':>11} {'return':>9} {'cost / limit':>22} {'lambda':>9} {'infeasible':>10} {'steps/s':>8}"


class TrainingReport:
    """Shows a training run on stderr; a `cvpo.training.progress.Reporter`. Use as a context manager."""

    def __init__(self, cost_limits: tuple[float, ...]) -> None:
        self.cost_limits = cost_limits
        self._bar = Bar(
            TextColumn("{task.fields[steps]:>11}"),
            BarColumn(20),
            TextColumn("{task.fields[rate]}"),
        )
        self._task = self._bar.add_task("", total=None, steps="0", rate="starting")
        self._details = Text(no_wrap=True, overflow="ellipsis")  # the second line: together they suit 80 columns
        self._live = Live(Group(self._bar, self._details), console=stderr, transient=True)
        self._evaluated = ""
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        if stderr.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def progress(self, progress: Progress) -> None:
        """Move the line; the first time, print what the rows will be, since now the run has begun."""
        if self._last is None:
            stderr.print(HEADER)
        self._last = progress
        if progress.updates_due:
            learning = f"{progress.updates_due} updates to go before the next step"
        elif progress.temperature is None or progress.cost_multiplier is None:
            learning = "warm-up: random actions"
        else:
            learning = f"eta {progress.temperature:.3g}  lambda {_costs(progress.cost_multiplier, '.3g')}"
        self._details.plain = f"  training cost {_costs(progress.train_cost)}  {learning}{self._evaluated}"
        left = (progress.total_steps - progress.steps) / max(progress.steps_per_second, 1.0)
        self._bar.update(
            self._task,
            completed=progress.steps,
            total=progress.total_steps,
            steps=f"{progress.steps:,}",
            rate=f"{progress.steps_per_second:,.0f} steps/s  {timedelta(seconds=round(left))} left",
        )

    def checkpoint(self, report: CheckpointReport) -> None:
        """Print a row."""
        costs = [cost.mean for cost in report.evaluation.episode_cost]
        limits = "  ".join(
            f"{cost:.1f} / {limit:g}{' over' if cost > limit else ''}"
            for cost, limit in zip(costs, self.cost_limits, strict=True)
        )
        mean_return = report.evaluation.episode_return.mean
        self._evaluated = f"  eval {mean_return:.1f}, cost {limits}"
        then = report.progress
        multiplier = "-" if then.cost_multiplier is None else _costs(then.cost_multiplier, ".3g")
        stderr.print(
            f"{report.steps:>11,} {mean_return:>9.1f} {limits:>22} {multiplier:>9} {then.infeasible_share:>10.0%} "
            f"{then.steps_per_second:>8,.0f}"
        )

    def waits(self) -> str | None:
        """How long each side of the run waited for the other; None if it did not come to its first step."""
        if self._last is None:
            return None
        learner, simulators = self._last.waits.shares()
        text = f"learner {learner:.0%} of the time"
        return text if simulators is None else f"{text}, simulators {simulators:.0%}"

    def say(self, text: str) -> None:
        """Print a line above the one that moves."""
        stderr.print(text, markup=False)


class EvaluationReport:
    """Shows how far an evaluation is, or, without a terminal, that a mode begins. Use as a context manager."""

    def __init__(self, *, announced: bool = False) -> None:
        """Prepare the lines. Where somebody else announces that a mode begins, a terminal alone is shown anything."""
        self.announced = announced
        columns = TextColumn("{task.description:>13}"), BarColumn(20), TextColumn("{task.fields[done]}")
        self._bar = Bar(*columns, console=stderr, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if stderr.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if stderr.is_terminal:  # else it prints an empty line
            self._bar.stop()

    def progress(self, mode: str, done: int, episodes: int, share: float) -> None:
        """Move the line of a mode; a `cvpo.evaluate.OnProgress`."""
        text = f"{done} of {episodes} episodes"
        if mode not in self._tasks:
            self._tasks[mode] = self._bar.add_task(mode, total=1.0, done=text)
            if not (stderr.is_terminal or self.announced):
                say(f"rollout {episodes} episodes, {mode}")
        self._bar.update(self._tasks[mode], completed=1.0 if done == episodes else share, done=text)


def say(text: str) -> None:
    """Tell people something, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _costs(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", form: str = ".1f") -> str:
    return ", ".join(format(float(value), form) for value in values)
