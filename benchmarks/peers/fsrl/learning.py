"""What FSRL's CVPO learns in a number of steps, with FSRL's own settings and trainer; runs in FSRL's environment.

As many test episodes an epoch as our checkpoints have, where FSRL has two: they do not change what is learned.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from fsrl.agent import CVPOAgent
from fsrl.utils import BaseLogger
from tianshou.env import ShmemVectorEnv

from benchmarks.contestant import versions
from benchmarks.peers.fsrl.tasks import SETTINGS, make_agent, register

TEST_EPISODES = 10
FIELDS = {
    "train/reward": "train_return",
    "train/cost": "train_cost",
    "test/reward": "episode_return",
    "test/cost": "cost",
}
PACKAGES = ["fast-safe-rl", "tianshou", "torch", "numpy", "gymnasium"]


class Curve(BaseLogger):  # type: ignore[misc]  # FSRL publishes no types
    """Keeps what the trainer logs, a row an epoch, and shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def write(self, step: int, display: bool = False, display_keys: object = None) -> None:
        row = {"steps": step} | {name: float(self.get_mean(key)) for key, name in FIELDS.items()}
        print(f"{step:>11,} {row['episode_return']:>9.1f} {row['cost']:>9.1f}", flush=True)
        self.rows.append(row)
        self.reset_data()


def seeded(env_id: str, seed: int) -> Callable[[], "gymnasium.Env[Any, Any]"]:
    """A function that makes an environment whose episodes the seed decides."""

    def make() -> "gymnasium.Env[Any, Any]":
        np.random.seed(seed)  # Bullet-Safety-Gym draws from numpy's global generator
        env = gymnasium.make(env_id)
        env.reset(seed=seed)  # later ones go on from it
        return env

    return make


def episodes(agent: CVPOAgent, env: "gymnasium.Env[Any, Any]", count: int, sampled: bool) -> dict[str, Any]:
    """Return and cost of each of so many episodes, by the most likely action or one drawn from the policy."""
    done = [agent.evaluate(env, eval_episodes=1, train_mode=sampled) for _ in range(count)]
    return {
        "returns": [round(float(episode_return), 3) for episode_return, _, _ in done],
        "costs": [round(float(cost), 3) for _, _, cost in done],
        "cost_level": None,
        "discounted_cost": None,
    }


def main() -> None:
    """Train, evaluate, and leave what was found in a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=SETTINGS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--cost-limit", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    env_id, curve = register(arguments.task), Curve()
    config = SETTINGS[arguments.task](
        task=arguments.task,
        cost_limit=arguments.cost_limit,
        thread=1,
        seed=arguments.seed,
        testing_num=TEST_EPISODES,
    )
    agent = make_agent(env_id, config, curve)
    first = 1_000 * arguments.seed
    training = ShmemVectorEnv(
        [seeded(env_id, first + i) for i in range(min(config.training_num, config.episode_per_collect))]
    )
    test = ShmemVectorEnv([seeded(env_id, first + 500 + i) for i in range(config.testing_num)])
    per_epoch = min(config.step_per_epoch, arguments.steps)
    began = time.perf_counter()
    agent.learn(
        training,
        test,
        epoch=arguments.steps // per_epoch,
        episode_per_collect=config.episode_per_collect,
        step_per_epoch=per_epoch,
        update_per_step=config.update_per_step,
        buffer_size=config.buffer_size,
        testing_num=config.testing_num,
        batch_size=config.batch_size,
        reward_threshold=config.reward_threshold,
        verbose=False,
        show_progress=False,
    )
    seconds = time.perf_counter() - began
    training.close()
    test.close()
    simulator = ["pybullet", "bullet-safety-gym"] if env_id == arguments.task else ["mujoco", "safety-gymnasium"]
    fresh = seeded(env_id, first + 900)
    found = {
        "seconds": seconds,
        "config": dataclasses.asdict(config),
        "versions": versions([*PACKAGES, *simulator]),
        "curve": {name: [row[name] for row in curve.rows] for name in ("steps", *FIELDS.values())},
        "deterministic": episodes(agent, fresh(), arguments.episodes, sampled=False),
        "sampled": episodes(agent, fresh(), arguments.episodes, sampled=True),
    }
    arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
