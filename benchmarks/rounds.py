"""Interleaved rounds, ratios with their spread, and the file and the line of JSON in which a benchmark ends."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.contestant import ROOT

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


@dataclass(frozen=True)
class Ratio:
    """A ratio over rounds: one number per round, since what disturbs a round disturbs both contestants."""

    per_round: tuple[float, ...]

    @classmethod
    def of(cls, numerator: Sequence[float], denominator: Sequence[float]) -> "Ratio":
        """Round by round."""
        return cls(tuple(above / below for above, below in zip(numerator, denominator, strict=True)))

    @property
    def median(self) -> float:
        """The headline."""
        return statistics.median(self.per_round)

    @property
    def spread(self) -> tuple[float, float]:
        """Least and greatest."""
        return min(self.per_round), max(self.per_round)

    def __str__(self) -> str:
        low, high = self.spread
        return f"{self.median:.2f} ({low:.2f} to {high:.2f} over {len(self.per_round)} rounds)"

    def document(self) -> dict[str, Any]:
        """For the results file."""
        low, high = self.spread
        return {"median": self.median, "low": low, "high": high, "per_round": list(self.per_round)}


def interleave(contestants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Let each contestant play in each round; the order is turned round from one round to the next.

    Returns:
        What each gave, in the order of rounds.
    """
    given: dict[str, list[T]] = {name: [] for name in contestants}
    for index in range(rounds):
        order = list(contestants) if index % 2 == 0 else list(contestants)[::-1]
        for name in order:
            given[name].append(contestants[name]())
    return given


def machine() -> dict[str, Any]:
    """What this runs on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def provenance() -> dict[str, Any]:
    """When, of what, and on what a result is."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cvpo": {"version": importlib.metadata.version("cvpo"), "commit": _commit()},
        "machine": machine(),
    }


def finish(name: str, headline: Mapping[str, Any], details: Mapping[str, Any], *, save: bool = True) -> None:
    """Write `results/NAME.json`, and print the headline as the last line.

    Args:
        name: of the benchmark.
        headline: what the line of JSON holds.
        details: settings, rounds, versions of the contestants: what else a reader needs to judge it.
        save: or only print.
    """
    document = {**headline, **provenance(), **details}
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(headline))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned so that it reads as text too; the first column is words."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [("-" * width if column == 0 else "-" * (width - 1) + ":") for column, width in enumerate(widths)]
    return "\n".join([text(header), text(rule), *(text(row) for row in rows)])


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """Of the working tree; with a + where it was changed since. None outside of a clone."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
