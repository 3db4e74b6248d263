"""A bundle as one HTML page: what its manifest says, with pictures, in a file that needs no other."""

import base64
import html
import io
import math

import matplotlib as mpl

mpl.use("Agg")  # files only: a server has no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from cvpo.bundle import OUTPUTS, POLICY_GRAPH, Bundle, Calibration, Constraint
from cvpo.inspection import describe, plain

LIMIT, GOOD, BAD = "tab:red", "tab:blue", "tab:orange"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { margin-bottom: 0 }
pre { background: #f5f5f5; padding: 1rem; white-space: pre-wrap; font-size: 13px; line-height: 1.45 }
img { max-width: 100% } figure { margin: 1.5rem 0 } figcaption { color: #555; font-size: 14px }
.warning { border-left: 4px solid #c60; padding-left: 1rem }
"""


def bundle_page(bundle: Bundle) -> str:
    """The page. Everything in it comes from the bundle, and nothing of a bundle is taken for HTML."""
    manifest = bundle.manifest
    title = html.escape(f"{plain(manifest.name)}, version {manifest.version}")
    parts = [
        f"<h1>{title}</h1>",
        '<p class="warning">It is no safety-rated function (ISO 13849, IEC 61508). Keep an independent stop that works '
        "without it.</p>",
        f"<pre>{html.escape(describe(bundle))}</pre>",
    ]
    if manifest.evaluations:
        parts.append(
            _figure(
                _costs(bundle),
                "Cost of an episode: mean with its 95 % interval (bar), mean of the worst tenth of the episodes "
                "(cross), and the limit (line).",
            )
        )
    if manifest.calibration is not None:
        parts.append(
            _figure(
                _trust(manifest.calibration, manifest.constraints),
                "On test episodes, by constraint. Left: share of steps whose cost stayed within cost_upper, "
                "where that bound is low and where it is high, against what is claimed. Middle: how often a budget was "
                "exceeded, against the probability that was said; on the diagonal both are the same. Right: sessions "
                "over budget that no flag announced in time, against what was meant, and steps of the others flagged.",
            )
        )
    parts.append(
        _figure(
            _answers(bundle),
            "The situations of the golden request: what the policy answered to each at export. Filled points raised a "
            "flag.",
        )
    )
    parts.append(f"<h2>Model card</h2><pre>{html.escape(bundle.model_card)}</pre>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _figure(figure: Figure, caption: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    picture = base64.b64encode(data.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{picture}"><figcaption>{text}</figcaption></figure>'


def _label(text: str) -> str:
    """A name as a picture shows it: as it is, for matplotlib would take what stands between dollars for a formula."""
    return plain(text).replace("$", r"\$")


def _costs(bundle: Bundle) -> Figure:
    manifest = bundle.manifest
    C = len(manifest.constraints)
    figure, axes = plt.subplots(1, C, figsize=(4.5 * C, 3.2), layout="constrained", squeeze=False)
    for index, (axis, constraint) in enumerate(zip(axes[0], manifest.constraints, strict=True)):
        for row, evaluation in enumerate(manifest.evaluations):
            cost = evaluation.episode_cost[index]
            axis.barh(row, cost.mean, color=GOOD if _within(cost.mean, constraint) else BAD, height=0.5)
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
    return cost <= (math.inf if constraint.cost_limit is None else constraint.cost_limit)


def _trust(calibration: Calibration, constraints: tuple[Constraint, ...]) -> Figure:
    C = len(constraints)
    figure, axes = plt.subplots(C, 3, figsize=(11, 3.4 * C), layout="constrained", squeeze=False)
    for row, constraint, result in zip(axes, constraints, calibration.results, strict=True):
        covered, reliable, flags = row
        covered.set_title(f"{_label(constraint.name)}: cost within its bound")
        bounds = result.coverage_by_bound
        covered.plot([b.cost_upper for b in bounds], [b.coverage for b in bounds], "o-", color=GOOD, label="by bound")
        covered.axhline(result.coverage, color="0.6", label="of all")
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
        flags.bar([0], [result.missed_share or 0], 0.5, color=BAD)
        flags.bar([1], [result.flagged_share or 0], 0.5, color="0.6")
        flags.axhline(calibration.miss_rate, color=LIMIT, label="misses meant")
        flags.set_xticks([0, 1], ["sessions missed", "steps flagged within budget"])
        for axis in (covered, flags):
            axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
            axis.legend(fontsize=8)
    return figure


def _answers(bundle: Bundle) -> Figure:
    names = [constraint.name for constraint in bundle.manifest.constraints]
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.4), layout="constrained", squeeze=False)
    answers = dict(zip(OUTPUTS[POLICY_GRAPH], bundle.golden.outputs[POLICY_GRAPH].values(), strict=True))
    allowed = bundle.golden.inputs[POLICY_GRAPH]["cost_allowed"]
    for index, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        limited = np.isfinite(allowed[:, index])
        flagged = answers["violation"][:, index].astype(bool)
        for raised, face in ((False, "none"), (True, BAD)):
            rows = limited & (flagged == raised)
            axis.scatter(
                allowed[rows, index], answers["violation_probability"][rows, index], facecolors=face, edgecolors=BAD
            )
        axis.axhline(bundle.manifest.alarm_levels[index], color=LIMIT, lw=1, label="alarm level")
        axis.set_ylim(-0.05, 1.05)
        axis.set_title(_label(name))
        axis.set_xlabel("cost_allowed")
        axis.set_ylabel("violation_probability")
        axis.legend(loc="lower right", fontsize=8)
    return figure
