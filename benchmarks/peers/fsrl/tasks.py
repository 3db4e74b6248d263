"""FSRL's CVPO with FSRL's settings for a task, on the task's stock environment."""

import importlib

import gymnasium
from fsrl.agent import CVPOAgent
from fsrl.config.cvpo_cfg import Bullet1MCfg, Mujoco2MCfg, Mujoco5MCfg, TrainCfg
from fsrl.utils import BaseLogger

from benchmarks.peers.fsrl.mend import import_safety_gymnasium

SETTINGS = {
    "SafetyPointCircle1-v0": Mujoco2MCfg,
    "SafetyHalfCheetahVelocity-v1": Mujoco5MCfg,
    "SafetyBallCircle-v0": Bullet1MCfg,
}


def register(task: str) -> str:
    """Import the package that has the task, and give its id in Gymnasium."""
    if isinstance(SETTINGS[task](), Bullet1MCfg):
        importlib.import_module("bullet_safety_gym")
        return task
    import_safety_gymnasium()
    name, version = task.rsplit("-", 1)
    return f"{name}Gymnasium-{version}"


def make_agent(env_id: str, config: TrainCfg, logger: BaseLogger) -> CVPOAgent:
    """The agent as FSRL's own script makes it."""
    return CVPOAgent(
        gymnasium.make(env_id),
        logger=logger,
        cost_limit=config.cost_limit,
        thread=config.thread,
        seed=config.seed,
        sample_act_num=config.sample_act_num,
        gamma=config.gamma,
        n_step=config.n_step,
        hidden_sizes=config.hidden_sizes,
        unbounded=config.unbounded,
    )
