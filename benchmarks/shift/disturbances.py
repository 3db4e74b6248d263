"""What can be wrong with an observation, as functions of all that was observed so far."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Observations = NDArray[np.float32]  # [N, O], of N environments
Steps = NDArray[np.int64]  # [N], that each environment has taken of its episode

Change: TypeAlias = Callable[[Sequence[Observations], Steps], Observations]
"""From what was observed at each step so far, the newest last, to what the policy is shown."""

FROZEN_FROM = 100


@dataclass(frozen=True)
class Disturbance:
    """A change, and the step of an episode from which on it shows."""

    change: Change
    begins: int = 0


def undisturbed() -> Disturbance:
    return Disturbance(lambda history, steps: history[-1])


def shifted(offset: Observations) -> Disturbance:
    """Add an offset, [O] or [N, O]."""
    return Disturbance(lambda history, steps: history[-1] + offset)


def scaled(factor: float) -> Disturbance:
    return Disturbance(lambda history, steps: history[-1] * np.float32(factor))


def ordered(order: NDArray[np.int64]) -> Disturbance:
    """Show dimension `order[i, j]` of environment i in the place of dimension j; `order` is [N, O]."""
    return Disturbance(lambda history, steps: np.take_along_axis(history[-1], order, axis=1))


def delayed(by: int) -> Disturbance:
    """Show what was observed so many steps ago; until then, what was observed first."""
    return Disturbance(lambda history, steps: _ago(history, np.minimum(steps, by)), begins=by)


def frozen(since: int) -> Disturbance:
    """Show what was observed at that step of the episode from then on."""
    return Disturbance(lambda history, steps: _ago(history, np.maximum(steps - since, 0)), begins=since)


def partly_frozen(since: int, which: NDArray[np.bool_]) -> Disturbance:
    """As `frozen`, of the dimensions where `which` [N, O] is true."""
    return Disturbance(
        lambda history, steps: np.where(which, frozen(since).change(history, steps), history[-1]), begins=since
    )


def _ago(history: Sequence[Observations], ago: Steps) -> Observations:
    return np.stack([history[-1 - steps][row] for row, steps in enumerate(ago.tolist())])


def disturbances(standard_deviation: Observations, num_envs: int, seed: int) -> Mapping[str, Disturbance]:
    """All that is shown, by its name; where one or two dimensions are disturbed, they differ between environments.

    Args:
        standard_deviation: of each dimension in training, [O].
        num_envs: N.
        seed: of the choice of dimensions.
    """
    generator = np.random.default_rng(seed)
    size = len(standard_deviation)
    orders = np.stack([generator.permutation(size) for _ in range(num_envs)])
    one = np.zeros((num_envs, size), np.float32)
    one[np.arange(num_envs), orders[:, 0]] = standard_deviation[orders[:, 0]]
    swapped = np.tile(np.arange(size), (num_envs, 1))
    first, second = orders[:, :1], orders[:, 1:2]
    np.put_along_axis(swapped, first, second, axis=1)
    np.put_along_axis(swapped, second, first, axis=1)
    return {
        "undisturbed": undisturbed(),
        "one dimension shifted by 1 standard deviation": shifted(one),
        "one dimension shifted by 3": shifted(3 * one),
        "all dimensions shifted by 1": shifted(standard_deviation),
        "all dimensions shifted by 3": shifted(3 * standard_deviation),
        "scaled by 0.5": scaled(0.5),
        "scaled by 2": scaled(2.0),
        "scaled by 10": scaled(10.0),
        "two dimensions swapped": ordered(swapped),
        "all dimensions permuted": ordered(orders),
        f"frozen from step {FROZEN_FROM} on": frozen(FROZEN_FROM),
        f"one dimension frozen from step {FROZEN_FROM} on": partly_frozen(FROZEN_FROM, one != 0),
        "delayed by 5 steps": delayed(5),
        "delayed by 20 steps": delayed(20),
    }


@dataclass(frozen=True)
class Detection:
    """What was noticed, counted from where the disturbance shows."""

    share_of_steps: float
    flagged_episodes: float  # share of them with a step at which it was
    median_steps: float | None  # to the first one, over all episodes; None: half of them have none


def detected(over: NDArray[np.bool_], steps: Steps, begins: int) -> Detection:
    """Count what was noticed.

    Args:
        over: it was noticed, [T, N]; of each environment, its first episode counts.
        steps: that the environment had taken of its episode, [T, N].
        begins: the first step that counts.
    """
    counts = ((steps == 0).cumsum(0) == 1) & (steps >= begins)
    flagged = over & counts
    any_flagged = flagged.any(0)
    first = np.where(any_flagged, flagged.argmax(0) - counts.argmax(0) + 1.0, np.inf)[counts.any(0)]
    median = float(np.sort(first)[(len(first) - 1) // 2])
    return Detection(
        share_of_steps=float(flagged.sum() / counts.sum()),
        flagged_episodes=float(any_flagged[counts.any(0)].mean()),
        median_steps=median if np.isfinite(median) else None,
    )
