"""The pictures of a bundle's page, each of what its manifest or its golden request says."""

import math

import matplotlib as mpl

mpl.use("Agg")  # files only: a server has no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from cvpo.bundle import OUTPUTS, POLICY_GRAPH, Bundle, Calibration, Constraint, Interval, Manifest
from cvpo.commands.inspection import plain

LIMIT, GOOD, BAD, FLAGGED = "tab:red", "tab:blue", "tab:orange", "#ffe9d2"
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, are nowhere close together


def _label(text: str) -> str:
    """A name as a picture shows it: as it is, for matplotlib would take what stands between dollars for a formula."""
    return plain(text).replace("$", r"\$")


def learning_curve(manifest: Manifest) -> Figure:
    """Return and cost at the checkpoints up to the exported one, which is marked."""
    points, constraints = manifest.provenance.learning_curve, manifest.constraints
    figure, axes = plt.subplots(
        1, 1 + len(constraints), figsize=(4.5 * (1 + len(constraints)), 3.2), layout="constrained", squeeze=False
    )
    curves: list[tuple[str, str, float | None, list[Interval]]] = [
        ("return of an episode", "", None, [point.episode_return for point in points])
    ]
    for index, constraint in enumerate(constraints):
        cost = [point.episode_cost[index] for point in points]
        curves.append(
            (f"{_label(constraint.name)}: cost of an episode", _label(constraint.unit), constraint.cost_limit, cost)
        )
    steps = [point.steps for point in points]
    for axis, (title, unit, limit, values) in zip(axes[0], curves, strict=True):
        axis.plot(steps, [value.mean for value in values], "o-", color=GOOD, ms=3)
        axis.fill_between(
            steps, [value.low for value in values], [value.high for value in values], color=GOOD, alpha=0.2, lw=0
        )
        axis.axvline(manifest.provenance.steps, color="0.6", ls=":", label="exported")
        if limit is not None:
            axis.axhline(limit, color=LIMIT, label="limit")
            axis.set_ylim(bottom=0)
        axis.set_title(title)
        axis.set_xlabel("environment steps")
        axis.set_ylabel(unit)
        axis.legend(fontsize=8)
    return figure


def costs(manifest: Manifest) -> Figure:
    """Each episode against the limit, with mean and tail; a row for each evaluation."""
    C = len(manifest.constraints)
    figure, axes = plt.subplots(1, C, figsize=(4.5 * C, 3.2), layout="constrained", squeeze=False)
    for index, (axis, constraint) in enumerate(zip(axes[0], manifest.constraints, strict=True)):
        for row, evaluation in enumerate(manifest.evaluations):
            cost = evaluation.episode_cost[index]
            axis.barh(row, cost.mean, color=GOOD if _within(cost.mean, constraint) else BAD, height=0.5, alpha=0.3)
            single = np.array([episode[index] for episode in evaluation.costs])
            over = np.array([not _within(value, constraint) for value in single], np.bool_)
            beside = row + 0.4 * ((GOLDEN_RATIO * np.arange(len(single))) % 1 - 0.5)  # so that equal ones are seen
            for chosen, color in ((~over, GOOD), (over, BAD)):
                axis.scatter(single[chosen], beside[chosen], s=14, facecolors="none", edgecolors=color)
            axis.plot([cost.low, cost.high], [row, row], color="black", lw=1.5)
            axis.plot(evaluation.cost_cvar90[index], row, "x", color="black")
        if constraint.cost_limit is not None:
            axis.axvline(constraint.cost_limit, color=LIMIT)
        axis.set_yticks(range(len(manifest.evaluations)), [evaluation.mode for evaluation in manifest.evaluations])
        axis.set_xlim(left=0)
        axis.set_ylim(-0.8, len(manifest.evaluations) - 0.2)
        axis.set_title(f"{_label(constraint.name)}: cost of an episode")
        axis.set_xlabel(_label(constraint.unit))
    return figure


def _within(cost: float, constraint: Constraint) -> bool:
    return cost <= constraint.limit_or_inf


