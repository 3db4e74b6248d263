"""The tables of docs/performance.md, made from committed results: `python -m benchmarks.page` writes them.

A table stands in the page between `<!-- NAME.json -->` and `<!-- end -->`.
"""

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rounds import RESULTS, table
from benchmarks.serving.figures import TARGETS, latency_table, ratio_table, throughput_table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARKED = re.compile(r"(?<=<!-- )(?P<name>(?!end )[\w.]+) -->\n.*?(?=<!-- end -->)", re.DOTALL)
Document = Mapping[str, Any]


def learner(document: Document) -> str:
    """Ours and FSRL's milliseconds, the ratio, and what a GPU makes of it."""
    names = {
        "float32": "cvpo",
        "fsrl": "FSRL 0.1.0",
        "bfloat16": "cvpo, compute.precision=bfloat16",
        "default": "cvpo, its default of 2 cost critics",
    }
    ratios = document["ratios"]
    rows = [
        [names[name], _range(each, 1), _ratio(ratios[name]) if name in ratios else "1"]
        for name, each in document["milliseconds_per_update"].items()
    ]
    least = min(min(each) for each in document["core_share"].values())
    text = table(["learner", "ms an update", "updates a second, over FSRL"], rows)
    return f"{text}\n\nIn the busiest round a contestant had {least:.0%} of its core.\n\n{_gpu(document['gpu'])}\n"


def _gpu(document: Document | None) -> str:
    if document is None:
        return "No CUDA device was there, so nothing is said of one."
    milliseconds = {(row["device"], row["width"], row["batch"]): row["milliseconds"] for row in document["updates"]}
    rows = [
        [f"{width}, {batch}", f"{cpu:.1f}", f"{(cuda := milliseconds['cuda', width, batch]):.1f}", f"{cpu / cuda:.2f}"]
        for (device, width, batch), cpu in milliseconds.items()
        if device == "cpu"
    ]
    header = ["width, batch", "ms an update, CPU", f"ms, {document['name']}", "CPU over CUDA"]
    return table(header, rows)


def learner_profile(document: Document) -> str:
    """Milliseconds by part, and what the arithmetic takes at the peak."""
    milliseconds, gflop, peak = document["milliseconds"], document["gflop"], document["peak_gflops"]
    total = sum(milliseconds.values())

    def at_peak(work: float) -> str:
        return f"{1000 * work / peak['float32']:.2f}"

    rows = [
        [part, f"{each:.2f}", f"{each / total:.0%}", at_peak(gflop[part]) if part in gflop else "-"]
        for part, each in milliseconds.items()
    ]
    rows.append(["all", f"{total:.2f}", "100%", at_peak(sum(gflop.values()))])
    text = table(["part", "ms", "share", "ms of its arithmetic at the peak"], rows)
    return (
        f"{text}\n\nPeak of this core in a product of that shape: {peak['float32']:.0f} GFLOP/s in float32, "
        f"{peak['bfloat16']:.0f} in bfloat16.\n"
    )


def learner_sweep(document: Document) -> str:
    """Milliseconds for growing sizes."""
    words = {"batch_size": "batch", "samples": "actions a state", "hidden": "width", "costs": "constraints"}
    return "\n".join(
        f"{table([words[size], *each], [['ms an update', *(f'{value:.1f}' for value in each.values())]])}\n"
        for size, each in document["milliseconds_per_update"].items()
    )


def simulator(document: Document) -> str:
    """Steps a second of both, and the ratio."""
    rows = [
        [
            task,
            *(f"{statistics.median(each[name]):,.0f}" for name in ("stock", "ours")),
            _ratio(document["ratios"][task]),
        ]
        for task, each in document["steps_per_second"].items()
    ]
    rows.append(["geometric mean", "", "", _ratio(document["mean"])])
    least = min(min(share) for task in document["core_share"].values() for share in task.values())
    return (
        f"{table(['task', 'stock', 'cvpo', 'cvpo over stock'], rows)}\n\n"
        f"{document['rounds']} rounds. In the busiest one a contestant had {least:.0%} of its core.\n"
    )


def simulator_identity(document: Document) -> str:
    """How much was compared."""
    rows = [
        [task, *(f"{each[name]:,.0f}" for name in ("episodes", "steps", "cost", "goals"))]
        for task, each in document["tasks"].items()
    ]
    return f"{table(['identical to the last bit', 'episodes', 'steps', 'cost', 'goals reached'], rows)}\n"


