"""An environment as learning sees it: flat float32 observations, actions in its own units, a cost per constraint."""

from __future__ import annotations

import contextlib
import io
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvpo.errors import EnvError

with contextlib.redirect_stderr(io.StringIO()):  # its plugin gymnasium_robotics prints a notice about tasks of its own
    import gymnasium

LARGEST = 1e15  # of what an environment may return: squares and sums of more are infinite in float32


@dataclass(frozen=True, eq=False)
class EnvSpec:
    """What learning, export and serving must know of an environment."""

    env_id: str
    """As the user gave it: a registered id or `module:attribute`."""
    observation_size: int
    """O, after flattening."""
    action_low: NDArray[np.float64]
    """Lower bounds [A], in the environment's units, finite."""
    action_high: NDArray[np.float64]
    """Upper bounds [A], in the environment's units, finite."""
    cost_names: tuple[str, ...]
    """One key of the step's `info` per constraint, C >= 1."""
    max_episode_steps: int
    """The horizon T; no episode is longer."""
    control_period_ms: float | None
    """Simulated time between two actions, where the environment says it (`dt`)."""
    closeness: tuple[int, ...] = ()
    """Entries of the observation that say how near something is that costs, from 0, out of reach, to 1, touching."""

    @property
    def action_size(self) -> int:
        """A, after flattening."""
        return self.action_low.size


class Step(NamedTuple):
    """What one action led to."""

    observation: NDArray[np.float32]
    """The next observation [O]."""
    reward: float
    cost: NDArray[np.float64]
    """[C], environment cost units, not negative."""
    terminated: bool
    """The episode ended by the task's rules: nothing comes after."""
    truncated: bool
    """The episode was cut off, by its horizon or otherwise."""


