"""Where an EnvGroup runs: in a process of its own, behind a pipe, or in this one, behind the same three methods."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import multiprocessing
import os
import signal
import socket
import struct
import time
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
SLOW_SECONDS = (
    600.0  # for an answer to anything but a step: making environments, resets, states; and for the first step
)
LOOK_SECONDS = 10.0  # between two looks at the clock, in a wait for an answer

STEP, DONE, MESSAGE = b"s", b"d", b"m"  # a message follows


class Worker:
    """A group in a process of its own. Arrays are in shared memory; the pipe says when, and what went wrong.

    A command is the name of one of EnvGroup's methods. The first answer, before any command, says that the
    environments are made. The hand-over of a step is one byte each way, with nothing to encode.
    """

    def __init__(
        self,
        context: SpawnContext,
        settings: EnvSettings,
        indices: range,
        memory: Any,
        spec: EnvSpec,
        num_envs: int,
        step_timeout_seconds: float,
    ) -> None:
        self._step_seconds, self._seconds, self._stepped = step_timeout_seconds, SLOW_SECONDS, False
        self._connection, theirs = context.Pipe()
        self._look_seconds = min(LOOK_SECONDS, step_timeout_seconds)
        _set_timeouts(self._connection, self._look_seconds)
        self._process = context.Process(
            target=_main, args=(theirs, settings, indices, memory, spec, num_envs), daemon=True
        )
        # A Ctrl-C in the terminal reaches every process of the group, as does the SIGTERM of a service manager. The
        # parent alone answers: the child inherits the blocked signals, so there is no moment at which it could be
        # interrupted. The first process would start the tracker, which unblocks them (Python 3.11 to 3.14), so it is
        # started before.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # so that the pipe ends when the process does
        first, last = indices[0], indices[-1]
        which = f"environments {first} to {last}" if last > first else f"environment {first}"
        self._who = f"The simulator process {self._process.pid} ({which} of {settings.env_id})"

    def send(self, command: str, *arguments: object) -> None:
        """Start a command; `receive` must follow before the next one."""
        fast = command == "step"
        self._seconds = self._step_seconds if fast and self._stepped else SLOW_SECONDS
        self._stepped = self._stepped or fast
        try:
            if fast:
                os.write(self._connection.fileno(), STEP)
            else:
                os.write(self._connection.fileno(), MESSAGE)
                self._connection.send((command, arguments))
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Any:
        """Wait for the answer.

        Raises:
            CvpoError: what the environments raised.
            WorkerError: the process died, hangs, or something else failed in it.
        """
        try:
            if self._read() == DONE:
                return None
            error, answer = self._connection.recv()
        except (EOFError, OSError) as end:
            raise self._death() from end
        if error is not None:
            kind, text, trace = error
            failure = kind(f"{self._who} failed: {text}" if kind is WorkerError else text)
            failure.add_note(trace)  # where in the environment it was; the command line does not print it
            raise failure
        return answer

    def hang_up(self) -> None:
        """Ask the process to end. May be called twice."""
        self._connection.close()  # which it reads as the end

    def stop(self) -> None:
        """End the process, by force if it does not go by itself. May be called twice."""
        self.hang_up()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _read(self) -> bytes:
        """The first byte of the answer. Looks often rather than once, so that time in which all were stopped is none.

        Raises:
            EOFError: the process died. WorkerError: it does not answer in time; it is killed.
        """
        for _ in range(math.ceil(self._seconds / self._look_seconds)):
            try:
                byte = os.read(self._connection.fileno(), 1)
            except BlockingIOError:
                continue
            if not byte:
                raise EOFError
            return byte
        self._process.kill()
        longer = "" if self._seconds == SLOW_SECONDS else "; where a step takes longer, raise step_timeout_seconds"
        raise WorkerError(f"{self._who} has not answered for {self._seconds:g} seconds and was ended{longer}.")

    def _death(self) -> WorkerError:
        self._process.join(STOP_SECONDS)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            return WorkerError(f"{self._who} stopped in the middle of an answer and was ended.")
        how = f"with exit code {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
        return WorkerError(f"{self._who} ended {how}.")


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

    def hang_up(self) -> None:
        """As Worker.hang_up; there is nothing to wait for."""

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
    _die_with_parent()
    buffers = Buffers.on(memory, spec, num_envs)
    waited = buffers.waited[indices.start : indices.stop]
    with contextlib.suppress(EOFError, OSError):  # of the connection: those of the environments are answers
        try:
            group = EnvGroup(settings, indices, buffers)
        except Exception as error:
            _answer(connection, _failure(error), None)
            return
        os.write(connection.fileno(), DONE)
        while True:
            began = time.perf_counter()
            command = os.read(connection.fileno(), 1)
            waited += time.perf_counter() - began
            try:
                if command == STEP:
                    group.step()
                    answer = None
                elif command == MESSAGE:
                    name, arguments = connection.recv()
                    answer = getattr(group, name)(*arguments)
                else:
                    return  # the end
            except Exception as error:
                _answer(connection, _failure(error), None)
            else:
                if answer is None:
                    os.write(connection.fileno(), DONE)
                else:
                    _answer(connection, None, answer)


def _answer(connection: Connection, error: object, answer: object) -> None:
    os.write(connection.fileno(), MESSAGE)
    connection.send((error, answer))


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent dies, also in the middle of a step that never ends."""
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and parent.pid != os.getppid():  # it died before
        os._exit(1)


def _set_timeouts(connection: Connection, seconds: float) -> None:
    """Let reads and writes of a pipe give up after a while, with BlockingIOError."""
    interval = struct.pack("@ll", int(seconds), max(1, int(seconds % 1 * 1e6)))  # 0 would be for ever
    with socket.socket(fileno=os.dup(connection.fileno())) as options:  # a duplex pipe is a pair of sockets
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            options.setsockopt(socket.SOL_SOCKET, option, interval)


def _failure(error: Exception) -> tuple[type[CvpoError], str, str]:
    """The error without its objects, which may not survive the pipe."""
    trace = traceback.format_exc()
    return (type(error), str(error), trace) if isinstance(error, CvpoError) else (WorkerError, describe(error), trace)
