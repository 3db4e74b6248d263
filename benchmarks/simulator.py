"""Steps a second over stock Safety-Gymnasium's, resets included: `python -m benchmarks.simulator`.

Both simulators play the same episodes, with the same seeds and actions and so through the same states, on one thread of
the same core, in turns. A second is one of the core, not of the clock: what else the core does in a round is not
counted, but told. `--identity` compares every bit of many episodes instead: observations, rewards, costs and ends.
`--profile` tells what of our time is MuJoCo's.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.contestant import Contestant, take_cores
from benchmarks.errors import BenchmarkError, run
from benchmarks.peers import peer_python
from benchmarks.rounds import Ratio, finish, interleave

NAVIGATION = (
    "SafetyPointGoal1-v0",
    "SafetyPointCircle1-v0",
    "SafetyPointButton1-v0",
    "SafetyPointPush1-v0",
    "SafetyCarGoal1-v0",
    "SafetyCarCircle1-v0",
)
VELOCITY = ("SafetyAntVelocity-v1", "SafetyHalfCheetahVelocity-v1")
STEPS = {**dict.fromkeys(NAVIGATION, 2_000), **dict.fromkeys(VELOCITY, 10_000)}  # at least, of a round
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> None:
    """What the flags ask for; without any, the speed of the eight tasks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description=__doc__)
    parser.add_argument(
        "tasks", nargs="*", default=[*STEPS], help="ids of Safety-Gymnasium; the eight of the table unless given"
    )
    parser.add_argument("--rounds", type=int, default=7)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--identity", action="store_true", help="compare trajectories, not speed")
    what.add_argument("--profile", action="store_true", help="what of our time is MuJoCo's")
    parser.add_argument("--episodes", type=int, default=5, help="of a round, with --identity")
    arguments = parser.parse_args()
    cores = take_cores(1)
    if arguments.identity:
        compare_trajectories(arguments.tasks, cores, arguments.rounds, arguments.episodes)
    elif arguments.profile:
        profile(arguments.tasks, cores, arguments.rounds)
    else:
        compare_speed(arguments.tasks, cores, arguments.rounds)


def compare_speed(tasks: Sequence[str], cores: Sequence[int], rounds: int) -> None:
    """Ours against stock."""
    ratios: dict[str, Ratio] = {}
    rates: dict[str, dict[str, list[float]]] = {}
    shares: dict[str, dict[str, list[float]]] = {}
    versions: dict[str, Any] = {}
    for task in tasks:
        steps = STEPS.get(task, 10_000 if "Velocity" in task else 2_000)
        given, versions = _play(task, ["--steps", str(steps)], cores, rounds)
        rates[task] = {name: [one["steps"] / one["core_seconds"] for one in each] for name, each in given.items()}
        shares[task] = {name: [one["core_seconds"] / one["seconds"] for one in each] for name, each in given.items()}
        ratios[task] = Ratio.of(rates[task]["ours"], rates[task]["stock"])
        print(f"{task}: {ratios[task]}", flush=True)
    means = Ratio(
        tuple(_geometric_mean([each.per_round[index] for each in ratios.values()]) for index in range(rounds))
    )
    print(f"geometric mean: {means}")
    least = min(share for task in shares.values() for each in task.values() for share in each)
    print(f"share of the core that a contestant had: at least {least:.0%}")
    finish(
        "simulator",
        {
            "benchmark": "simulator",
            "steps_per_second_ratio": {task: round(ratio.median, 3) for task, ratio in ratios.items()},
            "geometric_mean": round(means.median, 3),
            "spread": [round(bound, 3) for bound in means.spread],
            "rounds": rounds,
        },
        {
            "cores": len(cores),
            "versions": versions,
            "ratios": {task: ratio.document() for task, ratio in ratios.items()},
            "mean": means.document(),
            "steps_per_second": rates,
            "core_share": shares,
        },
    )


def compare_trajectories(tasks: Sequence[str], cores: Sequence[int], rounds: int, episodes: int) -> None:
    """Every bit of many episodes.

    Raises:
        BenchmarkError: two differ; names the task and the seed.
    """
    totals: dict[str, dict[str, float]] = {}
    versions: dict[str, Any] = {}
    for task in tasks:
        given, versions = _play(task, ["--episodes", str(episodes)], cores, rounds)
        ours, stock = ([one for answer in given[name] for one in answer["episodes"]] for name in ("ours", "stock"))
        for one, other in zip(ours, stock, strict=True):
            if one != other:
                raise BenchmarkError(f"{task}, seed {one['seed']}: ours gave {one} and stock {other}.")
        totals[task] = {name: sum(one[name] for one in stock) for name in ("steps", "cost", "goals")}
        totals[task] = {"episodes": len(stock), **totals[task]}
        print(f"{task}: identical; {totals[task]}", flush=True)
    finish(
        "simulator_identity",
        {"benchmark": "simulator_identity", "identical": True, "episodes": rounds * episodes * len(tasks)},
        {"versions": versions, "tasks": totals},
    )


def profile(tasks: Sequence[str], cores: Sequence[int], rounds: int) -> None:
    """Microseconds of a step, of MuJoCo in it, and of a reset."""
    found: dict[str, dict[str, float]] = {}
    versions: dict[str, Any] = {}
    for task in tasks:
        with _contestant(
            "cvpo", sys.executable, "benchmarks.ours.simulator_parts", [task, "--steps", "400"], cores
        ) as ours:
            answers = [ours.play() for _ in range(rounds)]
            versions = ours.versions
        found[task] = {name: round(statistics.median(each[name] for each in answers), 1) for name in answers[0]}
        print(f"{task}: {found[task]}", flush=True)
    finish(
        "simulator_profile",
        {"benchmark": "simulator_profile", "microseconds": found, "rounds": rounds},
        {"cores": len(cores), "versions": versions},
    )


def _play(
    task: str, settings: Sequence[str], cores: Sequence[int], rounds: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """What both gave in each round, and their versions."""
    arguments = [task, *settings]
    stock_python = str(peer_python("safety_gymnasium"))
    with (
        _contestant("stock", stock_python, "benchmarks.peers.safety_gymnasium.simulator", arguments, cores) as stock,
        _contestant("cvpo", sys.executable, "benchmarks.ours.simulator", arguments, cores) as ours,
    ):
        given = interleave({"ours": ours.play, "stock": stock.play}, rounds)
        return given, {"ours": ours.versions, "stock": stock.versions}


def _contestant(name: str, python: str, module: str, arguments: Sequence[str], cores: Sequence[int]) -> Contestant:
    return Contestant(name, python, module, arguments, cores=cores, environment=ONE_THREAD)


def _geometric_mean(numbers: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(number) for number in numbers))


if __name__ == "__main__":
    run(main)
