"""What is learned, from training to committed data: `python -m benchmarks.learning`.

One run for each task, cost limit and seed, one on each core, most important first. When a run ends, its last policy is
evaluated in 100 fresh episodes, deterministic and sampled, and its result is written to benchmarks/results/learning.
A benchmark that was cut off goes on when it is run again. Seeds 10 to 19 are reported; other seeds and lengths are
trials, written to benchmarks/results/learning/trials, and never summarized.
"""

import argparse
import json
import os
import sys

from benchmarks.errors import BenchmarkError, run
from benchmarks.learning import figures, page, results, runs
from benchmarks.learning.cores import Core, StoppedError, work
from benchmarks.learning.jobs import DEFAULT_SEEDS, GROUPS, TASKS, Job, plan
from benchmarks.learning.results import Result


def main() -> None:
    """Do what the command line asks for."""
    arguments = _arguments()
    if arguments.summary:
        print(json.dumps(results.summary(results.committed())))
        return
    if arguments.figures:
        for picture in figures.draw(results.committed(), page.FIGURES):
            print(picture)
        print(page.write(results.committed()))
        return
    jobs = plan(arguments.group or GROUPS, arguments.task or (), arguments.seeds or DEFAULT_SEEDS, arguments.steps)
    if arguments.again:
        for job in jobs:
            runs.discard(job)
    due = [job for job in jobs if not runs.stands(job, say)]
    say(f"runs: {len(jobs)}, finished: {len(jobs) - len(due)}")
    cores = sorted(os.sched_getaffinity(0))
    at_once = min(arguments.jobs or len(cores), max(1, len(due)))

    def do(job: Job, core: Core) -> None:
        label = f"{job.variant} {TASKS[job.env_id].name} {job.cost_limit:g} s{job.seed}"
        result = runs.finish(job, core, at_once, lambda line: say(f"{label:32} {line}"))
        say(f"{label:32} {_headline(result)}")

    undone = work(due, [cores[i % len(cores)] for i in range(at_once)], do, say)
    if any(isinstance(error, StoppedError) for error in undone):
        sys.exit(130)
    if undone:
        raise BenchmarkError(
            f"{len(undone)} of {len(due)} runs failed, as said above; the others are finished. The same command tries "
            "again from where they are, --again from their start."
        )


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the summary."""
    print(text, file=sys.stderr, flush=True)


def _headline(result: Result) -> str:
    policy = result.deterministic
    reached = result.steps_to_target
    return (
        f"return {policy.episode_return.mean:.1f}, cost {policy.cost.mean:.1f} / {result.cost_limit:g}, CVaR 0.9 "
        f"{policy.cost_cvar90:.1f}, {policy.over_limit_share:.0%} of episodes over; the target "
        f"{f'first at {reached:,} steps' if reached else 'not reached'}; {result.seconds:.0f} s"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", choices=GROUPS, action="append", help="once per group; all unless given")
    parser.add_argument("--task", choices=TASKS, action="append", metavar="ENV", help="once per task; all unless given")
    parser.add_argument("--seeds", type=int, nargs="+", help=f"unless given: {' '.join(map(str, DEFAULT_SEEDS))}")
    parser.add_argument("--steps", type=int, help="of each run, for a trial")
    parser.add_argument("--jobs", type=int, help="runs at a time; unless given one on each core")
    parser.add_argument("--again", action="store_true", help="also those that are finished, from their start")
    parser.add_argument("--summary", action="store_true", help="print the committed results as one JSON object")
    parser.add_argument(
        "--figures", action="store_true", help="draw docs/figures, and put them and the tables into docs/results.md"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
