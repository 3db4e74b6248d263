"""A whole run in wall clock, FSRL's time over ours: `python -m benchmarks.training`.

`cvpo train` against FSRL's own trainer on the stock simulator, from the start of the process to its end, in turns, on
the same two cores: equal steps, updates, batch, sampled actions, networks and number of critics, and as many evaluation
episodes. Each side keeps its own way of collecting and of using the cores.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from benchmarks import page
from benchmarks.contestant import Timed, take_cores, timed, versions
from benchmarks.errors import BenchmarkError, run
from benchmarks.peers import peer_python
from benchmarks.rounds import Ratio, finish, interleave
from benchmarks.workload import Workload

TASKS = ("SafetyPointCircle1-v0", "SafetyHalfCheetahVelocity-v1")
WARMUP_STEPS, WARMUP_UPDATES = 5_000, 500  # our defaults
UPDATES_PER_STEP = 0.2  # FSRL's, over all steps: it has no warm-up
EVALUATION_EPISODES = 2  # FSRL's, at the end
FSRL_THREADS = (1, 2)


@dataclass(frozen=True)
class Run:
    """One run."""

    process: Timed
    startup_seconds: float  # until the first step of an environment is asked for
    steps: int
    updates: int
    versions: Mapping[str, str]


def fsrl_run(task: str, steps: int, threads: int, cores: Sequence[int]) -> Run:
    """FSRL's trainer."""
    python = peer_python("fsrl")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), "-m", "benchmarks.peers.fsrl.training", task]
        command += ["--steps", str(steps), "--threads", str(threads), "--seed", "0", "--out", folder]
        begin = time()
        process = timed("FSRL", command, cores=cores)
        done = json.loads((Path(folder) / "done.json").read_text())
    return Run(process, done["begun"] - begin, done["steps"], done["updates"], done["versions"])


def our_run(task: str, steps: int, cores: Sequence[int]) -> Run:
    """`cvpo train`, with as many updates as FSRL makes in so many steps."""
    workload = Workload()
    learning_steps = steps - WARMUP_STEPS
    updates = round(UPDATES_PER_STEP * steps)
    settings = {
        "schedule.updates_per_step": (updates - WARMUP_UPDATES) / learning_steps,
        "schedule.evaluation_episodes": EVALUATION_EPISODES,
        "schedule.checkpoint_every": steps,
        "replay.batch_size": workload.batch_size,
        "network.hidden": workload.hidden,
        "network.cost_heads": workload.cost_heads,
        "estep.samples": workload.samples,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "cvpo", "train", task, "--steps", str(steps), "--out", str(out)]
        command += ["--device", "cpu"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        begin = time()
        process = timed("cvpo train", command, cores=cores)
        begun = (out / "config.json").stat().st_mtime  # written when the environments are there
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    ours = versions(["torch", "numpy", "mujoco"])
    return Run(process, begun - begin, last["steps"], last["updates"], ours)


def compare(task: str, steps: int, rounds: int, threads: int, cores: Sequence[int]) -> dict[str, Any]:
    """Play the rounds of one task.

    Raises:
        BenchmarkError: the two did not do the same work.
    """

    def told(name: str, play: Callable[[], Run]) -> Callable[[], Run]:
        def play_and_tell() -> Run:
            done = play()
            print(
                f"{task}  {name}  {done.process.seconds:.1f} s, of which to start {done.startup_seconds:.1f}; "
                f"others used {done.process.others:.0%} of the cores",
                flush=True,
            )
            return done

        return play_and_tell

    runs = interleave(
        {
            "cvpo": told("cvpo", lambda: our_run(task, steps, cores)),
            "FSRL": told("FSRL", lambda: fsrl_run(task, steps, threads, cores)),
        },
        rounds,
    )
    ours, theirs = runs["cvpo"], runs["FSRL"]
    for one, other in zip(ours, theirs, strict=True):
        if one.steps != other.steps or abs(one.updates - other.updates) > 1:
            raise BenchmarkError(
                f"{task}: cvpo made {one.updates} updates in {one.steps} steps and FSRL {other.updates} in "
                f"{other.steps}; they can only be compared when they do the same."
            )

    def ratio(seconds: Callable[[Run], float]) -> dict[str, Any]:
        return Ratio.of([seconds(each) for each in theirs], [seconds(each) for each in ours]).document()

    return {
        "ratio": ratio(lambda each: each.process.seconds),
        "ratio_without_startup": ratio(lambda each: each.process.seconds - each.startup_seconds),
        "ratio_of_core_seconds": ratio(lambda each: each.process.core_seconds),
        "seconds": {name: [r.process.seconds for r in each] for name, each in runs.items()},
        "startup_seconds": {name: [r.startup_seconds for r in each] for name, each in runs.items()},
        "core_seconds": {name: [r.process.core_seconds for r in each] for name, each in runs.items()},
        "others": {name: [r.process.others for r in each] for name, each in runs.items()},
        "updates": {name: each[0].updates for name, each in runs.items()},
        "versions": {name: dict(each[0].versions) for name, each in runs.items()},
    }


def main() -> None:
    """Find FSRL's best number of threads, play the rounds of each task, and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--task", choices=TASKS, action="append", help="once per task; all unless given")
    parser.add_argument("--steps", type=int, default=10_000, help="a multiple of 10,000, which FSRL collects at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fsrl-threads", type=int, help="of torch; tried out first unless given")
    arguments = parser.parse_args()
    if arguments.steps % 10_000 or arguments.steps <= 0:
        raise BenchmarkError(f"--steps is {arguments.steps}; give a multiple of 10,000: FSRL collects whole episodes.")
    cores = take_cores(2)
    trial: dict[int, float] = {}
    if arguments.fsrl_threads is None:
        trial = {threads: fsrl_run(TASKS[0], 5_000, threads, cores).process.seconds for threads in FSRL_THREADS}
        print(
            "FSRL, 5,000 steps: " + ", ".join(f"{each:.1f} s with {n} threads" for n, each in trial.items()), flush=True
        )
    threads = arguments.fsrl_threads or min(trial, key=lambda n: trial[n])
    tasks = arguments.task or TASKS
    found = {task: compare(task, arguments.steps, arguments.rounds, threads, cores) for task in tasks}
    details = {
        "steps": arguments.steps,
        "cores": len(cores),
        "fsrl_threads": threads,
        "fsrl_threads_tried_seconds": trial,
        "tasks": found,
    }
    print(page.training(details))
    main_ratio = found[tasks[0]]["ratio"]
    finish(
        "training",
        {
            "benchmark": "training",
            "task": tasks[0],
            "wall_clock_ratio": round(main_ratio["median"], 3),
            "spread": [round(main_ratio["low"], 3), round(main_ratio["high"], 3)],
            "rounds": arguments.rounds,
            "per_task": {task: round(each["ratio"]["median"], 3) for task, each in found.items()},
        },
        details,
    )


if __name__ == "__main__":
    run(main)
