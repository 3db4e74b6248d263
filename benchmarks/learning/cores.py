"""Jobs on cores: each core takes the next job when it is free, and all can be stopped together."""

import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

from benchmarks.contestant import LAST_LINES, ROOT, pinned
from benchmarks.errors import BenchmarkError
from cvpo.errors import CvpoError

J = TypeVar("J")


class StoppedError(Exception):
    """The benchmark is being stopped; what was under way is saved."""


class Core:
    """One core, and the process that runs on it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], tell: Callable[[str], None]) -> None:
        """Run a process to its end, and tell each line that it writes.

        Raises:
            BenchmarkError: it failed; with the end of what it wrote. StoppedError: the benchmark is.
        """
        with self._lock:
            if self._stopped:
                raise StoppedError
            with pinned([self.number]):
                process = self._process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C is for the benchmark, which passes it on once
                )
        last: deque[str] = deque(maxlen=LAST_LINES)
        assert process.stdout
        for line in process.stdout:
            last.append(line.rstrip())
            tell(line.rstrip())
        code = process.wait()
        if self._stopped:
            raise StoppedError
        if code:
            raise BenchmarkError(
                f"{' '.join(command)} ended with exit code {code}. The end of what it wrote:\n" + "\n".join(last)
            )

    def stop(self) -> None:
        """Ask the process to save and end, and run no other."""
        with self._lock:
            self._stopped = True
            if self._process and self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGTERM)


def work(
    jobs: Sequence[J], cores: Sequence[int], do: Callable[[J, Core], None], tell: Callable[[str], None]
) -> list[Exception]:
    """Do the jobs in their order, one on each core at a time; Ctrl-C or SIGTERM stops all of them.

    Args:
        jobs: what there is to do.
        cores: numbers of cores; one that is named twice takes two jobs at a time.
        do: one job, on a core.
        tell: is told what failed, and that it stops.

    Returns:
        What kept jobs from being done: an error of each that failed, and StoppedError of each that was stopped.
    """
    crew = [Core(number) for number in cores]
    free: queue.SimpleQueue[Core] = queue.SimpleQueue()
    for core in crew:
        free.put(core)

    def one(job: J) -> None:
        core = free.get()
        try:
            do(job, core)
        finally:
            free.put(core)

    undone: list[Exception] = []
    with ThreadPoolExecutor(len(crew)) as pool, _stopping(crew, tell):
        for done in as_completed([pool.submit(one, job) for job in jobs]):
            error = done.exception()
            if isinstance(error, Exception):
                undone.append(error)
            if isinstance(error, BenchmarkError | CvpoError):
                tell(f"failed: {error}")
            elif error and not isinstance(error, StoppedError):
                raise error
    return undone


@contextmanager
def _stopping(crew: Sequence[Core], tell: Callable[[str], None]) -> Iterator[None]:
    """Stop all cores at the first signal; the second one does what it would without us."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(_signal: int, _frame: object) -> None:
        restore()
        tell("stopping: runs under way are saved, and go on when the same command is run again")
        for core in crew:
            core.stop()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