def trust(calibration: Calibration, constraints: tuple[Constraint, ...]) -> Figure:
    """How often bounds held, how often what was predicted came, and how often flags were missed or raised in vain."""
    C = len(constraints)
    figure, axes = plt.subplots(C, 3, figsize=(11, 3.4 * C), layout="constrained", squeeze=False)
    for row, constraint, result in zip(axes, constraints, calibration.results, strict=True):
        covered, reliable, flags = row
        covered.set_title(f"{_label(constraint.name)}: cost within its bound")
        bounds = result.coverage_by_bound
        covered.plot([b.cost_upper for b in bounds], [b.coverage for b in bounds], "o-", color=GOOD, label="by bound")
        if result.coverage is not None:
            covered.axhline(result.coverage, color="0.6", label="of all")
            if "coverage" in result.intervals:
                covered.axhspan(*result.intervals["coverage"], color="0.9", zorder=0)
        covered.axhline(calibration.confidence, color=LIMIT, label="claimed")
        covered.set_xlabel(f"cost_upper, {_label(constraint.unit)}")
        covered.set_ylim(0, 1.05)
        reliable.set_title("violation_probability")
        reliable.plot([0, 1], [0, 1], color="0.8")
        for b in result.reliability:
            reliable.plot(b.predicted, b.observed, "o", color=GOOD, ms=3 + 12 * b.share**0.5)
        reliable.set_xlabel("predicted (a larger point was said more often)")
        reliable.set_ylabel("observed")
        flags.set_title("flags")
        for place, name, color in ((0, "missed_share", BAD), (1, "flagged_share", "0.6")):
            flags.bar([place], [getattr(result, name) or 0], 0.5, color=color)
            if name in result.intervals:
                flags.vlines(place, *result.intervals[name], color="black")
        flags.axhline(calibration.miss_rate, color=LIMIT, label="misses meant")
        flags.set_xticks([0, 1], ["sessions missed", "steps flagged within budget"])
        for axis in (covered, flags):
            axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
            axis.legend(fontsize=8)
    return figure


def episode_examples(manifest: Manifest, calibration: Calibration) -> Figure:
    """What was spent along an episode and what was said of it, with a column for each constraint that has a limit."""
    shown = [
        (constraint, result.example, level)
        for constraint, result, level in zip(
            manifest.constraints, calibration.results, calibration.alarm_levels, strict=True
        )
        if result.example is not None
    ]
    figure, axes = plt.subplots(
        2, len(shown), sharex="col", figsize=(max(7, 4.5 * len(shown)), 4.6), layout="constrained", squeeze=False
    )
    for (spent, said), (constraint, example, level) in zip(axes.T, shown, strict=True):
        spent.set_title(f"{_label(constraint.name)}: flags along an episode")
        spent.plot(example.steps, example.spent, color=GOOD, label="spent so far")
        spent.axhline(example.budget, color=LIMIT, label="budget")
        spent.set_ylabel(_label(constraint.unit))
        said.plot(example.steps, example.violation_probability, color=GOOD, label="violation_probability")
        said.axhline(level, color=LIMIT, label="alarm level")
        said.set_ylim(-0.05, 1.05)
        said.set_xlabel("step of the episode")
        ends = [*example.steps[1:], example.steps[-1] + 1]
        flagged = [
            (start, end - start)
            for start, end, probability in zip(example.steps, ends, example.violation_probability, strict=True)
            if probability > level
        ]
        for axis in (spent, said):
            axis.broken_barh(
                flagged, (0, 1), transform=axis.get_xaxis_transform(), color=FLAGGED, zorder=0, lw=0, label="flagged"
            )
            if example.crossing is not None:
                axis.axvline(example.crossing, color="black", ls=":", label="budget exceeded")
            axis.legend(fontsize=8)
    return figure


def answers(bundle: Bundle) -> Figure:
    """What was answered to the situations of the golden request."""
    names = [constraint.name for constraint in bundle.manifest.constraints]
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.4), layout="constrained", squeeze=False)
    given = dict(zip(OUTPUTS[POLICY_GRAPH], bundle.golden.outputs[POLICY_GRAPH].values(), strict=True))
    allowed = bundle.golden.inputs[POLICY_GRAPH]["cost_allowed"]
    for index, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        limited = np.isfinite(allowed[:, index])
        flagged = given["violation"][:, index].astype(bool)
        for raised, face in ((False, "none"), (True, BAD)):
            rows = limited & (flagged == raised)
            axis.scatter(
                allowed[rows, index], given["violation_probability"][rows, index], facecolors=face, edgecolors=BAD
            )
        axis.axhline(bundle.manifest.alarm_levels[index], color=LIMIT, lw=1, label="alarm level")
        axis.set_ylim(-0.05, 1.05)
        axis.set_title(_label(name))
        axis.set_xlabel("cost_allowed")
        axis.set_ylabel("violation_probability")
        axis.legend(loc="lower right", fontsize=8)
    return figure
