"""What sessions report as SHIFTED: `python -m benchmarks.shift BUNDLE...` disturbs what the bundles' policies see.

Fresh episodes of each policy in its own task, with observations that are shifted, scaled, swapped, frozen or delayed on
their way to it, and in other tasks with the same spaces. Each episode is a session, and the policy acts on what it is
shown, as a robot's would. It writes `benchmarks/results/shift.json` and docs/shift.md.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import errors
from benchmarks.contestant import versions
from benchmarks.rounds import finish
from benchmarks.shift import page
from benchmarks.shift.disturbances import Detection, Disturbance, Observations, detected, disturbances, undisturbed
from cvpo import seeds
from cvpo.bundle import Manifest, read_bundle
from cvpo.envs import VectorEnv
from cvpo.evaluate import Decision, run_episodes
from serve.client import PolicyCaller
from serve.client.control_client import ControlSession
from serve.local import LocalPolicy
from serve.values import CalibrationStatus

OTHER_TASKS: Mapping[str, tuple[str, ...]] = {
    "SafetyHalfCheetahVelocity-v1": ("benchmarks.shift.tasks:heavy_half_cheetah",),
    "SafetyPointCircle1-v0": ("SafetyPointCircle2-v0",),
    "SafetyPointGoal1-v0": ("SafetyPointGoal2-v0",),
}


class DisturbedPolicy:
    """A served policy that is shown disturbed observations, and what was said of each."""

    def __init__(self, caller: PolicyCaller, horizon: int, manifest: Manifest, disturbance: Disturbance) -> None:
        self.caller, self.horizon, self.disturbance = caller, horizon, disturbance
        self.sessions: dict[int, ControlSession] = {}  # by environment
        seen = manifest.observation_statistics
        self.low, self.high, self.scale = (np.array(each) for each in (seen.low, seen.high, seen.standard_deviation))
        self.history: list[Observations] = []
        self.steps: list[NDArray[np.int64]] = []
        self.over: list[NDArray[np.bool_]] = []
        self.out_of_range: list[NDArray[np.bool_]] = []

    def act(self, observation: Observations, steps_left: NDArray[np.int64], spent: NDArray[np.float64]) -> Decision:
        self.history.append(observation)
        self.steps.append(self.horizon - steps_left)
        shown = self.disturbance.change(self.history, self.steps[-1])
        for index in np.flatnonzero(self.steps[-1] == 0).tolist():
            self.sessions[index] = self.caller.control(cost_budget=[math.inf] * spent.shape[1])
        answers = [self.sessions[index].step(row) for index, row in enumerate(shown)]
        statuses = [answer.prediction.calibration_status for answer in answers if answer.prediction]
        self.over.append(np.array(statuses) == CalibrationStatus.SHIFTED)
        beyond = np.maximum(self.low - shown, shown - self.high) / self.scale
        self.out_of_range.append((beyond > 1.0).any(1))
        return Decision(np.array([answer.action for answer in answers], np.float64))

    def noticed(self) -> Detection:
        """By the session, which reports SHIFTED."""
        return detected(np.array(self.over), np.array(self.steps), self.disturbance.begins)

    def noticed_by_range(self) -> Detection:
        """By a range for each dimension: a value one standard deviation outside of what training saw."""
        return detected(np.array(self.out_of_range), np.array(self.steps), self.disturbance.begins)


def measure(bundle: Path, episodes: int) -> dict[str, Any]:
    """Run one episode in each of so many environments under each disturbance, and in each other task."""
    manifest = read_bundle(bundle).manifest
    task = manifest.provenance.environment
    scale = np.array(manifest.observation_statistics.standard_deviation, np.float32)
    caller = LocalPolicy.load(bundle)
    found = {}
    trials = [(task, name, each) for name, each in disturbances(scale, episodes, seeds.SHIFT_BENCHMARK).items()]
    trials += [(other, page.in_task(other), undisturbed()) for other in OTHER_TASKS.get(task, ())]
    for env_id, name, disturbance in trials:
        with VectorEnv(
            env_id,
            num_envs=episodes,
            workers=0,
            seed=seeds.SHIFT_BENCHMARK,
            cost_names=tuple(constraint.name for constraint in manifest.constraints),
            max_episode_steps=manifest.horizon_steps,
        ) as env:
            policy = DisturbedPolicy(caller, env.spec.max_episode_steps, manifest, disturbance)
            ran = run_episodes(env, policy, episodes)
        found[name] = {
            **asdict(policy.noticed()),
            "share_of_steps_out_of_range": policy.noticed_by_range().share_of_steps,
            "episode_return": float(np.mean([episode.reward.sum() for episode in ran])),
        }
        print(f"{task}  {name}: {found[name]['share_of_steps']:.2%} of steps", flush=True)
    statistics = manifest.observation_statistics
    return {
        "trained_steps": manifest.provenance.steps,
        "episodes": episodes,
        "shift_threshold": statistics.shift_threshold,
        "shift_false_alarm_rate": statistics.shift_false_alarm_rate,
        "shift_episodes": statistics.shift_episodes,
        "detection": found,
    }


def main() -> None:
    """Measure the bundles, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shift", description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {
        read_bundle(bundle).manifest.provenance.environment: measure(bundle, given.episodes) for bundle in given.bundles
    }
    headline = {
        name: {task: each["detection"][name]["share_of_steps"] for task, each in tasks.items()}
        for name in ("undisturbed", "two dimensions swapped", "scaled by 2")
    }
    packages = ["torch", "numpy", "onnxruntime", "mujoco", "safety-gymnasium"]
    finish("shift", headline, {"versions": versions(packages), "tasks": tasks})
    page.write()


if __name__ == "__main__":
    errors.run(main)
