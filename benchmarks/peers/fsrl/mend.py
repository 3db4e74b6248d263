"""What Safety-Gymnasium 1.0.0 needs to be imported on Python 3.11, and nothing else."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def import_safety_gymnasium() -> Any:
    """Import it, which registers its tasks, and give the module.

    Its assets are dataclasses with arrays as defaults, which Python refuses since 3.11; while it is imported, they
    become default factories.
    """
    strict: Callable[..., Any] = dataclasses.dataclass

    def lenient(cls: type | None = None, /, **options: bool) -> Any:
        if cls is None:
            return functools.partial(lenient, **options)
        for name, default in list(vars(cls).items()):
            if isinstance(default, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=default.copy))
        return strict(cls, **options)

    dataclasses.dataclass = lenient
    try:
        import safety_gymnasium
    finally:
        dataclasses.dataclass = strict
    return safety_gymnasium
