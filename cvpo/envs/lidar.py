"""Safety-Gymnasium's pseudo-lidar, computed for all objects at once, to the bit what it computes for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TURN = np.pi * 2


class Lidar:
    """A ring of bins around the agent for each kind of object; a bin reads how near the nearest object in it is.

    `BaseTask._obs_lidar_pseudo` of Safety-Gymnasium 1.0.0 computes the bearings object by object. Here numpy's
    functions get all of them: the same functions, since math.atan2 and abs round differently where numpy uses wide
    registers, and row by row where BLAS would sum a whole matrix in another order.
    """

    def __init__(self, rows: list[range], conf: Any) -> None:
        """Args:
        rows: of the objects of each kind, in the positions that `read` is given.
        conf: a LidarConf of type "pseudo" with a maximal distance.
        """
        self._counts = [len(kind) for kind in rows]
        self._rows = np.array([row for kind in rows for row in kind], np.intp)
        self._bins: int = conf.num_bins
        self._bin_size: float = TURN / conf.num_bins
        self._reach: float = conf.max_dist
        self._alias: bool = conf.alias
        self._bearings = np.empty(len(self._rows), np.complex128)
        self.size = self._bins * len(rows)

    def read(self, positions: NDArray[np.float64], turn: NDArray[np.float64]) -> list[float]:
        """Args:
            positions: of everything [N, 3]; the agent is row 0.
            turn: rotation matrix of the agent [3, 3].

        Returns:
            The rings, one after the other.
        """
        flat = positions.take(self._rows, axis=0)
        flat[:, 2] = 0.0
        flat -= positions[0]
        seen = np.matmul(flat[:, None, :], turn)[:, 0]
        bearings = self._bearings
        bearings.real, bearings.imag = seen[:, 0], seen[:, 1]
        distances = np.abs(bearings).tolist()
        angles = np.arctan2(bearings.imag, bearings.real).tolist()
        rings: list[float] = []
        start = 0
        for count in self._counts:
            rings += self._ring(distances[start : start + count], angles[start : start + count])
            start += count
        return rings

    def _ring(self, distances: list[float], angles: list[float]) -> list[float]:
        bins, size, reach, alias = self._bins, self._bin_size, self._reach, self._alias
        ring = [0.0] * bins
        for distance, angle in zip(distances, angles, strict=True):
            angle %= TURN
            index = int(angle / size)
            near = max(0, reach - distance) / reach
            if near > ring[index]:
                ring[index] = near
            if alias:
                share = (angle - size * index) / size
                assert 0 <= share <= 1, f"bad alias {share}, dist {distance}, angle {angle}, bin {index}"
                after, before = (index + 1) % bins, index - 1  # the bin before the first is the last one
                if share * near > ring[after]:
                    ring[after] = share * near
                if (1 - share) * near > ring[before]:
                    ring[before] = (1 - share) * near
        return ring
