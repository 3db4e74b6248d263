"""Tasks with the spaces of one that is trained in and other physics: `benchmarks.shift.tasks:NAME` for `make_env`."""

from typing import Any

import gymnasium
import mujoco

from cvpo.envs.make import make_gymnasium_env


def heavy_half_cheetah() -> gymnasium.Env[Any, Any]:
    """HalfCheetahVelocity with a body of twice the mass and inertia."""
    env = make_gymnasium_env("SafetyHalfCheetahVelocity-v1", max_episode_steps=None, render=False)
    simulation: Any = env.unwrapped
    simulation.model.body_mass[:] *= 2
    simulation.model.body_inertia[:] *= 2
    mujoco.mj_setConst(simulation.model, simulation.data)
    return env
