"""An environment as bytes, in the middle of its episode, so that a resumed run goes on to the bit."""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import zlib
from typing import Any

import numpy as np
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from cvpo.envs.base import CostEnv, describe

COMPARED_STEPS = 20  # of a pickled environment and its original


def freeze(env: CostEnv) -> bytes | None:
    """The whole environment, simulator and random state included, or None if it cannot be pickled.

    Gymnasium's EzPickle would make it anew from its constructor's arguments; here its state is kept.
    """
    buffer = io.BytesIO()
    try:
        _WholePickler(buffer, pickle.HIGHEST_PROTOCOL).dump(env)
    except Exception:  # whatever the environment holds decides what is raised
        return None
    return zlib.compress(buffer.getvalue(), level=1)


def thaw(frozen: bytes) -> CostEnv:
    """The environment that `freeze` saw. Unpickling runs code: only for bytes of a run that you trust."""
    env = pickle.loads(zlib.decompress(frozen))
    assert isinstance(env, CostEnv)
    return env


def flaw(env: CostEnv, seed: int) -> str | None:
    """Say why an environment is lost in `freeze` and `thaw`, or None if it goes on as it would have.

    Args:
        env: a spare one, which is closed. It is closed before its copy goes on, as the copy will be alone one day: with
            a physics client or a handle it may have taken its number along, but not the simulator behind it.
        seed: of the episode that is tried, and of the actions.

    Raises:
        EnvError: the environment itself raised, or returned what it must not.
    """
    generator = np.random.default_rng(seed)
    actions = generator.uniform(env.spec.action_low, env.spec.action_high, (COMPARED_STEPS, env.spec.action_size))
    with contextlib.closing(env):
        env.reset(seed)
        env.step(actions[0])
        frozen = freeze(env)
        expected = _followed(env, actions)
    if frozen is None:
        return "The environment cannot be pickled"
    try:
        with contextlib.closing(thaw(frozen)) as copy:
            same = np.array_equal(_followed(copy, actions), expected)
    except Exception as error:  # whatever the environment holds decides what is raised
        return f"Once pickled, the environment cannot be restored ({describe(error)})"
    return None if same else "A pickled environment does not go on as the original"


def _followed(env: CostEnv, actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the actions lead to, a row each; where an episode ends, the same new one starts."""
    rows = []
    for action in actions:
        step = env.step(action)
        rows.append([*step.observation, step.reward, *step.cost, step.terminated, step.truncated])
        if step.terminated or step.truncated:
            env.reset(0)
    return np.array(rows, np.float64)


class _WholePickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle):
            return copyreg.__newobj__, (type(obj),), vars(obj), None, None, _set_attributes  # type: ignore[attr-defined]
        return NotImplemented


def _set_attributes(obj: object, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)
