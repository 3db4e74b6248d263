"""How the cost of an update grows: with batch, sampled actions, width and number of constraints, one at a time."""

import argparse
import dataclasses
from typing import Any

from benchmarks.contestant import answer_rounds
from benchmarks.ours.learner import Ours
from benchmarks.workload import Workload
from cvpo.training.device import prepare_processor

SWEPT: dict[str, tuple[int, ...]] = {
    "batch_size": (64, 128, 256, 512, 1024),
    "samples": (4, 8, 16, 32, 64),
    "hidden": (64, 128, 256, 512),
    "costs": (1, 2, 4, 8),
}


def main() -> None:
    """Answer rounds: milliseconds an update for each value of each size, the others as in the workload."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    prepare_processor(arguments.threads)
    learners = {
        size: {value: Ours(dataclasses.replace(Workload(), **{size: value}), stored=10_000) for value in values}
        for size, values in SWEPT.items()
    }
    for each in learners.values():
        for ours in each.values():
            ours.updates(arguments.seconds / 2)

    def play() -> dict[str, Any]:
        found: dict[str, dict[int, float]] = {}
        for size, each in learners.items():
            found[size] = {}
            for value, ours in each.items():
                done = ours.updates(arguments.seconds)
                found[size][value] = 1000 * done["core_seconds"] / done["updates"]
        return found

    answer_rounds(["torch", "numpy"], play)


if __name__ == "__main__":
    main()
