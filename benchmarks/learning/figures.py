"""The figures of docs/results.md, from the committed results. A line is a mean over seeds, a band its 95 % interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from benchmarks.learning.jobs import COMPARED_TASKS, LIMITS, LIMITS_TASK, NAMES, TASKS, Task
from benchmarks.learning.results import Result, select
from cvpo.commands.figure import save
from cvpo.commands.plot import LIMIT, TRAINING
from cvpo.evaluate import interval

TASKS_A_ROW = 4


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw what there are results for, and say into which files."""
    figures = {
        "curves": curves(results),
        "cost_at_convergence": cost_at_convergence(results),
        "compared": compared(results),
        "limits": limits(results),
    }
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure]


def curves(results: Sequence[Result]) -> Figure | None:
    """Return and cost over steps, of each task."""
    tasks = _with_results(results)
    if not tasks:
        return None
    columns = min(TASKS_A_ROW, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(2.7 * columns, 4.4 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for number, (task, ours) in enumerate(tasks.items()):
        row, column = 2 * (number // columns), number % columns
        returns, costs = axes[row, column], axes[row + 1, column]
        _band(costs, ours, "train_cost", "in training", TRAINING)
        _learned(returns, costs, task, {"evaluated": ours})
        costs.legend(fontsize="small", frameon=False)
    return figure


def cost_at_convergence(results: Sequence[Result]) -> Figure | None:
    """Box plot of the episode cost of last policies over the limit, all seeds together."""
    tasks = _with_results(results)
    if not tasks:
        return None
    figure = Figure(figsize=(2 + len(tasks), 4), layout="constrained")
    axis = figure.subplots()
    fsrl = {task: select(results, "fsrl", task.env_id, task.cost_limit) for task in tasks}
    groups = {
        "deterministic": [[run.deterministic.costs for run in ours] for ours in tasks.values()],
        "sampled": [[run.sampled.costs for run in ours] for ours in tasks.values()],
        f"{NAMES['fsrl']}, deterministic": [[run.deterministic.costs for run in theirs] for theirs in fsrl.values()],
    }
    for number, (name, costs) in enumerate(groups.items()):
        boxes = {
            position + 0.25 * (number - 1): np.concatenate(each) / task.cost_limit
            for position, (task, each) in enumerate(zip(tasks, costs, strict=True))
            if each
        }
        if boxes:
            _boxes(axis, boxes, f"C{number}", name)
    axis.axhline(1, color=LIMIT, ls="--", lw=1)
    axis.annotate("limit", (0.005, 1), xycoords=("axes fraction", "data"), color=LIMIT, va="bottom")
    axis.set_xticks(range(len(tasks)), [task.name for task in tasks], rotation=20, ha="right")
    axis.set_ylabel("episode cost / limit")
    axis.set_title("cost at convergence")
    axis.legend(fontsize="small", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def compared(results: Sequence[Result]) -> Figure | None:
    """Ours, the paper's form of the constraint and FSRL over equal steps."""
    tasks: dict[Task, dict[str, list[Result]]] = {}
    for env_id in COMPARED_TASKS:
        task = TASKS[env_id]
        found = {name: select(results, variant, env_id, task.cost_limit) for variant, name in NAMES.items()}
        if sum(map(bool, found.values())) > 1:
            tasks[task] = found
    if not tasks:
        return None
    figure = Figure(figsize=(9, 3.2 * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 2, squeeze=False)
    for (left, right), (task, found) in zip(axes, tasks.items(), strict=True):
        _learned(left, right, task, found)
        left.legend(fontsize="small", frameon=False)
    return figure


def limits(results: Sequence[Result]) -> Figure | None:
    """What the cost does when the limit is another one."""
    found = {limit: select(results, "cvpo", LIMITS_TASK, limit) for limit in LIMITS}
    if not all(found.values()):
        return None
    figure = Figure(figsize=(10.8, 3.4), layout="constrained")
    returns, costs, followed = figure.subplots(1, 3)
    for number, (limit, ours) in enumerate(found.items()):
        color = f"C{number}"
        _band(returns, ours, "episode_return", f"limit {limit:g}", color)
        _band(costs, ours, "cost", f"limit {limit:g}", color)
        costs.axhline(limit, color=color, ls="--", lw=1)
        for result in ours:
            followed.plot(limit, result.deterministic.cost.mean, "o", color=color, alpha=0.7)
    greatest = max(LIMITS)
    followed.plot([0, greatest], [0, greatest], color=LIMIT, ls="--", lw=1)
    followed.annotate("cost = limit", (greatest, greatest), color=LIMIT, ha="right", va="bottom")
    followed.set_xlabel("limit")
    followed.set_ylim(bottom=0)
    followed.set_title("cost of last policies")
    returns.set_title(f"{TASKS[LIMITS_TASK].name}: return")
    costs.set_title("cost")
    returns.legend(fontsize="small", frameon=False)
    costs.set_ylim(bottom=0)
    for axis in (returns, costs):
        _steps_axis(axis)
    followed.spines[["top", "right"]].set_visible(False)
    return figure


def _with_results(results: Sequence[Result]) -> dict[Task, list[Result]]:
    found = {task: select(results, "cvpo", task.env_id, task.cost_limit) for task in TASKS.values()}
    return {task: ours for task, ours in found.items() if ours}


def _learned(returns: Axes, costs: Axes, task: Task, groups: Mapping[str, Sequence[Result]]) -> None:
    """Return with its target and cost with its limit, a line for each group of runs."""
    for number, (label, runs) in enumerate(groups.items()):
        if runs:
            _band(returns, runs, "episode_return", label, f"C{number}")
            _band(costs, runs, "cost", label, f"C{number}")
    # Curves end above their target and below their limit, so the names stand where they do not.
    for axis, title, level, name, side in (
        (returns, f"{task.name}: return", task.must, "target", "top"),
        (costs, "cost", task.cost_limit, "limit", "bottom"),
    ):
        axis.set_visible(True)
        axis.axhline(level, color=LIMIT, ls="--", lw=1)
        axis.annotate(
            f"{name} {level:g}",
            (1, level),
            xycoords=("axes fraction", "data"),
            color=LIMIT,
            fontsize="small",
            ha="right",
            va=side,
        )
        axis.set_title(title)
        _steps_axis(axis)
    costs.set_ylim(bottom=0)


def _band(axis: Axes, runs: Sequence[Result], column: str, label: str, color: str) -> None:
    """Mean and interval over seeds, at the steps that all of them have."""
    series = [_series(run, column) for run in runs]
    steps = sorted(set.intersection(*(set(each) for each in series)))
    intervals = [interval(np.array([each[step] for each in series])) for step in steps]
    axis.plot(steps, [each.mean for each in intervals], color=color, label=label, marker=".", markersize=4)
    axis.fill_between(
        steps, [each.low for each in intervals], [each.high for each in intervals], color=color, alpha=0.15, lw=0
    )


def _series(run: Result, column: str) -> dict[int, float]:
    values = zip(run.curve.steps, getattr(run.curve, column), strict=True)
    return {steps: value for steps, value in values if value is not None}


def _boxes(axis: Axes, boxes: Mapping[float, NDArray[np.float64]], color: str, label: str) -> None:
    """Quartiles, 5 and 95 %, and a diamond for the mean, at each position."""
    drawn = axis.boxplot(
        list(boxes.values()),
        positions=list(boxes),
        widths=0.2,
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": color, "alpha": 0.35},
        medianprops={"color": color},
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": color, "markeredgecolor": color},
    )
    drawn["boxes"][0].set_label(label)


def _steps_axis(axis: Axes) -> None:
    axis.set_xlabel("environment steps")
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: f"{steps / 1000:g}k"))
    axis.spines[["top", "right"]].set_visible(False)
