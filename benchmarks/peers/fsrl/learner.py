"""FSRL's CVPO, updating from its own replay buffer; runs in FSRL's environment.

An update of FSRL is `policy.update(batch_size, buffer)`, as its trainer calls it: sample a batch, n-step targets of one
sampled action each, one Adam step of the critics (one for reward, one for cost), the values of K actions per state, one
Adam step of the dual, one of the policy, and the targets' slow copy.
"""

import argparse
import time

import gymnasium
import numpy as np
from fsrl.agent import CVPOAgent
from fsrl.config.cvpo_cfg import Mujoco2MCfg
from gymnasium.envs.registration import EnvSpec
from tianshou.data import Batch, VectorReplayBuffer

from benchmarks.contestant import answer_rounds
from benchmarks.workload import Workload, transitions

PERIOD = 100  # updates between two copies to the old policy, as ours; FSRL's trainer makes them rarer


class Spaces(gymnasium.Env[np.ndarray, np.ndarray]):
    """What CVPOAgent wants to know of an environment."""

    def __init__(self, workload: Workload) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (workload.observation_size,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (workload.action_size,), np.float64)
        self.spec = EnvSpec("Spaces-v0", max_episode_steps=workload.episode_steps)


def filled_buffer(workload: Workload, config: Mujoco2MCfg) -> VectorReplayBuffer:
    """FSRL's buffer, of its size for this task, filled as its collector fills it: one step of all environments."""
    envs = min(config.training_num, config.episode_per_collect)
    buffer = VectorReplayBuffer(config.buffer_size, envs)
    data = transitions(workload, config.buffer_size)
    ids = np.arange(envs)
    for step, rows in enumerate(np.arange(config.buffer_size).reshape(-1, envs)):
        truncated = np.full(envs, (step + 1) % workload.episode_steps == 0)
        buffer.add(
            Batch(
                obs=data.observation[rows],
                act=data.action[rows],
                rew=data.reward[rows],
                terminated=np.zeros(envs, bool),
                truncated=truncated,
                obs_next=data.next_observation[rows],
                info={"cost": data.cost[rows], "env_id": ids},
            ),
            buffer_ids=ids,
        )
    return buffer


def main() -> None:
    """Answer rounds of updates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    workload, config = Workload(), Mujoco2MCfg()  # FSRL's settings for SafetyPointCircle1
    agent = CVPOAgent(
        Spaces(workload),
        cost_limit=config.cost_limit,
        thread=arguments.threads,
        seed=0,
        sample_act_num=workload.samples,
        gamma=config.gamma,
        n_step=config.n_step,
        hidden_sizes=(workload.hidden, workload.hidden),
        unbounded=config.unbounded,
    )
    policy, buffer = agent.policy, filled_buffer(workload, config)
    policy.train()

    def updates(seconds: float) -> dict[str, float]:
        done, begin, core = 0, time.perf_counter(), time.process_time()
        while (passed := time.perf_counter() - begin) < seconds:
            if done % PERIOD == 0:
                policy.pre_update_fn()
            policy.update(workload.batch_size, buffer)
            done += 1
            if done % PERIOD == 0:
                policy.post_update_fn()
        return {"updates": done, "core_seconds": time.process_time() - core, "seconds": passed}

    updates(min(2.0, arguments.seconds))
    answer_rounds(["fast-safe-rl", "tianshou", "torch", "numpy"], lambda: updates(arguments.seconds))


if __name__ == "__main__":
    main()
