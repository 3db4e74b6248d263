"""One task: roll out the exported policy of a finished run, calibrate, and try the predictions on fresh episodes."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.calibration.figures import Bounds, bound_figures, flag_figures, probability_figures
from benchmarks.contestant import versions
from benchmarks.errors import BenchmarkError
from benchmarks.learning import jobs
from benchmarks.learning.jobs import REPORTED_SEEDS, plan
from benchmarks.learning.runs import RUNS
from benchmarks.rounds import provenance
from cvpo import seeds
from cvpo.bundle import Constraint
from cvpo.calibration.budgets import budget_sessions
from cvpo.calibration.calibrate import CalibratedMap, calibrate
from cvpo.calibration.conformal import float32
from cvpo.calibration.costmap import uncalibrated_map
from cvpo.calibration.forecast_fit import ForecastEpisode
from cvpo.calibration.results import cost_upper
from cvpo.calibration.sessions import Session, crossing
from cvpo.evaluate import Episode, ServedActor, environments, run_episodes
from cvpo.exporting.measure import Plan
from cvpo.exporting.release import release
from cvpo.training.checkpoint import TrainedPolicy, checkpoint_steps, load_policy
from cvpo.training.metrics import read_evaluations

Array = NDArray[np.float64]
TASKS = ("SafetyPointCircle1-v0", "SafetyPointGoal1-v0", "SafetyHalfCheetahVelocity-v1")
CALIBRATING, FRESH = 1_000, 500  # episodes
LOWEST, HIGHEST = 0.25, 2.0  # budgets, of the limit
Tell = Callable[[str], None]


def finished_run(env_id: str, cost_limit: float | None = None) -> tuple[Path, int]:
    """The finished run of `benchmarks.learning` with the lowest reported seed, and its seed.

    Args:
        env_id: of the task.
        cost_limit: that it was trained for; None: the task's.

    Raises:
        BenchmarkError: there is none here; says what makes one.
    """
    wanted = jobs.TASKS[env_id].cost_limit if cost_limit is None else cost_limit
    for job in plan(env_ids=[env_id], seeds=REPORTED_SEEDS):
        run = RUNS / job.name
        fits = job.variant == "cvpo" and job.cost_limit == wanted
        if fits and run.exists() and max(read_evaluations(run), default=0) >= job.steps:
            return run, job.seed
    raise BenchmarkError(
        f"{env_id} has no finished run with limit {wanted:g} under {RUNS.name}. Make one: "
        f"python -m benchmarks.learning --task {env_id} --seeds {REPORTED_SEEDS[0]}"
    )


@dataclass(frozen=True)
class Rollouts:
    """Episodes of the exported policy of a finished run."""

    seed: int
    trained: TrainedPolicy
    calibrating: Sequence[Episode]
    fresh: Sequence[Episode]  # used for nothing else

    def described(self) -> dict[str, Any]:
        """Whose they are, as it is committed."""
        constraint = self.trained.constraints[0]
        costs = np.array([episode.cost[:, 0].sum() for episode in self.fresh])
        return {
            "env_id": self.trained.spec.env_id,
            "seed": self.seed,
            "steps": self.trained.steps,
            "cost_limit": constraint.cost_limit,
            "episode_cost": {"mean": float(costs.mean()), "standard_deviation": float(costs.std())},
        }


def roll_out(env_id: str, tell: Tell) -> Rollouts:
    """Run the episodes of a task."""
    torch.set_num_threads(1)
    run, seed = finished_run(env_id)
    trained = load_policy(run, checkpoint_steps(run)[-1])
    tell(f"{env_id}: {CALIBRATING + FRESH} episodes of the policy of seed {seed}")
    episodes = _rollouts(run, trained, CALIBRATING + FRESH)
    tell(f"{env_id}: calibrating")
    return Rollouts(seed, trained, episodes[:CALIBRATING], episodes[CALIBRATING:])


def measure(env_id: str, tell: Tell) -> dict[str, Any]:
    """All figures of a task, as they are committed."""
    begun = time.perf_counter()
    rollouts = roll_out(env_id, tell)
    trained, calibrating, fresh = rollouts.trained, rollouts.calibrating, rollouts.fresh
    constraint = trained.constraints[0]
    normalizer = trained.model.normalizer
    ours = MeasuredMap(calibrate(calibrating, [constraint], normalizer, seed=0), normalizer, fresh)
    past = [_elapsed(episode, constraint) for episode in calibrating], [_elapsed(e, constraint) for e in fresh]
    elapsed = MeasuredMap(calibrate(past[0], [constraint], _as_it_is, seed=0), _as_it_is, past[1])
    budgets = budgets_of(constraint, len(fresh))
    record = ours.calibrated.record
    tried = {name: each.sessions(constraint, budgets) for name, each in {"ours": ours, "elapsed": elapsed}.items()}
    tried["uncalibrated"] = _uncalibrated(fresh, constraint, budgets)
    at_limit = ours.sessions(constraint, np.full_like(budgets, constraint.cost_limit))
    return {
        **rollouts.described(),
        "episodes": {**record.episodes, "fresh": len(fresh)},
        "alarm_level": record.alarm_levels[0],
        "alarm_note": ours.calibrated.alarms[0].note,
        "lead_steps": record.lead_steps,
        "rest": bound_figures(ours.rest(constraint), elapsed.rest(constraint), record.confidence),
        "window": bound_figures(ours.window(constraint), elapsed.window(constraint), record.confidence),
        "probability": probability_figures(tried["ours"], tried["elapsed"]),
        "flags": flag_figures(
            tried["ours"],
            at_limit,
            record.alarm_levels[0],
            {name: tried[name] for name in ("elapsed", "uncalibrated")},
            record.lead_steps,
        ),
        "seconds": round(time.perf_counter() - begun),
        **provenance(),
        "versions": versions(["torch", "numpy", "mujoco", "safety-gymnasium", "onnxruntime"]),
    }


@dataclass(frozen=True)
class MeasuredMap:
    """A calibrated map, and the fresh episodes as it sees them."""

    calibrated: CalibratedMap
    normalize: Callable[[Tensor], Tensor]
    episodes: Sequence[Episode]

    def followed(self) -> list[ForecastEpisode]:
        """The episodes with forecasts."""
        return [ForecastEpisode(episode, self.calibrated.forecast, self.normalize) for episode in self.episodes]

    def rest(self, constraint: Constraint) -> Bounds:
        """Of all the steps left."""
        return self._bounds([constraint.horizon_steps - np.arange(len(episode.cost)) for episode in self.episodes])

    def window(self, constraint: Constraint) -> Bounds:
        """Of windows of W steps."""
        return self._bounds([np.full(len(episode.cost), constraint.window_steps) for episode in self.episodes])

    def _bounds(self, spans: Sequence[NDArray[np.int64]]) -> Bounds:
        costs, uppers = [], []
        for episode, steps in zip(self.followed(), spans, strict=True):
            cost, observed = episode.window_cost(steps)
            costs.append(cost[observed, 0])
            uppers.append(cost_upper(self.calibrated.cost_map, episode, steps)[observed, 0])
        return Bounds(costs, uppers)

    def sessions(self, constraint: Constraint, budgets: Array) -> list[Session]:
        """Each episode with its budget."""
        return [
            budget_sessions(self.calibrated.cost_map, episode, constraint, 0, np.array([budget]))[0]
            for episode, budget in zip(self.followed(), budgets, strict=True)
        ]


def _rollouts(run: Path, trained: TrainedPolicy, count: int) -> list[Episode]:
    """Episodes of the exported policy, deterministic, in an order by chance."""
    seed = trained.config.seed + seeds.CALIBRATION_BENCHMARK
    with (
        tempfile.TemporaryDirectory() as scratch,
        environments(trained.config.environment, num_envs=20, workers=0, seed=seed) as env,
    ):
        bundle = Path(scratch) / "policy" / "1"
        release(run, bundle, plan=Plan(0, 2), workers=0, say=lambda _: None)
        episodes = run_episodes(env, ServedActor.from_bundle(bundle), count)
    return [episodes[i] for i in np.random.default_rng(0).permutation(count)]


def _elapsed(episode: Episode, constraint: Constraint) -> Episode:
    """The episode for one who sees the time and the cost so far, and nothing else."""
    spent = (episode.cost.cumsum(0) - episode.cost)[:, 0]
    time_passed = np.arange(len(spent)) / constraint.horizon_steps
    limit = constraint.cost_limit or 1.0
    seen = np.stack([2 * time_passed - 1, np.minimum(spent / limit, 5.0), np.log1p(spent) / 3], axis=1)
    return replace(episode, observation=seen.astype(np.float32), cost_value=np.ones_like(episode.cost))


def _as_it_is(observation: Tensor) -> Tensor:
    return observation


def budgets_of(constraint: Constraint, count: int) -> Array:
    """Log-uniform, one for each episode."""
    if constraint.cost_limit is None:
        raise BenchmarkError(f"{constraint.name} has no limit, and flags speak of one.")
    low, high = np.log(LOWEST * constraint.cost_limit), np.log(HIGHEST * constraint.cost_limit)
    return np.asarray(np.exp(np.random.default_rng(1).uniform(low, high, count)))


def _uncalibrated(episodes: Sequence[Episode], constraint: Constraint, budgets: Array) -> list[Session]:
    """What the critic alone would say: the cost it expects over what is left to spend, x/(1 + x) of it."""
    cost_map, sessions = uncalibrated_map([constraint]), []
    for episode, budget in zip(episodes, budgets, strict=True):
        assert episode.cost_value is not None
        cost = episode.cost[:, 0]
        left = torch.from_numpy(constraint.horizon_steps - np.arange(len(cost)))
        _, cost_to_go = cost_map.atoms(float32(episode.cost_value).unsqueeze(-1), left)
        expected = cost_to_go[:, 0, 0].double().numpy()
        allowed = np.maximum(budget - (cost.cumsum() - cost), 1e-9)
        cut = len(cost) < constraint.horizon_steps and not episode.terminated
        sessions.append(Session(expected / (expected + allowed), crossing(cost, budget), cut))
    return sessions
