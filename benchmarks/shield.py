"""What a shield makes of a policy that costs more than it may: `python -m benchmarks.shield`.

A policy that was trained for a high limit is served with a low one: an episode may spend less than it costs. The last
policy of the run is exported, calibrated, and rolled out: deterministic, and shielded with several numbers of
candidates and alarm levels, the one that calibration chose among them. A row for each, on as many episodes of the same
seeds.
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
from benchmarks.learning.jobs import LIMITS, LIMITS_TASK
from benchmarks.rounds import finish
from cvpo import seeds
from cvpo.bundle import Evaluation
from cvpo.calibration.calibrate import CalibratedMap, calibrate
from cvpo.evaluate import Episode, ServedActor, TorchActor, environments, run_episodes, summarize
from cvpo.exporting.export import NamedPolicy, export_bundle
from cvpo.exporting.release import provenance_of
from cvpo.training.checkpoint import TrainedPolicy, checkpoint_steps, load_policy

BUDGET = 25.0
CANDIDATES = (4, 16)
LEVELS = (0.1, 0.3, 0.6)
CALIBRATING, EPISODES = 200, 100
Tell = Callable[[str], None]


def measure(path: Path, budget: float, tell: Tell) -> dict[str, Any]:
    """Return and cost of each way to serve the last policy of a run.

    Args:
        path: of the run.
        budget: undiscounted cost that each episode may spend.
        tell: is told each row.

    Raises:
        BenchmarkError: the deterministic policy costs no more than the budget, or it has several constraints.
    """
    torch.set_num_threads(1)
    trained = load_policy(path, checkpoint_steps(path)[-1])
    if len(trained.constraints) > 1:
        raise BenchmarkError(f"{path.name} has {len(trained.constraints)} constraints; take a run with one.")
    constraints = (trained.constraints[0].model_copy(update={"cost_limit": budget}),)
    calibrating = _rollouts(trained, TorchActor(trained.model, trained.spec), CALIBRATING, seed=1)
    calibrated = calibrate(calibrating, constraints, trained.model.normalizer, seed=0)
    observations = np.concatenate([episode.observation for episode in calibrating[:2]])
    policy = NamedPolicy(
        name="shield",
        version=1,
        model=trained.model,
        reward_scale=trained.reward_scale,
        spec=trained.spec,
        constraints=constraints,
        provenance=provenance_of(trained, "The last checkpoint", "2026-01-01T00:00:00Z"),
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, level in enumerate((*LEVELS, calibrated.record.alarm_levels[0])):
            bundle = export_bundle(
                Path(scratch) / "shield" / f"{number + 1}", policy, observations, calibrated=_at(calibrated, level)
            )
            if not rows:
                found = summarize(_rollouts(trained, ServedActor.from_bundle(bundle)), (budget,), "deterministic")
                check_over(path, found, budget)
                rows.append(_row("deterministic", None, found))
                tell(str(rows[-1]))
            for candidates in CANDIDATES:
                actor = ServedActor.from_bundle(bundle, "shielded", candidates, seed=trained.config.seed)
                found = summarize(_rollouts(trained, actor), (budget,), "shielded")
                rows.append(_row(f"shielded of {candidates}", level, found))
                tell(str(rows[-1]))
    return {
        "env_id": trained.spec.env_id,
        "seed": trained.config.seed,
        "steps": trained.steps,
        "trained_cost_limit": trained.config.cost_limits[0],
        "budget": budget,
        "episodes": EPISODES,
        "rows": rows,
    }


def check_over(path: Path, found: Evaluation, budget: float) -> None:
    """Refuse a policy that a shield has nothing to do for.

    Raises:
        BenchmarkError: the 95 % interval of its mean cost is not above the budget.
    """
    cost = found.episode_cost[0]
    if cost.low <= budget:
        raise BenchmarkError(
            f"{path.name} costs {cost.mean:.1f} ({cost.low:.1f} to {cost.high:.1f}) over {found.episodes} episodes, "
            f"which is not above the budget of {budget:g}. Give a lower --budget, or another --run."
        )


def _at(calibrated: CalibratedMap, level: float) -> CalibratedMap:
    levels = (level,) * len(calibrated.record.alarm_levels)
    return replace(calibrated, record=calibrated.record.model_copy(update={"alarm_levels": levels}))


def _rollouts(
    trained: TrainedPolicy, actor: TorchActor | ServedActor, count: int = EPISODES, seed: int = 0
) -> list[Episode]:
    first = trained.config.seed + seeds.SHIELD_BENCHMARK + 1_000 * seed
    with environments(trained.config.environment, num_envs=20, workers=0, seed=first) as env:
        return run_episodes(env, actor, count)


def _row(mode: str, level: float | None, found: Evaluation) -> dict[str, Any]:
    return {
        "mode": mode,
        "alarm_level": level,
        "episode_return": found.episode_return.model_dump(),
        "cost": found.episode_cost[0].model_dump(),
        "cost_cvar90": found.cost_cvar90[0],
        "over_budget_share": found.over_limit_share[0],
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
            "over_budget_share": row["over_budget_share"],
        }
        for name, row in {"deterministic": first, "shielded": best}.items()
    }


def main() -> None:
    """Measure, and write benchmarks/results/shield.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shield", description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        help=f"a finished run; unless given that of benchmarks.learning on {LIMITS_TASK} with limit {max(LIMITS):g}",
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="of each episode (default: %(default)g)")
    arguments = parser.parse_args()
    path = arguments.run or finished_run(LIMITS_TASK, max(LIMITS))[0]
    document = measure(path, arguments.budget, lambda line: print(line, flush=True))
    finish("shield", headline(document), {**document, "versions": versions(["torch", "onnxruntime", "mujoco"])})


if __name__ == "__main__":
    run(main)
