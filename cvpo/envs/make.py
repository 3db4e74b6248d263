"""From what the user typed to an environment: a known task, a registered id, or `module:attribute`."""

from __future__ import annotations

import difflib
import importlib
import operator
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers.time_limit import TimeLimit
from numpy.typing import NDArray

from cvpo.envs import bullet_tasks, safety_tasks
from cvpo.envs.base import LARGEST, CostEnv, EnvSpec, as_number, describe
from cvpo.errors import EnvError

DEFAULT_COST_NAMES = ("cost",)


def make_env(
    env_id: str, *, cost_names: tuple[str, ...] = (), max_episode_steps: int | None = None, render: bool = False
) -> CostEnv:
    """Make one environment.

    Args:
        env_id: a task of Safety-Gymnasium (`SafetyPointGoal1-v0`) or Bullet-Safety-Gym (`SafetyBallCircle-v0`), any id
            registered in Gymnasium, `module:id` for one that is registered by importing the module, or
            `module:attribute`, where the attribute is an environment class or a function that returns an environment,
            called without arguments (so it decides about frames itself). Modules are also looked for in the current
            directory.
        cost_names: keys of `info`, one per constraint; the total `cost` unless given.
        max_episode_steps: the horizon; needed only where the environment is registered without one. One that a module
            wraps in a time limit can be made shorter by it, not longer.
        render: make frames for `CostEnv.render`; slower, so off unless frames are wanted.

    Raises:
        EnvError: the id is unknown (names the closest), the environment cannot be made, its spaces do not suit,
            or it has no time limit.
    """
    env = make_gymnasium_env(env_id, max_episode_steps=max_episode_steps, render=render)
    low, high = action_bounds(env_id, env.action_space)
    if len(set(cost_names)) < len(cost_names):
        raise EnvError(f"The costs {', '.join(cost_names)} of {env_id} name one twice; name each once.")
    size = observation_size(env_id, env.observation_space)
    spec = EnvSpec(
        env_id=env_id,
        observation_size=size,
        action_low=low,
        action_high=high,
        cost_names=cost_names or DEFAULT_COST_NAMES,
        max_episode_steps=max_episode_steps or horizon(env_id, env),
        control_period_ms=_control_period_ms(env),
        closeness=closeness(env_id, env, size),
    )
    return CostEnv(env, spec)


def closeness(env_id: str, env: gymnasium.Env[Any, Any], size: int) -> tuple[int, ...]:
    """What the environment says in its metadata; EnvError where that is no entry of an observation."""
    named = env.metadata.get("closeness", ())
    wrong = EnvError(
        f'metadata["closeness"] of {env_id} is {named!r}; it must be a list of indices, each from 0 to {size - 1}.'
    )
    try:
        indices = sorted({operator.index(entry) for entry in named})
    except TypeError as error:
        raise wrong from error
    if indices and not 0 <= indices[0] <= indices[-1] < size:
        raise wrong
    return tuple(indices)


def make_gymnasium_env(env_id: str, *, max_episode_steps: int | None, render: bool) -> gymnasium.Env[Any, Any]:
    """Make the environment itself, unchecked. `make_env` is what callers want; the checker looks below it."""
    if max_episode_steps is not None and max_episode_steps < 1:
        raise EnvError(f"max_episode_steps is {max_episode_steps}; an episode of {env_id} has at least one step.")
    try:
        env = _make(env_id, max_episode_steps, render)
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"{env_id} cannot be made: {describe(error)}.") from error
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"{env_id} makes {type(env).__name__}, not a gymnasium.Env; see docs/environments.md.")
    own = _time_limit(env)
    if max_episode_steps is not None and own is not None and own < max_episode_steps:
        raise EnvError(
            f"max_episode_steps is {max_episode_steps}, but {env_id} ends its episodes by itself after {own}. "
            f"Give no more than that, or raise its own time limit."
        )
    return env


