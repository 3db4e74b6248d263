"""What a shield makes of a policy over its limit: `python -m benchmarks.shield`.

The checkpoint of a finished run of `benchmarks.learning` that was farthest over its limit, in the second half of the
run, is exported, calibrated, and rolled out: deterministic, and shielded with several numbers of candidates and alarm
levels. Every session may spend the limit. A row for each, on as many episodes of the same seeds.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.measure import finished_run
from benchmarks.contestant import versions
from benchmarks.errors import BenchmarkError, run
from benchmarks.rounds import finish
from cvpo.calibrate import CalibratedMap, calibrate
from cvpo.checkpoint import TrainedPolicy, load_policy
from cvpo.envs import VectorEnv
from cvpo.evaluate import Episode, ServedActor, TorchActor, run_episodes, summarize
from cvpo.export import NamedPolicy, export_bundle
from cvpo.metrics import read_evaluations
from cvpo.release import provenance_of

TASK = "SafetyPointGoal1-v0"
CANDIDATES = (4, 16)
LEVELS = (0.1, 0.3, 0.6)
CALIBRATING, EPISODES = 200, 80
SEED_OFFSET = 6_000_011  # never an episode of training, of choosing, of an export or of an evaluation
Tell = Callable[[str], None]


def worst_checkpoint(path: Path, limit: float) -> int:
    """Steps of the checkpoint that is farthest over the limit, in the second half of the run.

    Raises:
        BenchmarkError: none is over it.
    """
    evaluations = read_evaluations(path)
    late = {steps: e.episode_cost[0].mean for steps, e in evaluations.items() if steps >= max(evaluations) / 2}
    steps = max(late, key=lambda s: late[s])
    if late[steps] <= limit:
        raise BenchmarkError(f"No checkpoint of {path.name} is over its limit of {limit:g}; take another run.")
    return steps


def measure(path: Path, tell: Tell) -> dict[str, Any]:
    """Return and cost of each way to serve the policy."""
    torch.set_num_threads(1)
    limit = load_policy(path, max(read_evaluations(path))).config.cost_limits[0]
    trained = load_policy(path, worst_checkpoint(path, limit))
    calibrating = _rollouts(trained, TorchActor(trained.model, trained.spec), CALIBRATING, seed=1)
    calibrated = calibrate(calibrating, trained.constraints, trained.model.normalizer, seed=0)
    observations = np.concatenate([episode.observation for episode in calibrating[:2]])
    policy = NamedPolicy(
        name="shield",
        version=1,
        model=trained.model,
        reward_scale=trained.reward_scale,
        spec=trained.spec,
        constraints=trained.constraints,
        provenance=provenance_of(trained, f"farthest over its limit, at {trained.steps} steps", "2026-01-01T00:00:00Z"),
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, level in enumerate(LEVELS):
            bundle = export_bundle(
                Path(scratch) / "shield" / f"{number + 1}", policy, observations, calibrated=_at(calibrated, level)
            )
            if not rows:
                rows.append(_row("deterministic", None, _rollouts(trained, ServedActor.from_bundle(bundle)), limit))
                tell(str(rows[-1]))
            for candidates in CANDIDATES:
                actor = ServedActor.from_bundle(bundle, "shielded", candidates, seed=trained.config.seed)
                rows.append(_row(f"shielded of {candidates}", level, _rollouts(trained, actor), limit))
                tell(str(rows[-1]))
    return {
        "env_id": trained.spec.env_id,
        "seed": trained.config.seed,
        "steps": trained.steps,
        "cost_limit": limit,
        "episodes": EPISODES,
        "rows": rows,
    }


def _at(calibrated: CalibratedMap, level: float) -> CalibratedMap:
    levels = (level,) * len(calibrated.record.alarm_levels)
    return replace(calibrated, record=calibrated.record.model_copy(update={"alarm_levels": levels}))


def _rollouts(
    trained: TrainedPolicy, actor: TorchActor | ServedActor, count: int = EPISODES, seed: int = 0
) -> list[Episode]:
    environment = trained.config.environment
    with VectorEnv(
        environment.env_id,
        num_envs=20,
        workers=0,
        seed=trained.config.seed + SEED_OFFSET + 1_000 * seed,
        cost_names=environment.cost_names,
        max_episode_steps=environment.max_episode_steps,
        step_timeout_seconds=environment.step_timeout_seconds,
    ) as env:
        return run_episodes(env, actor, count)


def _row(mode: str, level: float | None, episodes: list[Episode], limit: float) -> dict[str, Any]:
    found = summarize(episodes, (limit,), "deterministic")
    return {
        "mode": mode,
        "alarm_level": level,
        "episode_return": found.episode_return.model_dump(),
        "cost": found.episode_cost[0].model_dump(),
        "cost_cvar90": found.cost_cvar90[0],
        "over_limit_share": found.over_limit_share[0],
    }


def headline(document: Mapping[str, Any]) -> dict[str, Any]:
    """The deterministic policy beside the shield with the least cost."""
    first, *shields = document["rows"]
    best = min(shields, key=lambda row: float(row["cost"]["mean"]))
    return {
        name: {
            "mode": row["mode"],
            "alarm_level": row["alarm_level"],
            "return": row["episode_return"]["mean"],
            "cost": row["cost"]["mean"],
            "over_limit_share": row["over_limit_share"],
        }
        for name, row in {"deterministic": first, "shielded": best}.items()
    }


def main() -> None:
    """Measure, and write benchmarks/results/shield.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shield", description=__doc__)
    parser.parse_args()
    path, _ = finished_run(TASK)
    document = measure(path, lambda line: print(line, flush=True))
    finish("shield", headline(document), {**document, "versions": versions(["torch", "onnxruntime", "mujoco"])})


if __name__ == "__main__":
    run(main)
