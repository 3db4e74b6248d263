"""Bullet-Safety-Gym 1.4.0's Circle and Run tasks: the same seed gives the same episode, also when one is resumed.

An episode here is the first one of a stock environment, to the bit, whatever came before. The stock environment's later
ones are not: it draws from numpy's global generator, and its saved state lacks the motors' last commands and a position
that Python keeps, so that with a Car or a Drone the last action of one episode moves the next one.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers.time_limit import TimeLimit
from numpy.typing import NDArray

from cvpo.errors import EnvError

# Safety-Gymnasium's Circle and Run tasks have a digit before the version: SafetyCarCircle1-v0.
TASK_IDS = frozenset(
    f"Safety{agent}{goal}-v0" for agent in ("Ball", "Car", "Drone", "Ant") for goal in ("Circle", "Run")
)
INSTALL = (
    "run `make install`, or `pip install pybullet==3.2.7` and then `pip install --no-deps bullet-safety-gym==1.4.0`"
)

_drawing = threading.Lock()  # a reset draws from numpy's global generator: one at a time


def load() -> ModuleType:
    """Import bullet_safety_gym, which registers its tasks, and return the module that builds them.

    Raises:
        EnvError: it or PyBullet is not installed; says how to.
    """
    try:
        with contextlib.redirect_stderr(sys.__stderr__):  # it asks sys.stderr for its file descriptor
            return importlib.import_module("bullet_safety_gym.envs.builder")
    except ModuleNotFoundError as error:
        if error.name == "bullet_safety_gym":
            raise EnvError(f"Bullet-Safety-Gym is not installed; {INSTALL}.") from error
        raise EnvError(f"Bullet-Safety-Gym needs {error.name}, which is not installed; {INSTALL}.") from error


def make_task(env_id: str, *, max_episode_steps: int | None, render: bool) -> gymnasium.Env[Any, Any]:
    """Make one of `TASK_IDS`, with its time limit unless another is given."""
    load()
    steps = max_episode_steps or gymnasium.spec(env_id).max_episode_steps
    assert steps is not None
    return TimeLimit(BulletTask(env_id, "rgb_array" if render else None), steps)


class BulletTask(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """One task, in a physics client of its own.

    PyBullet's state cannot be pickled to the bit, but an episode is decided by what was drawn at its start and by its
    actions (300 at most, 500 with an Ant): a pickle holds these, and they are played again when it is loaded.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as Gymnasium has it

    def __init__(self, env_id: str, render_mode: str | None) -> None:
        self._id = env_id
        self.render_mode = render_mode
        builder = load()
        with contextlib.redirect_stdout(sys.__stdout__):  # it keeps PyBullet quiet by its file descriptor
            self._stock = builder.EnvironmentBuilder(**gymnasium.spec(env_id).kwargs)
        self._stock.stored_state_id = self._stock.bc.saveState()  # else it would be that of the first episode
        self._start = np.array(self._stock.agent.init_xyz)  # resets write into it
        self.observation_space, self.action_space = self._stock.observation_space, self._stock.action_space
        self.dt = float(self._stock.dt)
        self._drawn: int | None = None
        self._actions: list[NDArray[np.float32]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        return self._begin(int(self.np_random.integers(2**32))), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self._actions.append(np.array(action, np.float32))
        observation, reward, terminated, truncated, info = self._stock.step(action)
        return observation, float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]  # one frame, not Gymnasium's many kinds
        return np.asarray(self._stock.render(mode="rgb_array"), np.uint8)

    def close(self) -> None:
        self._stock.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _played_again, (self._id, self.render_mode, self._np_random, self._drawn, self._actions)

    def _begin(self, drawn: int) -> NDArray[np.float64]:
        """Start the episode that the number decides."""
        self._drawn, self._actions = drawn, []
        self._stock.agent.init_xyz = self._start.copy()
        self._release_motors()
        with _drawing:
            before = np.random.get_state()
            np.random.seed(drawn)
            try:
                observation, _ = self._stock.reset()
            finally:
                np.random.set_state(before)
        return np.asarray(observation)

    def _release_motors(self) -> None:
        """Take the last commands back: a motor without force is how each begins."""
        client, body = self._stock.bc, self._stock.agent.body_id
        for joint in range(client.getNumJoints(body)):
            if client.getJointInfo(body, joint)[2] in (client.JOINT_REVOLUTE, client.JOINT_PRISMATIC):
                for mode in (client.POSITION_CONTROL, client.VELOCITY_CONTROL):
                    client.setJointMotorControl2(body, joint, mode, force=0)


def _played_again(
    env_id: str,
    render_mode: str | None,
    generator: np.random.Generator | None,
    drawn: int | None,
    actions: list[NDArray[np.float32]],
) -> BulletTask:
    task = BulletTask(env_id, render_mode)
    task._np_random = generator
    if drawn is not None:
        task._begin(drawn)
        for action in actions:
            task.step(action)
    return task
