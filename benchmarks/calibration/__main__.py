"""How far predicted costs and flags can be trusted, on fresh episodes: `python -m benchmarks.calibration`.

For each task the last policy of a finished run of `benchmarks.learning` is exported and rolled out. Some episodes
calibrate its predictions; others, used for nothing else, try them, beside the critic as it is and beside the best that
can be said from time and elapsed cost alone. Results are written to benchmarks/results/calibration, tables and the
picture of docs/calibration.md by --page.
"""

import argparse
import json
import sys

from benchmarks.calibration import page
from benchmarks.calibration.compare import compare
from benchmarks.calibration.measure import TASKS, measure
from benchmarks.errors import run
from benchmarks.rounds import RESULTS

FOLDER = RESULTS / "calibration"


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=TASKS, action="append", help="once per task; all unless given")
    parser.add_argument("--compare", action="store_true", help="compare where the guess of the cost comes from")
    parser.add_argument("--summary", action="store_true", help="print the committed results as one JSON object")
    parser.add_argument("--page", action="store_true", help="draw the figures and fill docs/calibration.md")
    arguments = parser.parse_args()
    if arguments.summary:
        print(json.dumps(page.summary(page.committed(FOLDER))))
        return
    if arguments.page:
        print(page.write(page.committed(FOLDER)))
        return
    for env_id in arguments.task or TASKS:
        made, folder = (compare, page.WAYS_FOLDER) if arguments.compare else (measure, FOLDER)
        document = made(env_id, lambda line: print(line, file=sys.stderr, flush=True))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{env_id}.json").write_text(json.dumps(document, indent=1) + "\n")
        print(json.dumps(document["ways"] if arguments.compare else page.summary([document])), flush=True)


if __name__ == "__main__":
    run(main)
