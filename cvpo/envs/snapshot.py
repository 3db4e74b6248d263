"""An environment as bytes, in the middle of its episode, so that a resumed run goes on to the bit."""

from __future__ import annotations

import copyreg
import io
import pickle
import zlib
from typing import Any

from gymnasium.utils import EzPickle

from cvpo.envs.base import CostEnv


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


class _WholePickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle):
            return copyreg.__newobj__, (type(obj),), vars(obj), None, None, _set_attributes  # type: ignore[attr-defined]
        return NotImplemented


def _set_attributes(obj: object, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)