class CostEnv:
    """A Gymnasium environment with its costs taken out of `info` and everything it returns checked.

    A value that is missing, no number within ±LARGEST or (for a cost) negative raises EnvError with the step, the
    environment and the value; so does any exception that the environment itself raises.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], spec: EnvSpec) -> None:
        self.spec = spec
        self._env = env
        self._step, self._horizon = 0, spec.max_episode_steps
        self._seed: int | None = None
        self._low, self._high = spec.action_low, spec.action_high
        space = env.action_space
        assert space.shape is not None  # spaces are asked here, once: through the wrappers they take long
        self._native_type, self._native_shape = np.dtype(space.dtype), space.shape
        self._is_box = isinstance(env.observation_space, gymnasium.spaces.Box)

    def reset(self, seed: int, *, cut_by: int = 0) -> NDArray[np.float32]:
        """Start an episode and return its first observation [O]; the same seed gives the same episode.

        Args:
            seed: of the episode.
            cut_by: steps that it is shorter than others, at its end.
        """
        self._step, self._seed, self._horizon = 0, seed, self.spec.max_episode_steps - cut_by
        try:
            raw, _ = self._env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise self._failure(f"reset(seed={seed}) raised {describe(error)} ({place(error)})") from error
        return self._observation(raw)

    def step(self, action: NDArray[np.floating[Any]]) -> Step:
        """Take one action [A], in environment units; it is clipped to the action bounds.

        Raises:
            EnvError: the environment raised, or returned what it must not.
        """
        self._step += 1
        if action.shape != self._low.shape:
            raise self._failure(f"the action has shape {action.shape} instead of {self._low.shape}")
        if not all_usable(action):
            raise self._failure(f"the action {action} is not of numbers within ±{LARGEST:g}")
        native = np.minimum(np.maximum(action, self._low), self._high).astype(self._native_type)
        if native.shape != self._native_shape:
            native = native.reshape(self._native_shape)
        try:
            raw, reward, terminated, truncated, info = self._env.step(native)
        except (Exception, SystemExit) as error:
            raise self._failure(f"step raised {describe(error)} ({place(error)})") from error
        if (value := as_number(reward)) is None or not abs(value) <= LARGEST:
            raise self._failure(f"the reward is {reward!r}, not a number within ±{LARGEST:g}")
        truncated = bool(truncated) or self._step >= self._horizon
        return Step(self._observation(raw), value, self._cost(info), bool(terminated), truncated)

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame [height, width, 3], or None if the environment was not made for rendering."""
        if self._env.render_mode is None:
            return None
        try:
            return np.asarray(self._env.render(), np.uint8)
        except Exception as error:
            raise self._failure(
                f"rendering raised {describe(error)}; without a display, set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            ) from error

    @property
    def unwrapped(self) -> Any:
        """The environment itself, for pictures of what happens in it."""
        return self._env.unwrapped

    def close(self) -> None:
        """Free what the simulator holds, e.g. its window. What that raises ends no run; `check_env` tells of it."""
        with contextlib.suppress(Exception):
            self._env.close()  # type: ignore[no-untyped-call]  # gymnasium 0.29 leaves it unannotated

    def _observation(self, raw: object) -> NDArray[np.float32]:
        try:
            flat = np.array(raw, np.float32) if self._is_box else flatten(self._env.observation_space, raw)
            if flat.ndim != 1:
                flat = flat.reshape(-1)
        except Exception as error:
            raise self._failure(f"the observation does not fit its space: {describe(error)}") from error
        if flat.size != self.spec.observation_size:
            raise self._failure(f"the observation has {flat.size} values instead of {self.spec.observation_size}")
        if not all_usable(flat):
            index = int(np.flatnonzero(~(np.abs(flat) <= LARGEST))[0])
            raise self._failure(f"observation[{index}] is {flat[index]}, not a number within ±{LARGEST:g}")
        return flat

    def _cost(self, info: object) -> NDArray[np.float64]:
        if not isinstance(info, Mapping):
            raise self._failure(f"info is {info!r}, not a dict with the cost in it")
        cost = np.empty(len(self.spec.cost_names))
        for index, name in enumerate(self.spec.cost_names):
            if name not in info:
                raise self._failure(f"{missing_cost(name, info)}; put it in at every step, or name another cost")
            value = as_number(info[name])
            if value is None or not 0 <= value <= LARGEST:
                raise self._failure(f'info["{name}"] is {info[name]!r}; a cost is a number from 0 to {LARGEST:g}')
            cost[index] = value
        return cost

    def _failure(self, what: str) -> EnvError:
        where = f"at step {self._step}" if self._step else "at the reset"
        return EnvError(f"{self.spec.env_id}, {where} of the episode with seed {self._seed}: {what}.")


def flatten(space: gymnasium.Space[Any], observation: object) -> NDArray[np.float32]:
    """The observation as one row [O]; a Box is taken as it is, anything else as Gymnasium flattens it."""
    if not isinstance(space, gymnasium.spaces.Box):
        observation = gymnasium.spaces.flatten(space, observation)
    return np.array(observation, np.float32).reshape(-1)


def all_usable(array: NDArray[np.floating[Any]]) -> bool:
    """Whether every element of a vector is a number within ±LARGEST."""
    square = array.dot(array)  # small only if every element is, and quickly had; where it is large, look at each
    return square <= LARGEST**2 or bool((np.abs(array) <= LARGEST).all())


def as_number(value: object) -> float | None:
    """The value as a float, or None if it is not one real number; an array of one element counts as one."""
    if isinstance(value, float):
        return float(value)
    array = np.asarray(value)
    return float(array.reshape(())) if array.size == 1 and array.dtype.kind in "biuf" else None


def missing_cost(name: str, info: Mapping[str, Any]) -> str:
    """Say that a cost is not in `info`, and which ones are."""
    reported = ", ".join(sorted(key for key in info if key.startswith("cost")))
    return f'info has no cost "{name}" ' + (f"(it has {reported})" if reported else "(nor any other key cost*)")


def describe(error: BaseException) -> str:
    """Kind and text of an exception, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: BaseException) -> str:
    """File and line that an environment raised at: of its own code rather than of an installed package."""
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)  # first: ours
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
