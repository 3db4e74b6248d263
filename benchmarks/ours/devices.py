"""Updates on each device, for widths and batches: where a CUDA device is worth it."""

import argparse
from typing import Any

from benchmarks.contestant import answer_rounds
from benchmarks.ours.learner import Ours
from benchmarks.workload import Workload
from cvpo.training.device import prepare_processor

WIDTHS = (128, 256, 512, 1024)
BATCHES = (256, 1024)


def main() -> None:
    """Answer rounds: milliseconds of the clock for an update, by device, width and batch.

    An update reads its metrics back, so that the device has finished when it ends.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--devices", nargs="+", required=True)
    arguments = parser.parse_args()
    prepare_processor(arguments.threads)
    learners = {
        (device, width, batch): Ours(Workload(hidden=width, batch_size=batch), stored=10_000, device=device)
        for device in arguments.devices
        for width in WIDTHS
        for batch in BATCHES
    }
    for ours in learners.values():
        ours.updates(arguments.seconds)

    def play() -> dict[str, Any]:
        rows = []
        for (device, width, batch), ours in learners.items():
            done = ours.updates(arguments.seconds)
            milliseconds = 1000 * done["seconds"] / done["updates"]
            rows.append({"device": device, "width": width, "batch": batch, "milliseconds": milliseconds})
        return {"updates": rows}

    answer_rounds(["torch", "numpy"], play)


if __name__ == "__main__":
    main()
