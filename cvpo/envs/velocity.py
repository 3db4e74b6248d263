"""Safety-Gymnasium's velocity tasks in one layer instead of five, computing what the stock ones compute, to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from cvpo.envs import safety_tasks
from cvpo.envs.base import all_usable
from cvpo.envs.physics import leave_out_islands, set_state, state_of

Result = tuple[NDArray[np.float64], Any, float, bool, dict[str, Any]]
"""Observation, reward, cost, terminated, info."""


class VelocityTask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A velocity task with its cost in `info["cost"]`; the time limit and the order of calls are kept here, too.

    What Safety-Gymnasium 1.0.0 stacks around these tasks, and what Gymnasium 0.29 does around a simulation of some 30
    microseconds, takes a fifth of a step. HalfCheetah, Hopper, Walker2d and Ant are stepped here from views of the
    simulator's memory, in the order of operations of their `step`; the others' own `step` is called.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], spec: EnvSpec) -> None:
        """Args:
        env: an environment of safety_gymnasium.tasks.safe_velocity, without its wrappers.
        spec: what it is registered as, with its horizon.
        """
        assert spec.max_episode_steps is not None
        super().__init__(env)
        leave_out_islands(self.unwrapped.model)  # type: ignore[attr-defined]  # a MuJoCo environment
        self._spec, self._horizon = spec, spec.max_episode_steps
        self._steps: int | None = None
        self._advance = self._choose()

    @property
    def spec(self) -> EnvSpec:  # type: ignore[override]  # of a wrapper it is computed, too
        return self._spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: NDArray[Any]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._steps is None:
            raise gymnasium.error.ResetNeeded("step comes after reset")
        observation, reward, cost, terminated, info = self._advance(action)
        info["cost"] = cost
        self._steps += 1
        return observation, reward, terminated, self._steps >= self._horizon, info

    # The state of an episode, a few kilobytes: the model is read again from its file.

    def __reduce__(self) -> tuple[Any, ...]:
        stock: Any = self.env
        state = {
            "steps": self._steps,
            "random": stock.np_random,
            "physics": state_of(stock.model, stock.data),
            # A step begins by reading where bodies are, which is where the last one's forward pass saw them.
            "bodies": (stock.data.xpos.copy(), stock.data.xipos.copy()),
        }
        make = functools.partial(safety_tasks.make_task, max_episode_steps=self._horizon, render=False)
        return make, (self._spec.id,), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        stock: Any = self.env
        self._steps, stock.np_random = state["steps"], state["random"]
        set_state(stock.model, stock.data, state["physics"])
        stock.data.xpos[:], stock.data.xipos[:] = state["bodies"]

    def _choose(self) -> Callable[[NDArray[Any]], Result]:
        stock: Any = self.env
        if type(stock).__module__.startswith("safety_gymnasium.") and stock.render_mode is None:
            kind = type(stock).__name__
            blind = stock._exclude_current_positions_from_observation
            mortal = blind and getattr(stock, "_terminate_when_unhealthy", False)
            if kind == "SafetyHalfCheetahVelocityEnv" and blind:
                return half_cheetah(stock)
            if kind in ("SafetyHopperVelocityEnv", "SafetyWalker2dVelocityEnv") and mortal:
                return hopper(stock)
            if kind == "SafetyAntVelocityEnv" and mortal and not stock._use_contact_forces:
                return ant(stock)
        return lambda action: _five(stock.step(action))


def _five(result: tuple[Any, ...]) -> Result:
    """Without `truncated`, which is always False."""
    observation, reward, cost, terminated, _, info = result
    return observation, reward, cost, terminated, info


def half_cheetah(stock: Any) -> Callable[[NDArray[Any]], Result]:
    """The step of SafetyHalfCheetahVelocityEnv."""
    model, data, frames, dt = stock.model, stock.data, stock.frame_skip, stock.dt
    control, position, velocity = data.ctrl, data.qpos, data.qvel
    seen = position[1:]
    forward_weight, control_weight = stock._forward_reward_weight, stock._ctrl_cost_weight
    threshold, step = stock._velocity_threshold, mujoco.mj_step

    def advance(action: NDArray[Any]) -> Result:
        _check_size(action, control)
        before = position[0]
        control[:] = action
        step(model, data, frames)
        after = position[0]
        speed = (after - before) / dt
        forward_reward = forward_weight * speed
        control_cost = control_weight * np.add.reduce(np.square(action))
        info = {
            "x_position": after,
            "x_velocity": speed,
            "reward_run": forward_reward,
            "reward_ctrl": -control_cost,
        }
        observation = np.concatenate((seen, velocity))
        return observation, forward_reward - control_cost, float(speed > threshold), False, info

    return advance


def hopper(stock: Any) -> Callable[[NDArray[Any]], Result]:
    """The step of SafetyHopperVelocityEnv and SafetyWalker2dVelocityEnv, which are healthy in different ways."""
    model, data, frames, dt = stock.model, stock.data, stock.frame_skip, stock.dt
    control, position, velocity = data.ctrl, data.qpos, data.qvel
    seen = position[1:]
    forward_weight, control_weight = stock._forward_reward_weight, stock._ctrl_cost_weight
    threshold, step, healthy_reward = stock._velocity_threshold, mujoco.mj_step, 1.0 * stock._healthy_reward

    def advance(action: NDArray[Any]) -> Result:
        _check_size(action, control)
        before = position[0]
        control[:] = action
        step(model, data, frames)
        after = position[0]
        speed = (after - before) / dt
        control_cost = control_weight * np.add.reduce(np.square(action))
        observation = np.concatenate((seen, np.minimum(np.maximum(velocity, -10), 10)))
        reward = forward_weight * speed + healthy_reward - control_cost
        info = {"x_position": after, "x_velocity": speed}
        return observation, reward, float(speed > threshold), not stock.is_healthy, info

    return advance


def ant(stock: Any) -> Callable[[NDArray[Any]], Result]:
    """The step of SafetyAntVelocityEnv, as it is registered: no contact forces, its place not observed, mortal."""
    model, data, frames, dt = stock.model, stock.data, stock.frame_skip, stock.dt
    control, position, velocity = data.ctrl, data.qpos, data.qvel
    torso = data.body("torso").xpos
    low, high = stock._healthy_z_range
    weight, healthy_reward = stock._ctrl_cost_weight, 1.0 * stock._healthy_reward
    threshold, step = stock._velocity_threshold, mujoco.mj_step

    def advance(action: NDArray[Any]) -> Result:
        _check_size(action, control)
        before = torso[:2].copy()
        control[:] = action
        step(model, data, frames)
        after = torso[:2].copy()
        x_speed, y_speed = (after - before) / dt
        state = np.concatenate((position, velocity))
        terminated = not (all_usable(state) and low <= state[2] <= high)
        control_cost = weight * np.add.reduce(np.square(action))
        info = {
            "reward_forward": x_speed,
            "reward_ctrl": -control_cost,
            "reward_survive": healthy_reward,
            "x_position": after[0],
            "y_position": after[1],
            "distance_from_origin": np.sqrt(after.dot(after)),
            "x_velocity": x_speed,
            "y_velocity": y_speed,
            "forward_reward": x_speed,
        }
        cost = float(np.sqrt(x_speed**2 + y_speed**2) > threshold)
        return state[2:], x_speed + healthy_reward - control_cost, cost, terminated, info

    return advance


def _check_size(action: NDArray[Any], control: NDArray[np.float64]) -> None:
    if action.shape != control.shape:
        raise ValueError(f"the action has shape {action.shape} instead of {control.shape}")
