"""Some environments stepped one after another in one process, each reset as soon as its episode ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvpo.envs import snapshot
from cvpo.envs.base import CostEnv, EnvSpec
from cvpo.envs.make import make_env
from cvpo.errors import CheckpointError, EnvError


class Buffers(NamedTuple):
    """What N environments are given and give back: views of one block of memory, a row per environment."""

    action: NDArray[np.float64]
    reward: NDArray[np.float64]
    cost: NDArray[np.float64]
    waited: NDArray[np.float64]  # seconds that the environment's process has waited for the learner so far
    observation: NDArray[np.float32]
    final_observation: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    @staticmethod
    def size(spec: EnvSpec, num_envs: int) -> int:
        """How many bytes `on` needs."""
        return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in _layout(spec, num_envs))

    @classmethod
    def on(cls, memory: Any, spec: EnvSpec, num_envs: int) -> Buffers:
        """Lay the arrays out on a writable block of memory."""
        arrays, offset = [], 0
        for shape, kind in _layout(spec, num_envs):
            array: NDArray[Any] = np.frombuffer(memory, kind, math.prod(shape), offset)
            offset += array.nbytes
            arrays.append(array.reshape(shape))
        return cls(*arrays)


def _layout(spec: EnvSpec, num_envs: int) -> list[tuple[tuple[int, ...], type]]:
    """Shape and type in the order of the fields; the widest numbers come first, which keeps all of them aligned."""
    return [
        ((num_envs, spec.action_size), np.float64),
        ((num_envs,), np.float64),
        ((num_envs, len(spec.cost_names)), np.float64),
        ((num_envs,), np.float64),
        ((num_envs, spec.observation_size), np.float32),
        ((num_envs, spec.observation_size), np.float32),
        ((num_envs,), np.bool_),
        ((num_envs,), np.bool_),
    ]


@dataclass(frozen=True)
class EnvState:
    """One environment in the middle of its episode."""

    seeds: dict[str, Any]
    """State of the generator of its episodes' seeds."""
    env: bytes | None
    """The environment itself; None if it cannot be kept."""
    observation: NDArray[np.float32]
    """What it showed last [O]."""


@dataclass(frozen=True)
class EnvSettings:
    """The arguments of `make_env`, and the seed from which each environment's episodes get theirs."""

    env_id: str
    cost_names: tuple[str, ...]
    max_episode_steps: int | None
    seed: int


_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, are spread evenly, however many there are


class EnvGroup:
    """The environments `indices` of N, made and stepped here; arrays go through `buffers`.

    Environment i draws the seeds of its episodes from a generator seeded with (seed, i). So what it
    does depends on its index alone, not on who else is in the group.
    """

    def __init__(self, settings: EnvSettings, indices: range, buffers: Buffers) -> None:
        self._indices = indices
        self._buffers = buffers
        self._settings = settings
        self._seeds = self._first_seeds()
        self._envs = {index: self._make() for index in indices}

    def reset(self, staggered: bool = False) -> None:
        """Start a new episode everywhere; see VectorEnv.reset."""
        for index in self._indices:
            share = index * _GOLDEN_RATIO % 1 if staggered else 0.0
            self._start_episode(index, share)

    def rewind(self) -> None:
        """Start the first episode of all everywhere; see VectorEnv.rewind."""
        self._seeds = self._first_seeds()
        self.reset()

    def step(self) -> None:
        """Take the actions in the buffers; where an episode ends, start the next one."""
        for index in self._indices:
            step = self._envs[index].step(self._buffers.action[index])
            self._buffers.reward[index] = step.reward
            self._buffers.cost[index] = step.cost
            self._buffers.observation[index] = self._buffers.final_observation[index] = step.observation
            self._buffers.terminated[index] = step.terminated
            self._buffers.truncated[index] = step.truncated
            if step.terminated or step.truncated:
                self._start_episode(index)

    def state(self) -> list[EnvState]:
        """Everything that decides how the group goes on."""
        return [
            EnvState(
                seeds=dict(self._seeds[index].bit_generator.state),
                env=snapshot.freeze(self._envs[index]),
                observation=self._buffers.observation[index].copy(),
            )
            for index in self._indices
        ]

    def flaw(self) -> str | None:
        """Why environments are lost in `state` and `restore`, tried on a spare one; None if they go on."""
        try:
            spare = self._make()
        except EnvError as error:  # as of a simulator that a process may have one of
            return str(error)
        return snapshot.flaw(spare, self._settings.seed)

    def restore(self, states: list[EnvState]) -> None:
        """Go on from `state`; an environment that has none starts its next episode.

        Raises:
            CheckpointError: an environment cannot be unpickled, for instance by another version of its simulator.
        """
        for index, state in zip(self._indices, states, strict=True):
            self._seeds[index].bit_generator.state = state.seeds
            if state.env is None:
                self._start_episode(index)
                continue
            self._envs[index].close()  # before there is another, as in snapshot.flaw
            try:
                env = snapshot.thaw(state.env)
            except Exception as error:
                raise CheckpointError(
                    f"Environment {index} of {self._envs[index].spec.env_id} cannot be restored: {error}. "
                    f"Resume with the package versions that the run was made with."
                ) from error
            self._envs[index] = env
            self._buffers.observation[index] = state.observation

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs.values():
            env.close()

    def _make(self) -> CostEnv:
        of = self._settings
        return make_env(of.env_id, cost_names=of.cost_names, max_episode_steps=of.max_episode_steps)

    def _first_seeds(self) -> dict[int, np.random.Generator]:
        return {index: np.random.default_rng([self._settings.seed, index]) for index in self._indices}

    def _start_episode(self, index: int, cut_share: float = 0.0) -> None:
        env, seed = self._envs[index], int(self._seeds[index].integers(2**31))
        cut_by = int(cut_share * env.spec.max_episode_steps)
        self._buffers.observation[index] = env.reset(seed, cut_by=cut_by)
