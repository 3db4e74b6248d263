"""Where an EnvGroup runs: in a process of its own, behind a pipe, or in this one, behind the same three methods."""

from __future__ import annotations

import contextlib
import functools
import signal
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from cvpo.envs.base import EnvSpec, describe
from cvpo.envs.group import Buffers, EnvGroup, EnvSettings
from cvpo.errors import CvpoError, WorkerError

STOP_SECONDS = 5.0  # how long a process may take to end when it is asked to


class Worker:
    """A group in a process of its own. Arrays are in shared memory; the pipe says when, and what went wrong.

    A command is the name of one of EnvGroup's methods. The first answer, before any command, says that the
    environments are made.
    """

    def __init__(
        self, context: SpawnContext, settings: EnvSettings, indices: range, memory: Any, spec: EnvSpec, num_envs: int
    ) -> None:
        self._where = f"environments {indices[0]} to {indices[-1]} of {settings.env_id}"
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_main, args=(theirs, settings, indices, memory, spec, num_envs), daemon=True
        )
        # A Ctrl-C in the terminal reaches every process of the group. The parent alone answers it: the
        # child inherits the blocked signal, so there is no moment at which it could be interrupted. The first process
        # would start the tracker, which unblocks it (Python 3.11 to 3.14), so it is started before.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # so that the pipe ends when the process does

    def send(self, command: str, *arguments: object) -> None:
        """Start a command; `receive` must follow before the next one."""
        try:
            self._connection.send((command, arguments))
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Any:
        """Wait for the answer.

        Raises:
            CvpoError: what the environments raised.
            WorkerError: the process died, or something else failed in it.
        """
        try:
            error, answer = self._connection.recv()
        except (EOFError, OSError) as end:
            raise self._death() from end
        if error is not None:
            kind, text, trace = error
            failure = kind(f"The process of {self._where} failed: {text}" if kind is WorkerError else text)
            failure.add_note(trace)  # where in the environment it was; the command line does not print it
            raise failure
        return answer

    def stop(self) -> None:
        """End the process, by force if it does not go by itself. May be called twice."""
        self._connection.close()  # which it reads as the end
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _death(self) -> WorkerError:
        self._process.join(STOP_SECONDS)
        code = self._process.exitcode
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
        return WorkerError(f"The process of {self._where} ended {how}.")


class Inline:
    """A group in this process: a command runs when its answer is received."""

    def __init__(self, settings: EnvSettings, indices: range, buffers: Buffers) -> None:
        self._group: EnvGroup | None = None
        self._pending: Callable[[], Any] = lambda: self._make(settings, indices, buffers)

    def send(self, command: str, *arguments: object) -> None:
        """As Worker.send."""
        self._pending = functools.partial(getattr(self._group, command), *arguments)

    def receive(self) -> Any:
        """As Worker.receive; what the environments raise comes through as it is."""
        return self._pending()

    def stop(self) -> None:
        """Close the environments."""
        if self._group is not None:
            self._group.close()

    def _make(self, settings: EnvSettings, indices: range, buffers: Buffers) -> None:
        self._group = EnvGroup(settings, indices, buffers)


def _main(
    connection: Connection, settings: EnvSettings, indices: range, memory: Any, spec: EnvSpec, num_envs: int
) -> None:
    """Serve commands until the parent closes its end or dies."""
    with contextlib.suppress(EOFError, OSError):  # of the connection: those of the environments are answers
        try:
            group = EnvGroup(settings, indices, Buffers.on(memory, spec, num_envs))
        except Exception as error:
            connection.send((_failure(error), None))
            return
        connection.send((None, None))
        while True:
            command, arguments = connection.recv()
            try:
                answer = getattr(group, command)(*arguments)
            except Exception as error:
                connection.send((_failure(error), None))
            else:
                connection.send((None, answer))


def _failure(error: Exception) -> tuple[type[CvpoError], str, str]:
    """The error without its objects, which may not survive the pipe."""
    trace = traceback.format_exc()
    return (type(error), str(error), trace) if isinstance(error, CvpoError) else (WorkerError, describe(error), trace)
