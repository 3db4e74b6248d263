"""Where the objects of a navigation task stand when an episode starts: Safety-Gymnasium's draw, without its arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

ATTEMPTS, TRIES = 10_000, 100  # of a layout, of one object in it (safety_gymnasium.utils.random_generator, 1.0.0)
DRAWN_AT_ONCE = 512


def sample_layout(generator: Any) -> dict[str, NDArray[np.float64]]:
    """Draw a place [x, y] for each object until all keep their distances, as `RandomGenerator.build_layout` does.

    The same numbers are drawn, and the generator is left in the same state, so that the same layout and the same
    episode follow. A crowded world takes thousands of tries, which Safety-Gymnasium spends 20 microseconds each on.
    """
    areas = _areas(generator)
    if areas is None or not _uniform_is_affine():
        generator.build_layout()
        return generator.layout  # type: ignore[no-any-return]  # it is untyped
    draws = _Draws(generator.random_generator)
    margin = generator.placements_margin
    for _ in range(ATTEMPTS):
        places = _try_layout(areas, margin, draws.next)
        if places is not None:
            draws.finish()
            generator.layout = {name: np.array(place) for name, place in places.items()}
            return generator.layout  # type: ignore[no-any-return]
    draws.finish()
    raise AssertionError("Failed to sample layout of objects")


Area = tuple[str, float, float, float, float, float]
"""Name of the object, least x and y, widths in x and y, distance that it keeps."""


def _areas(generator: Any) -> list[Area] | None:
    """The one rectangle from which each object is drawn; None if there are several, which it would have to choose."""
    areas = []
    for name, (placements, keepout) in generator.placements.items():
        if placements is None:
            placements = [generator.placements_extents]
        elif len(placements) != 1:
            return None
        x_low, y_low, x_high, y_high = generator.constrain_placement(placements[0], keepout)
        if x_low > x_high or y_low > y_high:
            return None  # the stock one decides whether that is an error
        areas.append((name, x_low, y_low, x_high - x_low, y_high - y_low, keepout))
    return areas


def _try_layout(areas: list[Area], margin: float, draw: Callable[[], float]) -> dict[str, tuple[float, float]] | None:
    places: dict[str, tuple[float, float]] = {}
    placed: list[tuple[float, float, float]] = []  # x, y, distance that the other keeps, with the margin
    for name, x_low, y_low, width, height, keepout in areas:
        for _ in range(TRIES):
            x, y = x_low + width * draw(), y_low + height * draw()
            for other_x, other_y, distance in placed:
                dx, dy = x - other_x, y - other_y
                if math.sqrt(dx * dx + dy * dy) < distance + keepout:
                    break
            else:
                break
        else:
            return None
        places[name] = (x, y)
        placed.append((x, y, keepout + margin))
    return places


class _Draws:
    """Numbers in [0, 1) from a RandomState, drawn ahead; `finish` leaves it as if they had been drawn singly."""

    def __init__(self, random: np.random.RandomState) -> None:
        self._random = random
        self._refill()

    def next(self) -> float:
        """The next one."""
        if self._used == DRAWN_AT_ONCE:
            self._refill()
        self._used += 1
        return self._numbers[self._used - 1]

    def finish(self) -> None:
        """Give back what was drawn and not used."""
        self._random.set_state(self._before)
        self._random.random_sample(self._used)

    def _refill(self) -> None:
        self._before = self._random.get_state()
        self._numbers: list[float] = self._random.random_sample(DRAWN_AT_ONCE).tolist()
        self._used = 0


@functools.cache
def _uniform_is_affine() -> bool:
    """Whether uniform(low, high) is low + (high - low) * random_sample() here: a compiler may fuse the roundings."""
    one, other = np.random.RandomState(0), np.random.RandomState(0)
    bounds = np.random.RandomState(1).normal(0.0, 3.0, (256, 2)).tolist()
    return all(one.uniform(low, high) == low + (high - low) * other.random_sample() for low, high in bounds)
