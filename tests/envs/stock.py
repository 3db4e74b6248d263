"""Trajectories of the stock Safety-Gymnasium, imported with nothing but the mend it needs.

Run in a process of its own (`python -m tests.envs.stock FILE.npz`), where nothing of cvpo has touched it.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.fsrl.mend import import_safety_gymnasium

TASKS = (
    "SafetyPointGoal1-v0",
    "SafetyPointCircle1-v0",
    "SafetyPointButton1-v0",
    "SafetyPointPush1-v0",
    "SafetyCarGoal1-v0",
    "SafetyCarCircle1-v0",
    "SafetyAntVelocity-v1",
    "SafetyHalfCheetahVelocity-v1",
    "SafetyHopperVelocity-v1",
    "SafetyWalker2dVelocity-v1",
    "SafetyHumanoidVelocity-v1",
    "SafetyAntGoal2-v0",
    "SafetyPointPush2-v0",
)
SEEDS = (7, 123)
HORIZON = 150
Array = NDArray[np.float64]
Result = tuple[Any, float, bool, bool, dict[str, Any]]  # of a step, as Gymnasium has it
LAST = 4  # columns of a row after the observation: reward, cost, terminated, truncated


def trajectory(
    env_id: str, reset: Callable[[int], Array], step: Callable[[Array], Result], actions: int
) -> tuple[Array, NDArray[np.str_]]:
    """An episode for each seed: a row per step, and the costs that its `info` reports by name."""
    generator = np.random.default_rng(1)
    rows, costs = [], []
    for seed in SEEDS:
        observation = reset(seed)
        rows.append(np.append(observation, np.zeros(LAST)))
        drift = generator.uniform(0.5, 1.0, actions)  # pure noise stays where it starts, where nothing costs
        ended = False
        while not ended:
            action = np.clip(drift + generator.normal(0.0, 0.5, actions), -1.0, 1.0)
            if "PointGoal" in env_id:
                action = towards_the_goal(observation)
            observation, reward, terminated, truncated, info = step(action)
            ended = terminated or truncated
            rows.append(np.append(observation, [reward, info["cost"], terminated, truncated]))
            costs.append(str([(name, float(info[name])) for name in info if name.startswith("cost_")]))
    return np.stack(rows), np.array(costs)


def towards_the_goal(observation: Array) -> Array:
    """Drive Point to the goal of a Goal task, so that the goal is moved within the episode."""
    bearing = np.angle(np.exp(2j * np.pi * (np.argmax(observation[12:28]) + 0.5) / 16))
    return np.array([1.0 if abs(bearing) < 0.6 else 0.0, np.clip(2 * bearing, -1.0, 1.0)])


def stock_trajectories() -> Iterator[tuple[str, Any]]:
    safety_gymnasium = import_safety_gymnasium()
    for env_id in TASKS:
        env = safety_gymnasium.make(env_id, max_episode_steps=HORIZON)

        def reset(seed: int, env: Any = env) -> Array:
            observation: Array = env.reset(seed=seed)[0]
            return observation

        def step(action: Array, env: Any = env) -> Result:
            observation, reward, cost, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
            return observation, reward, terminated, truncated, {**info, "cost": cost}

        rows, costs = trajectory(env_id, reset, step, env.action_space.shape[0])
        yield env_id, rows
        yield f"{env_id} costs", costs


if __name__ == "__main__":
    np.savez(sys.argv[1], **dict(stock_trajectories()))