def horizon(env_id: str, env: gymnasium.Env[Any, Any]) -> int:
    """The time limit with which the environment is registered or wrapped; EnvError without one."""
    steps = _time_limit(env)
    if steps is None:
        raise EnvError(
            f"{env_id} has no time limit, and a limit on the cost per episode needs one: "
            f"register it with max_episode_steps, wrap it in gymnasium.wrappers.TimeLimit, or give max_episode_steps."
        )
    return steps


def _time_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env.spec.max_episode_steps
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, TimeLimit):
            return int(layer._max_episode_steps)
        layer = layer.env
    return None


def _make(env_id: str, max_episode_steps: int | None, render: bool) -> Any:
    module_name, colon, name = env_id.rpartition(":")
    if name in bullet_tasks.TASK_IDS and module_name in ("", "bullet_safety_gym"):
        return bullet_tasks.make_task(name, max_episode_steps=max_episode_steps, render=render)
    if colon:
        module = _import(module_name, env_id)
        if name not in gymnasium.registry:
            return _called(module, name, env_id)
    elif name.startswith("Safety") and name not in gymnasium.registry:
        safety_tasks.load()
    if "safety_gymnasium" in sys.modules and (task := safety_tasks.plain_id(name)) in safety_tasks.task_ids():
        return safety_tasks.make_task(task, max_episode_steps=max_episode_steps, render=render)
    if name not in gymnasium.registry:
        raise EnvError(_unknown(env_id))
    options: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}  # not every one knows the word
    return gymnasium.make(name, max_episode_steps=max_episode_steps, disable_env_checker=True, **options)


def _import(module_name: str, env_id: str) -> object:
    if "/" in module_name or module_name.endswith(".py"):
        module = Path(module_name).stem
        raise EnvError(
            f"{env_id} names a file. Name its module, as Python imports it, in the folder of {module}.py: "
            f"{module}:{env_id.rpartition(':')[2]}."
        )
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that nothing installed is hidden
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise EnvError(
            f"{env_id}: there is no module {error.name} in {here} or among the installed packages."
        ) from error


def _called(module: object, name: str, env_id: str) -> Any:
    factory = getattr(module, name, None)
    if not callable(factory):
        what = f"has no {name}" if factory is None else f"has a {type(factory).__name__} as {name}"
        raise EnvError(f"{env_id}: the module {what}; name an environment class or a function that returns one.")
    return factory()


def _unknown(env_id: str) -> str:
    known = set(gymnasium.registry) | bullet_tasks.TASK_IDS
    try:
        known |= safety_tasks.task_ids()
    except EnvError as error:
        return f"There is no environment {env_id} in Gymnasium. {error}"
    close = difflib.get_close_matches(env_id, known, n=3, cutoff=0.6)
    hint = f"The closest: {', '.join(close)}" if close else "Nothing known is similar"
    return f"There is no environment {env_id}. {hint}. Give one of your own as module:attribute."


def action_bounds(env_id: str, space: gymnasium.Space[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds [A], flattened; EnvError unless the space is a Box of real numbers with finite bounds."""
    if not isinstance(space, gymnasium.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise EnvError(f"{env_id} has the action space {space}; actions must be a Box of real numbers.")
    low, high = space.low.astype(np.float64).reshape(-1), space.high.astype(np.float64).reshape(-1)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise EnvError(
            f"{env_id} has action bounds from {low} to {high}; each must be finite and each low below its high. "
            f"Give its action space the bounds that actions are to be within."
        )
    return low, high


def observation_size(env_id: str, space: gymnasium.Space[Any]) -> int:
    """Length of a flattened observation; EnvError if it has none or cannot be flattened."""
    try:
        size = int(gymnasium.spaces.flatdim(space))
    except (NotImplementedError, ValueError) as error:
        raise EnvError(f"{env_id} has the observation space {space}, which cannot be flattened to one row.") from error
    if size == 0:
        raise EnvError(f"{env_id} has an empty observation space, {space}.")
    return size


def _control_period_ms(env: gymnasium.Env[Any, Any]) -> float | None:
    """Simulated time per step: MuJoCo and many other environments call it `dt`, in seconds."""
    seconds = as_number(getattr(env.unwrapped, "dt", None))
    return 1000 * seconds if seconds is not None and 0 < seconds <= LARGEST else None
