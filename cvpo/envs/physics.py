"""What the quick tasks ask of MuJoCo beyond its steps: a solver without detours, and a simulation's state and back."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION  # all that decides how a simulation goes on


def state_of(model: Any, data: Any) -> NDArray[np.float64]:
    """All that decides how a simulation (an MjModel, its MjData) goes on, in a row."""
    state = np.empty(mujoco.mj_stateSize(model, INTEGRATION))
    mujoco.mj_getState(model, data, state, INTEGRATION)
    return state


def set_state(model: Any, data: Any, state: NDArray[np.float64]) -> None:
    """Put back what `state_of` gave, with a forward pass."""
    mujoco.mj_setState(model, data, state, INTEGRATION)
    mujoco.mj_forward(model, data)


def leave_out_islands(model: Any) -> None:
    """Let the solver take a model of one kinematic tree as a whole, which saves a tenth of a simulator's step.

    MuJoCo looks for islands, groups of trees that touch, and solves each by itself. One tree is one island at most, and
    its constraints, their order and the arithmetic are the same without the search.
    """
    if model.ntree == 1:
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
