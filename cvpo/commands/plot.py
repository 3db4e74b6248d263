"""Pictures of training runs: return and cost over steps, against the limit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cvpo.commands.figure import save
from cvpo.envs.make import DEFAULT_COST_NAMES
from cvpo.errors import ConfigError
from cvpo.learning.config import TrainConfig
from cvpo.training.checkpoint import read_config
from cvpo.training.metrics import read_evaluations, read_metrics

Array = NDArray[np.float64]
TRAINING, LIMIT = "0.6", "tab:red"


def plot_runs(runs: Sequence[Path], out: Path) -> Path:
    """Draw the learning curves of runs into one picture: points are evaluations of the deterministic policy.

    Raises:
        CheckpointError: a folder is not a run. ConfigError: the runs have different costs, nothing was logged yet, or
            the picture cannot be written.
    """
    configs = [read_config(run) for run in runs]
    costs_of = {
        run: config.environment.cost_names or DEFAULT_COST_NAMES for run, config in zip(runs, configs, strict=True)
    }
    if len(set(costs_of.values())) > 1:
        named = "; ".join(f"{run}: {', '.join(names)}" for run, names in costs_of.items())
        raise ConfigError(f"The runs have different costs ({named}). Plot them apart.")
    names = costs_of[runs[0]]
    columns = 1 + len(names)
    figure, axes = plt.subplots(1, columns, sharex=True, figsize=(5.5 * columns, 4), layout="constrained")
    for run, config in zip(runs, configs, strict=True):
        evaluations, rows = read_evaluations(run), _rows(run)
        label = f"{run.name} ({config.environment.env_id}, seed {config.seed})"
        steps = sorted(evaluations)
        returns = [evaluations[step].episode_return for step in steps]
        line = axes[0].plot(steps, [r.mean for r in returns], marker="o", markersize=3, label=label)[0]
        axes[0].fill_between(steps, [r.low for r in returns], [r.high for r in returns], alpha=0.15)
        if len(runs) == 1:
            training = [(row["steps"], row["train/return"]) for row in rows if "train/return" in row]
            if training:
                axes[0].plot(*np.array(training).T, color=TRAINING, lw=0.8, zorder=0, label="training episodes")
        for i, (name, axis) in enumerate(zip(names, axes[1:], strict=True)):
            costs = [evaluations[step].episode_cost[i] for step in steps]
            axis.plot(steps, [c.mean for c in costs], marker="o", markersize=3, color=line.get_color(), label=label)
            axis.fill_between(
                steps, [c.low for c in costs], [c.high for c in costs], alpha=0.15, color=line.get_color()
            )
            if len(runs) == 1:
                measured = [row[f"train/cost/{name}"] for row in rows]
                axis.plot([row["steps"] for row in rows], measured, color=TRAINING, lw=0.8, zorder=0)
            _draw_limit(axis, config, i)
    several = ", of several environments" if len({config.environment.env_id for config in configs}) > 1 else ""
    for title, axis in zip(("episode return", *(f"episode cost: {name}" for name in names)), axes, strict=True):
        axis.set_title(title + several)
    axes[0].legend(fontsize="small")
    for axis in axes:
        axis.set_xlabel("environment steps")
        axis.spines[["top", "right"]].set_visible(False)
    return save(figure, out)


@dataclass(frozen=True)
class Track:
    """What a robot did in one episode, at each of its steps."""

    seconds: Array  # [T], since the episode began
    position: Array  # [T], metres along its way
    cost: Array  # [T], so far


def plot_tracks(groups: Mapping[str, Sequence[Track]], cost_limit: float, out: Path) -> Path:
    """Draw how far robots came and what that cost, one colour a group.

    Raises:
        ConfigError: the picture cannot be written.
    """
    figure, (way, cost) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (name, tracks) in enumerate(groups.items()):
        for track in tracks:
            label = name if track is tracks[0] else None
            way.plot(track.seconds, track.position, color=f"C{number}", lw=1, label=label)
            cost.plot(track.seconds, track.cost, color=f"C{number}", lw=1)
    cost.axhline(cost_limit, color=LIMIT, ls="--", lw=1)
    cost.annotate(
        f"limit {cost_limit:g}", (0.01, cost_limit), xycoords=cost.get_yaxis_transform(), color=LIMIT, va="bottom"
    )
    way.set_title("position (m)")
    way.legend(fontsize="small")
    cost.set_title("cost so far")
    for axis in (way, cost):
        axis.set_xlabel("time in the episode (s)")
        axis.spines[["top", "right"]].set_visible(False)
    return save(figure, out)


def _draw_limit(axis: Axes, config: TrainConfig, cost: int) -> None:
    """Draw the limit of a cost, as it is scheduled."""
    limit, schedule = config.cost_limits[cost], config.limit.schedule
    if math.isinf(limit):
        return
    if schedule:
        line = [(0, schedule[0].cost_limits[cost])]
        line += [(point.steps, point.cost_limits[cost]) for point in schedule]
        line += [(schedule[-1].steps, limit), (config.schedule.steps, limit)]
        axis.plot(*np.array(line).T, color=LIMIT, ls="--", lw=1)
    else:
        axis.axhline(limit, color=LIMIT, ls="--", lw=1)
    where, side = (0.99, "right") if schedule else (0.01, "left")  # where it is what the label says
    axis.annotate(
        f"limit {limit:g}", (where, limit), xycoords=("axes fraction", "data"), color=LIMIT, va="bottom", ha=side
    )


def _rows(run: Path) -> list[dict[str, float]]:
    try:
        return read_metrics(run)
    except FileNotFoundError:
        raise ConfigError(f"{run} has no metrics yet; the first row comes after 1,000 steps.") from None
