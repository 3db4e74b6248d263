"""What a step of ours takes, what of it MuJoCo takes, and what a reset takes."""

import argparse
import itertools
import time
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from benchmarks.contestant import answer_rounds
from cvpo.envs.make import make_env

RESETS = 10


def parts(env_id: str, steps: int, seed: int) -> dict[str, float]:
    """Microseconds of the core: of a step without resets, of MuJoCo's share of it, of a reset.

    MuJoCo's share is found by simulating on from where the steps ended, with the same actions and nothing else.
    """
    env = make_env(env_id, max_episode_steps=10 * steps)
    actions = np.random.default_rng(seed).uniform(
        env.spec.action_low, env.spec.action_high, (steps, env.spec.action_size)
    )
    seeds = itertools.count(1000 * seed)
    env.reset(next(seeds))  # the first one makes the world

    begun = time.process_time()
    for _ in range(RESETS):
        env.reset(next(seeds))
    resetting = time.process_time() - begun

    stepping = simulating = 0.0
    simulator: Any = getattr(env.unwrapped, "task", env.unwrapped)
    navigation = simulator is not env.unwrapped
    frames = simulator.sim_conf.frameskip_binom_n if navigation else simulator.frame_skip
    for chunk in np.array_split(actions, max(1, steps // 20)):  # short, since Ant falls over soon
        begun = time.process_time()
        taken = 0
        for action in chunk:
            taken += 1
            if env.step(action).terminated:
                break
        stepping += (time.process_time() - begun) * len(chunk) / taken
        model, data = simulator.model, simulator.data
        begun = time.process_time()
        for action in chunk:
            data.ctrl[:] = action
            mujoco.mj_step(model, data, frames)
            if navigation:
                mujoco.mj_forward(model, data)
        simulating += time.process_time() - begun
        env.reset(next(seeds))
    return {
        "step": 1e6 * stepping / steps,
        "mujoco": 1e6 * simulating / steps,
        "reset": 1e6 * resetting / RESETS,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("env_id")
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()
    rounds = itertools.count()

    def play() -> Mapping[str, float]:
        return parts(arguments.env_id, arguments.steps, next(rounds))

    play()
    answer_rounds(["gymnasium", "mujoco", "numpy", "safety-gymnasium"], play)
