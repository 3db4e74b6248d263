"""Our environments: `make_env` for the speed, the Gymnasium environment below it for every bit of an episode."""

import argparse

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestant import answer_rounds
from benchmarks.episodes import Action, Outcome, Simulator, player
from cvpo.envs.make import make_env, make_gymnasium_env


def simulator(env_id: str, *, digests: bool) -> Simulator:
    """A task as it is used in training; for digests with its float64 observations."""
    env = make_env(env_id)
    low, high = env.spec.action_low, env.spec.action_high
    raw = make_gymnasium_env(env_id, max_episode_steps=None, render=False)

    def ended(action: Action) -> bool:
        step = env.step(action)
        return step.terminated or step.truncated

    def step(action: Action) -> Outcome:
        observation, reward, terminated, truncated, info = raw.step(action)
        return Outcome(observation, float(reward), info["cost"], terminated, truncated, info)

    def reset_raw(seed: int) -> NDArray[np.float64]:
        observation: NDArray[np.float64] = raw.reset(seed=seed)[0]
        return observation

    kind = raw.action_space.dtype if digests else np.float64
    return Simulator(low, high, kind, reset_raw if digests else env.reset, ended, step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("env_id")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=0)
    arguments = parser.parse_args()
    lent = simulator(arguments.env_id, digests=not arguments.steps)
    answer_rounds(
        ["gymnasium", "mujoco", "numpy", "safety-gymnasium"], player(lent, arguments.steps, arguments.episodes)
    )
