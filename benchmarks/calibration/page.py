"""docs/calibration.md and its pictures, from the committed results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import page
from benchmarks.contestant import ROOT
from benchmarks.rounds import RESULTS, table

PAGE = ROOT / "docs" / "calibration.md"
WAYS_FOLDER = RESULTS / "calibration_ways"
PICTURE = PAGE.parent / "figures" / "calibration.png"
Document = Mapping[str, Any]
MOST_COVERED, MANY_ZEROS = 0.95, 0.85  # wanted of a bound of 0.9, unless so many costs are zero


def committed(folder: Path) -> list[Document]:
    """One document for each task that was measured."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def summary(documents: Sequence[Document]) -> dict[str, Any]:
    """By task, the figures that the targets speak of; means, without their intervals."""
    return {
        document["env_id"]: {
            "episodes": document["episodes"]["fresh"],
            "coverage": document["rest"]["coverage"]["mean"],
            "zero_cost_share": document["rest"]["zero_cost_share"],
            "pinball_ratio_constant": document["rest"]["pinball_ratio_constant"]["mean"],
            "pinball_ratio_elapsed": document["rest"]["pinball_ratio_elapsed"]["mean"],
            "window_coverage": document["window"]["coverage"]["mean"],
            "window_pinball_ratio_constant": document["window"]["pinball_ratio_constant"]["mean"],
            "window_pinball_ratio_elapsed": document["window"]["pinball_ratio_elapsed"]["mean"],
            **{
                name: document["probability"][name]
                for name in ("calibration_error", "brier", "brier_base_rate", "brier_elapsed")
            },
            **{
                name: document["flags"][name]
                for name in (
                    "violating_sessions",
                    "clean_sessions",
                    "miss_rate",
                    "miss_rate_upper",
                    "false_alarm_rate",
                    "false_alarm_rate_uncalibrated",
                    "false_alarm_rate_elapsed",
                    "lead_steps_median",
                )
            },
        }
        for document in documents
    }


def bounds(documents: Sequence[Document]) -> str:
    """Coverage and sharpness of `cost_upper`."""
    parts = {"all that is left": "rest", "the window": "window"}
    found = {f"{d['env_id']}, {words}": d[part] for d in documents for words, part in parts.items()}
    rows = [
        [
            name,
            _interval(each["coverage"], 3),
            f"{each['zero_cost_share']:.0%}",
            _interval(each["pinball_ratio_constant"], 2),
            _interval(each["pinball_ratio_elapsed"], 2),
        ]
        for name, each in found.items()
    ]
    text = table(["task", "coverage", "costs of zero", "loss / best constant", "loss / time and elapsed"], rows)
    often = [
        name
        for name, each in found.items()
        if each["coverage"]["mean"] > MOST_COVERED and each["zero_cost_share"] < MANY_ZEROS
    ]
    said = "; ".join(often) or "nowhere"
    return f"{text}\n\nOver {MOST_COVERED:g}, where fewer than {MANY_ZEROS:.0%} of the costs are zero: {said}."


def probabilities(documents: Sequence[Document]) -> str:
    """Calibration error and Brier scores."""
    rows = [
        [
            document["env_id"],
            *(
                _figure(document["probability"], name, ".3f")
                for name in ("calibration_error", "brier", "brier_elapsed", "brier_base_rate")
            ),
        ]
        for document in documents
    ]
    return table(["task", "calibration error", "Brier score", "time and elapsed", "base rate"], rows)


def flags(documents: Sequence[Document]) -> str:
    """Misses, false alarms and lead."""
    rows = []
    for document in documents:
        found = document["flags"]
        quartiles = found["lead_steps_quartiles"]
        rows.append(
            [
                document["env_id"],
                f"{found['violating_sessions']} / {found['clean_sessions']}",
                str(found.get("too_soon_sessions", "-")),
                _missed(found),
                _missed(found["at_limit"]) if "at_limit" in found else "-",
                *(_figure(found, f"false_alarm_rate{of}", ".1%") for of in ("", "_elapsed", "_uncalibrated")),
                "-" if quartiles is None else " / ".join(f"{steps:.0f}" for steps in quartiles),
            ]
        )
    header = [
        "task",
        "sessions over / within budget",
        "over too soon",
        "missed",
        "missed at the limit",
        "false alarms",
        "time and elapsed",
        "critic alone",
        "lead, quartiles",
    ]
    notes = [f"{document['env_id']}, {document['alarm_note']}" for document in documents if "alarm_note" in document]
    return f"{table(header, rows)}\n\nAlarm levels: {'; '.join(notes) or 'how they were found was not kept'}."


