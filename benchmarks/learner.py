"""Updates a second over FSRL's: `python -m benchmarks.learner`.

Both learners get the same batch size, sampled actions, networks and number of critics (FSRL's defaults), each from its
own replay store, sampling included, on one thread of the same core, in turns. A second is one of the core, not of the
clock: what else the core does in a round is not counted, but told. `--profile` tells where our time goes against the
machine's peak, `--sweep` how it grows with the sizes; FSRL takes no part in these two.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import page
from benchmarks.contestant import Contestant, take_cores
from benchmarks.errors import run
from benchmarks.peers import peer_python
from benchmarks.rounds import Ratio, finish, interleave
from benchmarks.workload import Workload

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def main() -> None:
    """What the flags ask for; without any, the comparison with FSRL."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of updates, per contestant and round")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--profile", action="store_true", help="where our time goes")
    what.add_argument("--sweep", action="store_true", help="how our time grows with the sizes")
    arguments = parser.parse_args()
    cores = take_cores(1)
    if arguments.profile:
        profile(cores, arguments.rounds)
    elif arguments.sweep:
        sweep(cores, arguments.rounds)
    else:
        compare(cores, arguments.rounds, arguments.seconds)


def compare(cores: Sequence[int], rounds: int, seconds: float) -> None:
    """Ours against FSRL's."""
    settings = ["--seconds", str(seconds)]
    with (
        _contestant("FSRL", str(peer_python("fsrl")), "benchmarks.peers.fsrl.learner", settings, cores) as fsrl,
        _ours("learner", settings, cores) as ours,
        _ours("learner", [*settings, "--precision", "bfloat16"], cores) as bfloat16,
        _ours("learner", [*settings, "--cost-heads", "2"], cores) as default,
    ):
        players = {"float32": ours.play, "fsrl": fsrl.play, "bfloat16": bfloat16.play, "default": default.play}
        given = interleave(players, rounds)
        versions = {"ours": ours.versions, "fsrl": fsrl.versions}
    rate = {name: [answer["updates"] / answer["core_seconds"] for answer in answers] for name, answers in given.items()}
    share = {
        name: [answer["core_seconds"] / answer["seconds"] for answer in answers] for name, answers in given.items()
    }
    ratio = {name: Ratio.of(each, rate["fsrl"]) for name, each in rate.items() if name != "fsrl"}
    details = {
        **_setting(cores),
        "versions": versions,
        "ratios": {name: each.document() for name, each in ratio.items()},
        "milliseconds_per_update": {name: [1000 / each for each in rates] for name, rates in rate.items()},
        "core_share": share,
        "gpu": devices(cores, rounds),
    }
    print(page.learner(details))
    low, high = ratio["float32"].spread
    finish(
        "learner",
        {
            "benchmark": "learner",
            "updates_per_second_ratio": round(ratio["float32"].median, 3),
            "spread": [round(low, 3), round(high, 3)],
            "updates_per_second_ratio_bfloat16": round(ratio["bfloat16"].median, 3),
            "rounds": rounds,
            "gpu": details["gpu"] and details["gpu"]["name"],
        },
        details,
    )


def devices(cores: Sequence[int], rounds: int) -> dict[str, Any] | None:
    """Milliseconds an update on the CPU and on the CUDA device, for widths and batches; None where there is none."""
    if not torch.cuda.is_available():
        return None
    with _ours("devices", ["--seconds", "0.5", "--devices", "cpu", "cuda"], cores) as ours:
        answers = [ours.play()["updates"] for _ in range(rounds)]
    rows = [
        {**row, "milliseconds": statistics.median(answer[index]["milliseconds"] for answer in answers)}
        for index, row in enumerate(answers[0])
    ]
    return {"name": torch.cuda.get_device_name(), "updates": rows}


def profile(cores: Sequence[int], rounds: int) -> None:
    """Milliseconds of each part of an update, and what its arithmetic takes at the core's peak."""
    with _ours("parts", ["--updates", "200"], cores) as ours:
        answers = [ours.play() for _ in range(rounds)]
        versions = ours.versions
    details = {
        **_setting(cores),
        "versions": versions,
        "rounds": rounds,
        "milliseconds": _medians([answer["milliseconds"] for answer in answers]),
        "gflop": answers[0]["gflop"],
        "peak_gflops": _medians([answer["peak_gflops"] for answer in answers]),
    }
    print(page.learner_profile(details))
    at_peak = 1000 * sum(details["gflop"].values()) / details["peak_gflops"]["float32"]
    finish(
        "learner_profile",
        {
            "benchmark": "learner_profile",
            "milliseconds_per_update": round(sum(details["milliseconds"].values()), 3),
            "milliseconds_at_peak": round(at_peak, 3),
        },
        details,
    )


def sweep(cores: Sequence[int], rounds: int) -> None:
    """Milliseconds an update for growing sizes, one at a time."""
    with _ours("sweep", ["--seconds", "1"], cores) as ours:
        answers = [ours.play() for _ in range(rounds)]
        versions = ours.versions
    found = {size: _medians([answer[size] for answer in answers]) for size in answers[0]}
    headline = {"benchmark": "learner_sweep", "milliseconds_per_update": found}
    print(page.learner_sweep(headline))
    finish(
        "learner_sweep",
        headline,
        {**_setting(cores), "versions": versions, "rounds": rounds, "per_round": answers},
    )


def _setting(cores: Sequence[int]) -> dict[str, Any]:
    return {"workload": dataclasses.asdict(Workload()), "cores": len(cores), "threads": 1}


def _medians(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(answer[name] for answer in answers), 3) for name in answers[0]}


def _ours(module: str, settings: Sequence[str], cores: Sequence[int]) -> Contestant:
    return _contestant("cvpo", sys.executable, f"benchmarks.ours.{module}", settings, cores)


def _contestant(name: str, python: str, module: str, settings: Sequence[str], cores: Sequence[int]) -> Contestant:
    return Contestant(name, python, module, [*settings, "--threads", "1"], cores=cores, environment=ONE_THREAD)


if __name__ == "__main__":
    run(main)
