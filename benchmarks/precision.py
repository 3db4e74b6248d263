"""What networks in fewer bits take and do: `python -m benchmarks.precision RUN...`.

Size and time of a call are of the policy that `benchmarks.serving` serves, in turns: in a loop of calls, and after as
much other memory was read as fills the caches, which is nearer to what a server meets. How far answers move is measured
on the last checkpoints of runs: on all observations of some episodes, and by the return and cost of each rounded policy
in fresh ones, the same for all.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.contestant import versions
from benchmarks.errors import run
from benchmarks.rounds import finish, interleave, table
from benchmarks.serving.workload import write_workload
from cvpo import seeds
from cvpo.bundle import GRAPHS, POLICY_GRAPH, Precision, read_bundle
from cvpo.evaluate import Episode, TorchActor, environments, run_episodes, summarize
from cvpo.exporting.precision import compare, rounded
from cvpo.exporting.runtime import open_graph
from cvpo.training.checkpoint import TrainedPolicy, checkpoint_steps, load_policy

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ROUNDS, CALLS = 101, 50
EVICTED = np.ones(2**20)  # 8 MiB
OBSERVED, EPISODES = 10, 40


def measure_calls() -> dict[str, dict[str, Any]]:
    """Bytes of both graphs, and median microseconds of a call with one observation and one candidate, by precision."""
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {p: read_bundle(write_workload(Path(scratch) / p, p)) for p in PRECISIONS}
    inputs = {
        name: value if name == "alarm_level" else value[:1]
        for name, value in bundles["float32"].golden.inputs[POLICY_GRAPH].items()
    }
    inputs["noise"] = inputs["noise"][:, :1]
    calls: dict[str, Callable[[], Any]] = {
        p: partial(open_graph(bundle.policy_graph).run, None, inputs) for p, bundle in bundles.items()
    }
    hot = interleave({p: partial(_hot, call) for p, call in calls.items()}, ROUNDS)
    cold = interleave({p: partial(_cold, call) for p, call in calls.items()}, ROUNDS)
    return {
        p: {
            "bytes": {name: len(bundles[p].graph(name)) for name in GRAPHS},
            "loop_us": 1e6 * statistics.median(hot[p]),
            "cold_us": 1e6 * statistics.median(cold[p]),
        }
        for p in PRECISIONS
    }


def _hot(call: Callable[[], Any]) -> float:
    return statistics.median(_seconds(call) for _ in range(CALLS))


def _cold(call: Callable[[], Any]) -> float:
    EVICTED.sum()
    return _seconds(call)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure_answers(path: Path) -> dict[str, Any]:
    """How far the last checkpoint of a run acts, values and does otherwise, by precision."""
    trained = load_policy(path, checkpoint_steps(path)[-1])
    seen = np.concatenate([e.observation for e in _rollouts(trained, "float32", OBSERVED, seed=1)])
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        narrow = rounded(trained.model, precision)
        stored = compare(trained.model, narrow, precision, torch.from_numpy(seen))
        did = summarize(_rollouts(trained, precision, EPISODES, seed=2), trained.config.cost_limits, "deterministic")
        found[precision] = {
            "action_difference": stored.action_difference,
            "value_difference": stored.value_difference,
            "episode_return": did.episode_return.model_dump(),
            "cost": [cost.model_dump() for cost in did.episode_cost],
        }
    return {
        "env_id": trained.spec.env_id,
        "seed": trained.config.seed,
        "steps": trained.steps,
        "observations": len(seen),
        "episodes": EPISODES,
        "precisions": found,
    }


def _rollouts(trained: TrainedPolicy, precision: Precision, count: int, seed: int) -> list[Episode]:
    first = trained.config.seed + seeds.PRECISION_BENCHMARK + 1_000 * seed
    with environments(trained.config.environment, num_envs=10, workers=0, seed=first) as env:
        return run_episodes(env, TorchActor(rounded(trained.model, precision), trained.spec), count)


def main() -> None:
    """Measure, print a table, and save the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run of cvpo train")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    calls, answers = measure_calls(), [measure_answers(path) for path in arguments.runs]
    print(_calls_table(calls))
    print(_answers_table(answers))
    whole = sum(calls["float32"]["bytes"].values())
    shares = {p: sum(calls[p]["bytes"].values()) / whole for p in PRECISIONS[1:]}
    packages = versions(["torch", "onnxruntime", "numpy"])
    finish("precision", {"size_ratios": shares}, {"calls": calls, "answers": answers, "packages": packages})


def _calls_table(calls: dict[str, dict[str, Any]]) -> str:
    header = ("weights in", "policy.onnx, kB", "critic.onnx, kB", "a call in a loop, µs", "after 8 MiB of other, µs")
    rows = [
        (
            precision,
            *(f"{found['bytes'][name] / 1e3:,.0f}" for name in GRAPHS),
            f"{found['loop_us']:.0f}",
            f"{found['cold_us']:.0f}",
        )
        for precision, found in calls.items()
    ]
    return table(header, rows)


def _answers_table(answers: list[dict[str, Any]]) -> str:
    header = ("task", "steps", "weights in", "action", "value", "return", "cost")
    rows = [
        (
            answer["env_id"],
            f"{answer['steps']:,}",
            precision,
            f"{found['action_difference']:.2%}",
            f"{found['value_difference']:.2%}",
            _interval(found["episode_return"]),
            ", ".join(map(_interval, found["cost"])),
        )
        for answer in answers
        for precision, found in answer["precisions"].items()
    ]
    return table(header, rows)


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.1f} ({found['low']:.1f} to {found['high']:.1f})"


if __name__ == "__main__":
    run(main)