def simulator_profile(document: Document) -> str:
    """Microseconds of a step and of a reset."""
    rows = [
        [
            task,
            f"{each['step']:.0f}",
            f"{each['mujoco']:.0f}",
            f"{each['mujoco'] / each['step']:.0%}",
            f"{each['reset']:,.0f}",
        ]
        for task, each in document["microseconds"].items()
    ]
    return f"{table(['task', 'a step, µs', 'MuJoCo in it', 'share', 'a reset, µs'], rows)}\n"


def training(document: Document) -> str:
    """Seconds of whole runs, and the ratio."""
    rows = [
        [
            task,
            _range(each["seconds"]["cvpo"], 0),
            _range(each["seconds"]["FSRL"], 0),
            _ratio(each["ratio"]),
            _ratio(each["ratio_without_startup"]),
            f"{_range(each['startup_seconds']['cvpo'], 0)} / {_range(each['startup_seconds']['FSRL'], 0)}",
            _ratio(each["ratio_of_core_seconds"]),
        ]
        for task, each in document["tasks"].items()
    ]
    header = [
        "task",
        "cvpo, s",
        "FSRL, s",
        "FSRL over cvpo",
        "without the start",
        "start, s: cvpo / FSRL",
        "core seconds",
    ]
    work = next(iter(document["tasks"].values()))["updates"]["FSRL"]
    others = max(share for task in document["tasks"].values() for each in task["others"].values() for share in each)
    tried = ", ".join(f"{threads}: {each:.0f} s" for threads, each in document["fsrl_threads_tried_seconds"].items())
    why = f", the fastest of those tried ({tried} for 5,000 steps)" if tried else ""
    return (
        f"{table(header, rows)}\n\n{document['steps']:,} steps and {work:,} updates each. "
        f"FSRL's number of torch threads: {document['fsrl_threads']}{why}. "
        f"In the busiest run other processes used {others:.0%} of the two cores.\n"
    )


def checkpoints(document: Document) -> str:
    """Seconds and megabytes of a checkpoint, and what it is beside the learner's time and beside writing all."""
    rows = [
        [
            f"{int(stored):,}",
            f"{each['checkpoint_every']:,}",
            _range(each["seconds"]["append"], 2),
            f"{max(each['bytes']['append']) / 1e6:.1f}",
            f"{each['share_of_learner_time']['median']:.2%}",
            _ratio(each["whole_over_append_seconds"]),
            f"{each['whole_over_append_bytes']['median']:.1f}",
        ]
        for stored, each in document["sizes"].items()
    ]
    header = ["transitions", "steps between", "s", "MB", "of the updates between", "all over new, time", "bytes"]
    return f"{table(header, rows)}\n"


def serving(document: Document) -> str:
    """Ratios, waits of one and of many clients, and answers a second."""
    parts = [
        ratio_table(document["spread"], TARGETS),
        f"One client that asks as soon as it has its answer:\n\n{latency_table(document['closed'])}",
        f"Clients on a schedule; the number is theirs:\n\n{latency_table(document['paced'])}",
        f"As many as they answer, of so many clients:\n\n{throughput_table(document['throughput'])}",
    ]
    parts += [f"Missing: {name}. {why.splitlines()[0]}" for name, why in document["missing"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return "\n\n".join([*parts, f"{document['rounds']} rounds, {document['seconds']} s in all. {versions}.\n"])


TABLES: dict[str, Callable[[Document], str]] = {
    "learner": learner,
    "learner_profile": learner_profile,
    "learner_sweep": learner_sweep,
    "simulator": simulator,
    "simulator_identity": simulator_identity,
    "simulator_profile": simulator_profile,
    "training": training,
    "checkpoints": checkpoints,
    "serving": serving,
}


def measured(document: Document) -> str:
    """Where and when a result is from."""
    machine = document["machine"]
    return (
        f"Measured {document['date']} at commit {document['cvpo']['commit']} on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']:.0f} GiB.\n"
    )


def fill(page: str, text: Callable[[str], str]) -> str:
    """The page with what stands between `<!-- NAME -->` and `<!-- end -->` made anew, by its name."""
    return MARKED.sub(lambda found: f"{found['name']} -->\n{text(found['name'])}", page)


def filled(page: str) -> str:
    """The page with its tables made anew from the results."""

    def text(file: str) -> str:
        if not (RESULTS / file).is_file():
            return "Not measured yet.\n"
        document = json.loads((RESULTS / file).read_text())
        return f"{TABLES[file.removesuffix('.json')](document)}\n{measured(document)}"

    return fill(page, text)


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _ratio(document: Mapping[str, Any]) -> str:
    return f"{document['median']:.2f} ({document['low']:.2f} to {document['high']:.2f})"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