def policies(documents: Sequence[Document]) -> str:
    """Whose predictions these are."""
    rows = [
        [
            document["env_id"],
            str(document["seed"]),
            f"{document['steps']:,}",
            f"{document['episode_cost']['mean']:.1f} ± {document['episode_cost']['standard_deviation']:.1f}",
            f"{document['cost_limit']:g}",
            str(sum(document["episodes"].values()) - document["episodes"]["fresh"]),
            str(document["episodes"]["fresh"]),
        ]
        for document in documents
    ]
    return table(["task", "seed", "steps", "cost", "limit", "episodes to calibrate", "fresh"], rows)


def measured(documents: Sequence[Document]) -> str:
    """Where and when."""
    return "".join(f"{document['env_id']}: {page.measured(document)}" for document in documents)


def ways(documents: Sequence[Document]) -> str:
    """What comes of each way to guess the cost, calibrated alike."""
    rows = [
        [
            document["env_id"],
            name,
            *(f"{found[part]:.2f}" for part in ("rest", "window")),
            f"{found['calibration_error']:.3f}",
            f"{found['brier']:.4f}",
        ]
        for document in documents
        for name, found in document["ways"].items()
    ]
    header = ["task", "guess", "loss, all that is left", "loss, the window", "calibration error", "Brier score"]
    whose = "".join(
        f"{document['env_id']}: seed {document['seed']}, {document['steps']:,} steps, cost "
        f"{document['episode_cost']['mean']:.1f} ± {document['episode_cost']['standard_deviation']:.1f}, "
        f"{document['episodes']['calibrating']} episodes to calibrate, {document['episodes']['fresh']} fresh. "
        f"{page.measured(document)}"
        for document in documents
    )
    return f"{table(header, rows)}\n\n{whose}"


def shield(document: Document) -> str:
    """Return and cost of a policy that costs more than it may, by how it is served."""
    alone = document["rows"][0]["episode_return"]["mean"]
    rows = [
        [
            row["mode"],
            "-" if row["alarm_level"] is None else f"{row['alarm_level']:.2g}",
            _interval(row["episode_return"], 1),
            f"{row['episode_return']['mean'] / alone:.0%}",
            _interval(row["cost"], 1),
            f"{row['cost_cvar90']:.0f}",
            f"{row['over_budget_share']:.0%}",
        ]
        for row in document["rows"]
    ]
    text = table(["mode", "alarm level", "return", "kept", "cost", "CVaR 0.9", "episodes over"], rows)
    whose = (
        f"{document['env_id']}, seed {document['seed']}, trained for {document['steps']:,} steps with a limit of "
        f"{document['trained_cost_limit']:g}, served with a budget of {document['budget']:g}, {document['episodes']} "
        "episodes a row."
    )
    return f"{text}\n\n{whose} {page.measured(document)}"


TABLES = {
    "policies": policies,
    "bounds": bounds,
    "probabilities": probabilities,
    "flags": flags,
    "measured": measured,
}


def filled(text: str, documents: Sequence[Document]) -> str:
    """The page with its tables made anew."""

    shielded = RESULTS / "shield.json"

    def made(name: str) -> str:
        if name == "shield":
            return shield(json.loads(shielded.read_text())) if shielded.exists() else "Not measured yet.\n"
        if name == "ways":
            compared = committed(WAYS_FOLDER)
            return ways(compared) if compared else "Not measured yet.\n"
        return f"{TABLES[name](documents)}\n" if documents else "Not measured yet.\n"

    return page.fill(text, made)


def write(documents: Sequence[Document]) -> Path:
    """Fill the page, and draw its picture."""
    if documents:
        draw(documents)
    PAGE.write_text(filled(PAGE.read_text(), documents))
    return PAGE


def draw(documents: Sequence[Document]) -> None:
    """Reliability of each task's probabilities: on the diagonal they come true as often as they say."""
    count = len(documents)
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, 3.6), layout="constrained", squeeze=False)
    for axis, document in zip(axes[0], documents, strict=True):
        axis.plot([0, 1], [0, 1], color="0.8")
        for each in document["probability"]["reliability"]:
            axis.plot(each["predicted"], each["observed"], "o", color="tab:blue", ms=3 + 14 * each["share"] ** 0.5)
        axis.set_title(document["env_id"], fontsize=9)
        axis.set_xlabel("violation_probability")
        axis.set_ylabel("share that came true")
        axis.set_aspect("equal")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _interval(value: Mapping[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def _missed(found: Mapping[str, Any]) -> str:
    return f"{found['miss_rate']:.1%} (up to {found['miss_rate_upper']:.1%})"


def _figure(found: Mapping[str, Any], name: str, form: str) -> str:
    """With its interval, which results of before have not."""
    value, interval = found[name], found.get("intervals", {}).get(name)
    if value is None:
        return "-"
    return f"{value:{form}}" + (f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else "")
