"""`cvpo demo`: the whole product, small and real: learn a safe policy, export it, serve it, drive a simulator by it.

Nothing is prepared in advance; every figure it prints it has just measured.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvpo import seeds
from cvpo.bundle import Evaluation
from cvpo.commands.plot import Track, plot_runs, plot_tracks
from cvpo.commands.report import TrainingReport, say
from cvpo.envs import VectorEnv, make_env
from cvpo.errors import CheckpointError, ServiceError
from cvpo.evaluate import (
    Actor,
    Decision,
    Episode,
    RandomActor,
    ServedActor,
    TorchActor,
    play,
    run_episodes,
    summarize,
)
from cvpo.exporting.measure import Plan
from cvpo.exporting.release import release
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.training import trainer
from cvpo.training.checkpoint import load_policy
from cvpo.training.progress import CheckpointReport
from serve.client import PolicyClient

TASK, COST_LIMIT = "SafetySwimmerVelocity-v1", 25.0  # a step costs 1 where it is faster than 0.23 m/s
STEPS = 50_000
LONGEST = 90_000  # steps after which a policy that is still over its limit is given up
TRAINING_SECONDS = 165.0  # then the best checkpoint so far is taken, if one is under the limit
EPISODES = 30  # of each comparison
CALIBRATION_EPISODES = 120
MARGIN = 10.0  # of return over the upper end of random actions' interval, before a checkpoint is thought good
POLICY = "swimmer"


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, and where it left things."""

    random: Evaluation
    trained: Evaluation
    served: Evaluation
    predicted_cost_mean: float  # at the first step of each served episode, for all of it
    realized_cost_mean: float  # of the same episodes
    flagged_share: float  # of served steps
    latency_ms: dict[str, float]
    seconds: float
    run: Path
    bundle: Path
    pictures: tuple[Path, ...]

    def as_json(self) -> str:
        """One JSON object, for machines."""

        def group(evaluation: Evaluation) -> dict[str, Any]:
            returns, cost = evaluation.episode_return, evaluation.episode_cost[0]
            return {
                "return_mean": returns.mean,
                "return_ci95": [returns.low, returns.high],
                "cost_mean": cost.mean,
                "cost_ci95": [cost.low, cost.high],
                "episodes": evaluation.episodes,
            }

        return json.dumps(
            {
                "task": TASK,
                "random": group(self.random),
                "trained": group(self.trained),
                "served": group(self.served),
                "cost_limit": COST_LIMIT,
                "predicted_cost_mean": self.predicted_cost_mean,
                "realized_cost_mean": self.realized_cost_mean,
                "flagged_share": self.flagged_share,
                "latency_ms": self.latency_ms,
                "seconds": self.seconds,
                "run": str(self.run),
                "bundle": str(self.bundle),
                "pictures": [str(picture) for picture in self.pictures],
            }
        )

    def as_table(self) -> str:
        """The same for people."""

        def row(name: str, evaluation: Evaluation) -> str:
            returns, cost = evaluation.episode_return, evaluation.episode_cost[0]
            verdict = "under" if cost.mean <= COST_LIMIT else "OVER"
            return (
                f"{name:<24} {returns.mean:7.1f}  [{returns.low:6.1f}, {returns.high:6.1f}]   "
                f"{cost.mean:7.1f}  [{cost.low:6.1f}, {cost.high:6.1f}]   {verdict} the limit of {COST_LIMIT:g}"
            )

        latency = self.latency_ms
        return "\n".join(
            [
                "",
                f"{TASK}, {self.served.episodes} episodes each, means with 95 % intervals",
                f"{'':<24} {'return':>7}  {'':16}   {'cost of an episode':>18}",
                row("random actions", self.random),
                row("trained, in simulator", self.trained),
                row("the same, over gRPC", self.served),
                "",
                f"cost of an episode       predicted at its start {self.predicted_cost_mean:.1f}, "
                f"realized {self.realized_cost_mean:.1f}",
                f"violation predicted      at {self.flagged_share:.1%} of the served steps "
                "(that the episode will cost more than the limit)",
                f"request latency          p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms, "
                f"max {latency['max']:.2f} ms",
                f"took                     {self.seconds:.0f} s",
                "",
                f"run       {self.run}",
                f"bundle    {self.bundle}",
                *(f"picture   {picture}" for picture in self.pictures),
                "",
                f"next      cvpo serve {self.bundle}",
                "          cvpo query 127.0.0.1:50051",
                f"          cvpo train --resume {self.run} --steps 200000",
            ]
        )


