"""Updates a second over FSRL's: `python -m benchmarks.learner`.

Both learners get the same batch size, sampled actions, networks and number of critics (FSRL's defaults), each from its
own replay store, sampling included, on one thread of the same core, in turns.
"""

import argparse
import dataclasses
import sys

from benchmarks.contestant import Contestant, take_cores
from benchmarks.errors import run
from benchmarks.peers import peer_python
from benchmarks.rounds import Ratio, finish, interleave, table
from benchmarks.workload import Workload

NAMES = {"ours": "cvpo", "default": "cvpo, its default of 2 cost critics", "fsrl": "FSRL 0.1.0"}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def main() -> None:
    """Play the rounds, and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of updates, per contestant and round")
    arguments = parser.parse_args()
    cores = take_cores(1)
    settings = ["--seconds", str(arguments.seconds), "--threads", "1"]

    def contestant(name: str, python: str, module: str, *more: str) -> Contestant:
        return Contestant(name, python, module, [*settings, *more], cores=cores, environment=ONE_THREAD)

    with (
        contestant("FSRL", str(peer_python("fsrl")), "benchmarks.peers.fsrl.learner") as fsrl,
        contestant("cvpo", sys.executable, "benchmarks.ours.learner") as ours,
        contestant("cvpo", sys.executable, "benchmarks.ours.learner", "--cost-heads", "2") as default,
    ):
        given = interleave({"ours": ours.play, "fsrl": fsrl.play, "default": default.play}, arguments.rounds)
        versions = {"ours": ours.versions, "fsrl": fsrl.versions}
    rate = {name: [answer["updates"] / answer["seconds"] for answer in answers] for name, answers in given.items()}
    ratio = {name: Ratio.of(rate[name], rate["fsrl"]) for name in ("ours", "default")}
    milliseconds = {name: [1000 / each for each in rates] for name, rates in rate.items()}
    rows = [
        [NAMES[name], f"{min(each):.1f} to {max(each):.1f}", str(ratio[name]) if name in ratio else "1"]
        for name, each in milliseconds.items()
    ]
    print(table(["learner", "ms an update", "updates a second, over FSRL"], rows))
    low, high = ratio["ours"].spread
    finish(
        "learner",
        {
            "benchmark": "learner",
            "updates_per_second_ratio": round(ratio["ours"].median, 3),
            "spread": [round(low, 3), round(high, 3)],
            "rounds": arguments.rounds,
        },
        {
            "workload": dataclasses.asdict(Workload()),
            "cores": len(cores),
            "threads": 1,
            "versions": versions,
            "ratios": {name: each.document() for name, each in ratio.items()},
            "milliseconds_per_update": milliseconds,
        },
    )


if __name__ == "__main__":
    run(main)
