"""N environments stepped together, in this process or spread over worker processes, with the same results."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cvpo.defaults import STEP_TIMEOUT_SECONDS
from cvpo.envs.base import EnvSpec, describe
from cvpo.envs.group import Buffers, EnvSettings, EnvState
from cvpo.envs.make import make_env
from cvpo.envs.worker import Inline, Worker
from cvpo.errors import CheckpointError, ConfigError, CvpoError


class VectorStep(NamedTuple):
    """What one action in each environment led to. Where an episode ended, the next one has begun."""

    observation: NDArray[np.float32]
    """What to act on next [N, O]: after an end, the first observation of the new episode."""
    final_observation: NDArray[np.float32]
    """The next observation of the transition itself [N, O]: after an end, the last of the old episode."""
    reward: NDArray[np.float64]
    """[N]"""
    cost: NDArray[np.float64]
    """[N, C], environment cost units."""
    terminated: NDArray[np.bool_]
    """[N]"""
    truncated: NDArray[np.bool_]
    """[N]"""


class VectorEnv:
    """N copies of one environment; use as a context manager, so that its processes end.

    Environment i draws the seed of each of its episodes from a generator seeded with (seed, i), so
    trajectories do not depend on the number of workers, and `restore(state())` goes on to the bit.

    When a method raises EnvError (an environment broke its contract) or WorkerError (a process died or hangs),
    everything is closed and nothing else may be called.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int,
        workers: int,
        seed: int,
        cost_names: tuple[str, ...] = (),
        max_episode_steps: int | None = None,
        step_timeout_seconds: float = STEP_TIMEOUT_SECONDS,
    ) -> None:
        """Begin to make the environments; the first command waits until they are made.

        Args:
            env_id, cost_names, max_episode_steps: as for `make_env`. Worker processes are fresh interpreters: an id
                that this process registered itself is unknown to them; give `module:id` or `module:attribute`.
            num_envs: N.
            workers: how many processes to spread them over; 0 steps them in this process.
            seed: of everything random in them.
            step_timeout_seconds: how long a worker may take for a step of its environments before it counts as hung
                and is ended; the first step, and anything else, may take ten minutes.
        """
        if num_envs < 1:
            raise ConfigError(f"The number of environments is {num_envs}; at least one is needed.")
        if workers < 0:
            raise ConfigError(f"The number of simulator processes is {workers}; give 0 for none, or more.")
        with contextlib.closing(
            make_env(env_id, cost_names=cost_names, max_episode_steps=max_episode_steps)
        ) as example:
            self.spec: EnvSpec = example.spec
        self.num_envs = num_envs
        self.restarted = np.zeros(num_envs, np.bool_)
        self._workers: list[Worker | Inline] = []
        self._made = self._waiting = False
        self.learner_waited = 0.0
        """Seconds spent in `step_wait` so far."""
        settings = EnvSettings(env_id, cost_names, max_episode_steps, seed)
        size = Buffers.size(self.spec, num_envs)
        try:
            if workers == 0:
                self._buffers = Buffers.on(bytearray(size), self.spec, num_envs)
                self._shares = [range(num_envs)]
                self._workers = [Inline(settings, self._shares[0], self._buffers)]
            else:
                # Spawned, not forked: a forked child would inherit the locks of torch's threads, held for ever.
                context = multiprocessing.get_context("spawn")
                memory = context.RawArray(ctypes.c_byte, size)
                self._buffers = Buffers.on(memory, self.spec, num_envs)
                self._shares = _shares(num_envs, min(workers, num_envs))
                for indices in self._shares:
                    self._workers.append(
                        Worker(context, settings, indices, memory, self.spec, num_envs, step_timeout_seconds)
                    )
        except BaseException:
            self.close()
            raise

    def reset(self, *, staggered: bool = False) -> NDArray[np.float32]:
        """Start a new episode everywhere and return the first observations [N, O].

        Args:
            staggered: cut the first episodes short, each by another share, so that later ones, where they end by time,
                do not begin and end at once: what the newest steps show is then all of an episode.
        """
        self._send("reset", staggered)
        self._receive()
        return self._buffers.observation.copy()

    def rewind(self) -> NDArray[np.float32]:
        """Start the first episode of all everywhere, as `reset` did at first, and return what to act on next [N, O].

        The same episodes follow as did then, in the order of then.
        """
        self._send("rewind")
        self._receive()
        return self._buffers.observation.copy()

    def step_async(self, action: NDArray[np.floating[Any]]) -> None:
        """Hand out the actions [N, A], in environment units; workers begin at once."""
        if action.shape != self._buffers.action.shape:
            raise ValueError(f"action has shape {action.shape} instead of {self._buffers.action.shape}")
        self._buffers.action[:] = action
        self._send("step")
        self._waiting = True

    def step_wait(self) -> VectorStep:
        """Wait for what the actions of `step_async` led to."""
        assert self._waiting, "step_async comes first"
        self._waiting = False
        began = time.perf_counter()
        self._receive()
        self.learner_waited += time.perf_counter() - began
        buffers = self._buffers
        return VectorStep(
            observation=buffers.observation.copy(),
            final_observation=buffers.final_observation.copy(),
            reward=buffers.reward.copy(),
            cost=buffers.cost.copy(),
            terminated=buffers.terminated.copy(),
            truncated=buffers.truncated.copy(),
        )

    @property
    def simulators_waited(self) -> float:
        """Seconds that the worker processes have waited for a command so far, mean over environments."""
        return float(self._buffers.waited.mean())

    def state(self) -> bytes:
        """Everything that decides how the environments go on; between steps, not between the halves of one."""
        self._send("state")
        envs = [env for share in self._receive() for env in share]
        return pickle.dumps(_State(self._identity(), envs), pickle.HIGHEST_PROTOCOL)

    def restore(self, state: bytes) -> NDArray[np.float32]:
        """Go on from `state()`, also with another number of workers, and return what to act on next [N, O].

        An environment that pickling loses (`check_env` tells; tried on a spare one) starts a new episode instead;
        `restarted` says which did.
        The state is unpickled, which runs code: only restore what comes from a run that you trust.

        Raises:
            CheckpointError: the state is damaged, of other environments, or of another version of their simulator.
        """
        try:
            saved = pickle.loads(state)
            assert isinstance(saved, _State)
        except Exception as error:
            raise CheckpointError(f"The saved state of the environments cannot be read: {describe(error)}.") from error
        if saved.identity != self._identity():
            raise CheckpointError(f"The saved state is of {saved.identity}, but this is {self._identity()}.")
        self._wait_until_made()
        with self._closed_on_error():
            envs = saved.envs
            if any(env.env is not None for env in envs):
                self._workers[0].send("flaw")
                if self._workers[0].receive():
                    envs = [replace(env, env=None) for env in envs]
            for worker, share in zip(self._workers, self._shares, strict=True):
                worker.send("restore", envs[share.start : share.stop])
        self._receive()
        self.restarted = np.array([env.env is None for env in envs])
        return self._buffers.observation.copy()

    def close(self) -> None:
        """End the processes and close the environments. May be called twice."""
        for worker in self._workers:
            worker.hang_up()  # all of them end at once
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, command: str, *arguments: object) -> None:
        assert self._workers, "closed"
        assert not self._waiting, "step_wait comes first"
        self._wait_until_made()
        with self._closed_on_error():
            for worker in self._workers:
                worker.send(command, *arguments)

    def _wait_until_made(self) -> None:
        """Take the first answer, which says that the environments are made: the caller had other work till now."""
        if not self._made:
            self._receive()
            self._made = True

    def _receive(self) -> list[Any]:
        with self._closed_on_error():
            return [worker.receive() for worker in self._workers]

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """A group that failed cannot go on, nor can the others without it."""
        try:
            yield
        except CvpoError:
            self.close()
            raise

    def _identity(self) -> str:
        spec = self.spec
        costs = ", ".join(spec.cost_names)
        return f"{self.num_envs} x {spec.env_id} ({costs}; {spec.max_episode_steps} steps)"


@dataclass(frozen=True)
class _State:
    identity: str
    envs: list[EnvState]


def _shares(num_envs: int, workers: int) -> list[range]:
    """Consecutive environments for each worker, as even as can be."""
    bounds = [num_envs * worker // workers for worker in range(workers + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]