def run_demo(out: Path | None, seed: int) -> DemoResult:
    """Do all of it, telling on stderr what goes on.

    Args:
        out: new folder for everything; None: the first free one of runs/demo, runs/demo-2, ...
        seed: of learning and of the episodes.

    Raises:
        CvpoError: what went wrong, and what to do.
    """
    began = time.monotonic()
    out = out or _free_folder()
    run, bundle = out / "run", out / "bundles" / POLICY / "1"
    _begin_folder(out)
    say(f"[1/5] {TASK}: swim far, but be over the speed limit in at most {COST_LIMIT:g} of 1000 steps.")
    with VectorEnv(TASK, num_envs=10, workers=1, seed=seed + seeds.EVALUATION) as env:
        random_actor = RandomActor(env.spec, seed)
        baseline = summarize(run_episodes(env, random_actor, EPISODES), [COST_LIMIT], "sampled")
        returns, cost = baseline.episode_return, baseline.episode_cost[0]
        say(f"      Random actions: return {returns.mean:.1f}, cost {cost.mean:.1f}. Learn to do better:")
    _train(_config(seed), run, baseline.episode_return.high + MARGIN)
    say("[2/5] Export the best checkpoint under the limit, and measure how far its predictions can be trusted.")
    released = release(
        run,
        bundle,
        select=True,
        plan=Plan(CALIBRATION_EPISODES, EPISODES),
        workers=1,
        say=_indented,
    )
    say(f"[3/5] Run {EPISODES} fresh episodes of the trained policy in the simulator.")
    trained = load_policy(run, released.manifest.provenance.steps)
    trained_actor = TorchActor(trained.model, trained.spec)
    with VectorEnv(TASK, num_envs=10, workers=1, seed=seed + seeds.EVALUATION) as env:
        fresh = run_episodes(env, trained_actor, EPISODES)
    say("[4/5] Serve the bundle from a process of its own, and drive the simulator through it.")
    with _served(bundle.parent.parent) as address, PolicyClient(address, timeout_seconds=2.0) as client:
        client.get_policy()  # connects, so that the figures are those of requests
        actor = _Timed(ServedActor(client))
        with VectorEnv(TASK, num_envs=1, workers=0, seed=seed + seeds.EVALUATION + 1) as env:
            served = run_episodes(env, actor, EPISODES)
    say("[5/5] Draw the pictures.")
    pictures = (
        plot_runs([run], out / "learning.png"),
        plot_tracks(
            {"random actions": _tracks(random_actor, seed), "trained policy": _tracks(trained_actor, seed)},
            COST_LIMIT,
            out / "motion.png",
        ),
    )
    return _result(baseline, fresh, served, actor.seconds, time.monotonic() - began, run, bundle, pictures)


def _config(seed: int) -> TrainConfig:
    """The defaults, but for what makes it quick: smaller networks, more updates a step, an end at any time."""
    return parse_config(
        {
            "environment": {"env_id": TASK},
            "cost_limits": [COST_LIMIT],
            "seed": seed,
            "schedule": {"steps": STEPS, "checkpoint_every": 2_500, "updates_per_step": 0.4},
            "network": {"hidden": 64},
            "mstep": {"period": 100},
            "settle": {"share": 0.0},
        }
    )


