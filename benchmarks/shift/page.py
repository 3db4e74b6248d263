"""The table of docs/shift.md, from the committed results."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks import page
from benchmarks.contestant import ROOT
from benchmarks.rounds import RESULTS, table

PAGE = ROOT / "docs" / "shift.md"
Document = Mapping[str, Any]


def in_task(env_id: str) -> str:
    """What a run in another task is called."""
    return f"in {env_id.rpartition(':')[2]}"


def detection(document: Document) -> str:
    """What is noticed, a table for each policy."""
    parts = []
    for task, measured in document["tasks"].items():
        rows = [
            [
                name,
                f"{found['share_of_steps']:.2%}",
                "-" if found["median_steps"] is None else f"{found['median_steps']:,.0f}",
                f"{found['flagged_episodes']:.0%}",
                f"{found['share_of_steps_out_of_range']:.2%}",
                f"{found['episode_return']:,.1f}",
            ]
            for name, found in measured["detection"].items()
        ]
        header = ["observations", "steps over", "steps to the first", "episodes", "steps out of range", "return"]
        parts.append(
            f"`{task}`, {measured['trained_steps']:,} steps of training; {measured['episodes']} episodes each. "
            f"Threshold {measured['shift_threshold']:.3g}, set on {measured['shift_episodes']} episodes; claimed of a "
            f"fresh episode: at most {measured['shift_false_alarm_rate']:.2%} of its steps.\n\n{table(header, rows)}"
        )
    return "\n\n".join(parts)


def filled(text: str) -> str:
    """The page with its table made anew."""
    results = RESULTS / "shift.json"
    if not results.is_file():
        return page.fill(text, lambda name: "Not measured yet.\n")
    document = json.loads(results.read_text())
    return page.fill(text, lambda name: f"{detection(document)}\n\n{page.measured(document)}")


def write() -> None:
    """Put the results into the page."""
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    write()
