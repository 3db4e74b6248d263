"""A contestant for tests: `python -m tests.benchmarks.players WHAT`."""

import os
import sys

from benchmarks.contestant import answer_rounds


def main(what: str) -> None:
    rounds = 0

    def play() -> dict[str, object]:
        nonlocal rounds
        rounds += 1
        print("a library that prints")
        if what == "dies":
            sys.exit("out of luck")
        if what == "sleeps":
            sys.stdin.read()
        return {"rounds": rounds, "cores": sorted(os.sched_getaffinity(0))}

    answer_rounds(["numpy"], play)


if __name__ == "__main__":
    main(sys.argv[1])
