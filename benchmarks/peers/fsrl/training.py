"""A training run of FSRL's CVPO with FSRL's own trainer, on the stock Safety-Gymnasium; runs in FSRL's environment.

Everything is FSRL's setting for the task: ten environments in processes of their own, whole episodes per collection,
0.2 updates per step, two test episodes and a saved model at the end.
"""

import argparse
import json
import time
from pathlib import Path

import gymnasium
from fsrl.utils import TensorboardLogger
from tianshou.env import ShmemVectorEnv

from benchmarks.contestant import versions
from benchmarks.peers.fsrl.tasks import SETTINGS, make_agent, register


def main() -> None:
    """Train, and leave what was done in a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=SETTINGS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    env_id = register(arguments.task)
    config = SETTINGS[arguments.task](thread=arguments.threads, seed=arguments.seed)
    logger = TensorboardLogger(str(arguments.out), log_txt=True, name="log")
    agent = make_agent(env_id, config, logger)
    training_envs = min(config.training_num, config.episode_per_collect)
    train_envs = ShmemVectorEnv([lambda: gymnasium.make(env_id) for _ in range(training_envs)])
    test_envs = ShmemVectorEnv([lambda: gymnasium.make(env_id) for _ in range(config.testing_num)])
    begun = time.time()
    agent.learn(
        train_envs,
        test_envs,
        epoch=1,
        episode_per_collect=config.episode_per_collect,
        step_per_epoch=arguments.steps,
        update_per_step=config.update_per_step,
        buffer_size=config.buffer_size,
        testing_num=config.testing_num,
        batch_size=config.batch_size,
        reward_threshold=config.reward_threshold,
        save_interval=1,
        verbose=False,
        show_progress=False,
    )
    train_envs.close()
    test_envs.close()
    done = {
        "begun": begun,
        "steps": arguments.steps,
        "updates": round(config.update_per_step * arguments.steps),
        "versions": versions(["fast-safe-rl", "safety-gymnasium", "tianshou", "torch", "numpy", "mujoco"]),
    }
    (arguments.out / "done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main()