def _train(config: TrainConfig, run: Path, return_wanted: float) -> None:
    """Train until the time is up and a checkpoint is good; beyond the planned steps if it takes that."""
    deadline = time.monotonic() + TRAINING_SECONDS
    with TrainingReport(config.cost_limits) as report:
        watch = _Watch(report, return_wanted)

        def enough() -> bool:
            return watch.good and time.monotonic() > deadline

        done = trainer.train(config, run, watch, enough)
        while not watch.good and done < LONGEST:
            say(f"      No checkpoint is good enough yet; {STEPS // 5:,} steps more.")
            done = trainer.resume(run, watch, enough, done + STEPS // 5)


class _Watch:
    """Passes a run's progress on, and knows whether a checkpoint was under the limit and clearly beat chance."""

    def __init__(self, report: TrainingReport, return_wanted: float) -> None:
        self.report, self.return_wanted, self.good = report, return_wanted, False
        self.progress, self.say = report.progress, report.say

    def checkpoint(self, report: CheckpointReport) -> None:
        evaluation = report.evaluation
        safe = evaluation.episode_cost[0].high <= COST_LIMIT
        self.good = self.good or (safe and evaluation.episode_return.low >= self.return_wanted)
        self.report.checkpoint(report)


class _Timed:
    """An actor, and how long each of its answers took."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.seconds: list[float] = []

    def act(
        self, observation: NDArray[np.float32], steps_left: NDArray[np.int64], spent: NDArray[np.float64]
    ) -> Decision:
        began = time.perf_counter()
        decision = self.actor.act(observation, steps_left, spent)
        self.seconds.append(time.perf_counter() - began)
        return decision


@contextmanager
def _served(repository: Path) -> Iterator[str]:
    """Run a server process on a free port, give its address, and stop it in the end.

    Raises:
        ServiceError: it did not start.
    """
    command = [sys.executable, "-m", "serve", str(repository), "--address", "127.0.0.1:0", "--log-level", "warning"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CVPO_SERVE_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 60)
            line = process.stdout.readline() if ready else ""
            if not line:
                raise ServiceError(f"The server did not start within 60 s: {' '.join(command)}")
            yield str(json.loads(line)["address"])
        finally:
            process.terminate()


def _tracks(actor: Actor, seed: int) -> list[Track]:
    """How far the swimmer came in a few episodes, and what that cost."""
    env = make_env(TASK)
    horizon, period = env.spec.max_episode_steps, (env.spec.control_period_ms or 0.0) / 1e3
    tracks = []
    for episode in range(3):
        position: list[float] = []
        cost: list[float] = []
        for step in play(env, actor, seed + seeds.EVALUATION + episode):
            position.append(float(env.unwrapped.data.qpos[0]))
            cost.append(float(step.cost[0]))
        tracks.append(Track(np.linspace(period, period * horizon, horizon), np.array(position), np.cumsum(cost)))
    env.close()
    return tracks


def _result(
    random: Evaluation,
    fresh: list[Episode],
    served: list[Episode],
    seconds: list[float],
    took: float,
    run: Path,
    bundle: Path,
    pictures: tuple[Path, ...],
) -> DemoResult:
    def summary(episodes: list[Episode]) -> Evaluation:
        return summarize(episodes, [COST_LIMIT], "deterministic")

    predicted = [episode.cost_to_go[0, 0] for episode in served if episode.cost_to_go is not None]
    flags = [episode.violation.any(1) for episode in served if episode.violation is not None]
    milliseconds = 1e3 * np.array(seconds)
    return DemoResult(
        random=random,
        trained=summary(fresh),
        served=summary(served),
        predicted_cost_mean=float(np.mean(predicted)),
        realized_cost_mean=float(np.mean([episode.cost.sum() for episode in served])),
        flagged_share=float(np.concatenate(flags).mean()),
        latency_ms={
            "p50": float(np.quantile(milliseconds, 0.5)),
            "p99": float(np.quantile(milliseconds, 0.99)),
            "max": float(milliseconds.max()),
        },
        seconds=took,
        run=run,
        bundle=bundle,
        pictures=pictures,
    )


def _indented(text: str) -> None:
    say(f"      {text}")


def _begin_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise CheckpointError(f"{out} is not empty. Choose another --out, or remove it.")
        (out / "run").mkdir()  # finds out whether it can be written, before minutes of work
    except OSError as error:
        raise CheckpointError(f"Cannot write to {out}: {error.strerror}. Choose another --out.") from error


def _free_folder() -> Path:
    number = 1
    while (folder := Path("runs") / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder
