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

from benchmarks.contestant import Contestant, take_cores
from benchmarks.errors import run
from benchmarks.peers import peer_python
from benchmarks.rounds import Ratio, finish, interleave, table
from benchmarks.workload import Workload

NAMES = {"ours": "cvpo", "default": "cvpo, its default of 2 cost critics", "fsrl": "FSRL 0.1.0"}
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
        _ours("learner", [*settings, "--cost-heads", "2"], cores) as default,
    ):
        given = interleave({"ours": ours.play, "fsrl": fsrl.play, "default": default.play}, rounds)
        versions = {"ours": ours.versions, "fsrl": fsrl.versions}
    rate = {name: [answer["updates"] / answer["core_seconds"] for answer in answers] for name, answers in given.items()}
    share = {
        name: [answer["core_seconds"] / answer["seconds"] for answer in answers] for name, answers in given.items()
    }
    ratio = {name: Ratio.of(rate[name], rate["fsrl"]) for name in ("ours", "default")}
    milliseconds = {name: [1000 / each for each in rates] for name, rates in rate.items()}
    rows = [
        [NAMES[name], f"{min(each):.1f} to {max(each):.1f}", str(ratio[name]) if name in ratio else "1"]
        for name, each in milliseconds.items()
    ]
    print(table(["learner", "ms an update", "updates a second, over FSRL"], rows))
    print(f"share of the core that a contestant had: at least {min(min(each) for each in share.values()):.0%}")
    low, high = ratio["ours"].spread
    finish(
        "learner",
        {
            "benchmark": "learner",
            "updates_per_second_ratio": round(ratio["ours"].median, 3),
            "spread": [round(low, 3), round(high, 3)],
            "rounds": rounds,
        },
        {
            **_setting(cores),
            "versions": versions,
            "ratios": {name: each.document() for name, each in ratio.items()},
            "milliseconds_per_update": milliseconds,
            "core_share": share,
        },
    )


def profile(cores: Sequence[int], rounds: int) -> None:
    """Milliseconds of each part of an update, and what its arithmetic takes at the core's peak."""
    with _ours("parts", ["--updates", "200"], cores) as ours:
        answers = [ours.play() for _ in range(rounds)]
        versions = ours.versions
    gflop: dict[str, float] = answers[0]["gflop"]
    milliseconds = _medians([answer["milliseconds"] for answer in answers])
    peak = _medians([answer["peak_gflops"] for answer in answers])
    at_peak = {part: 1000 * each / peak["float32"] for part, each in gflop.items()}
    total = sum(milliseconds.values())
    rows = [
        [part, f"{each:.2f}", f"{each / total:.0%}", f"{at_peak[part]:.2f}" if part in at_peak else "-"]
        for part, each in milliseconds.items()
    ]
    rows.append(["all", f"{total:.2f}", "100%", f"{sum(at_peak.values()):.2f}"])
    print(table(["part", "ms", "share", "ms at the float32 peak"], rows))
    print(f"peak: {peak['float32']:.0f} GFLOP/s in float32, {peak['bfloat16']:.0f} in bfloat16")
    finish(
        "learner_profile",
        {
            "benchmark": "learner_profile",
            "milliseconds_per_update": round(total, 3),
            "milliseconds_at_peak": round(sum(at_peak.values()), 3),
        },
        {
            **_setting(cores),
            "versions": versions,
            "rounds": rounds,
            "milliseconds": milliseconds,
            "gflop": gflop,
            "peak_gflops": peak,
        },
    )


def sweep(cores: Sequence[int], rounds: int) -> None:
    """Milliseconds an update for growing sizes, one at a time."""
    with _ours("sweep", ["--seconds", "1"], cores) as ours:
        answers = [ours.play() for _ in range(rounds)]
        versions = ours.versions
    found = {size: _medians([answer[size] for answer in answers]) for size in answers[0]}
    for size, each in found.items():
        print(table([size, *each], [["ms an update", *(f"{value:.1f}" for value in each.values())]]) + "\n")
    finish(
        "learner_sweep",
        {"benchmark": "learner_sweep", "milliseconds_per_update": found},
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
