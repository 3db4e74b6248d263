"""Stock Safety-Gymnasium 1.0.0, made as its documentation says; runs in its own environment."""

import argparse
import os
import tempfile
from typing import Any

import numpy as np

from benchmarks.contestant import answer_rounds
from benchmarks.episodes import Action, Outcome, Simulator, player
from benchmarks.peers.fsrl.mend import import_safety_gymnasium


def simulator(env_id: str) -> Simulator:
    """A task, without a single mend beyond the one that lets the package be imported."""
    env: Any = import_safety_gymnasium().make(env_id)
    space = env.action_space

    def ended(action: Action) -> bool:
        _, _, _, terminated, truncated, _ = env.step(action)
        return bool(terminated or truncated)

    def step(action: Action) -> Outcome:
        observation, reward, cost, terminated, truncated, info = env.step(action)
        return Outcome(observation, float(reward), cost, terminated, truncated, info)

    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return Simulator(low, high, space.dtype, lambda seed: env.reset(seed=seed)[0], ended, step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("env_id")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=0)
    arguments = parser.parse_args()
    os.chdir(tempfile.gettempdir())  # where MuJoCo may write its MUJOCO_LOG.TXT
    answer_rounds(
        ["gymnasium", "mujoco", "numpy", "safety-gymnasium"],
        player(simulator(arguments.env_id), arguments.steps, arguments.episodes),
    )
