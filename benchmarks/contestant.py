"""One contestant of a benchmark: a process pinned to its cores, which plays a round whenever it is asked.

Both ends of the conversation. The process says once what it is (versions), then answers each line on stdin with one
line of JSON. Whatever its libraries print goes to stderr. A peer's end runs in the peer's environment, so this module
needs the standard library only.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.errors import BenchmarkError

ROOT = Path(__file__).parents[1]
LAST_LINES = 12  # of what a contestant that failed wrote to stderr, shown


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep this thread, and every process that it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def take_cores(count: int) -> tuple[int, ...]:
    """The last cores that this process may use: the first also serve interrupts.

    Raises:
        BenchmarkError: there are fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise BenchmarkError(f"{count} cores are needed, and this process may use {len(cores)}.")
    return tuple(cores[-count:])


@dataclass(frozen=True)
class Timed:
    """A process from its start to its end."""

    seconds: float  # of the clock
    core_seconds: float  # that it and its children used
    others: float  # share of the cores' time that went to other processes meanwhile: 0 on a quiet machine


def timed(name: str, command: Sequence[str], *, cores: Sequence[int]) -> Timed:
    """Run a process on these cores to its end.

    Args:
        name: for people.
        command: what to run, and its arguments.
        cores: that it, and what it starts, may use.

    Raises:
        BenchmarkError: it failed; with the end of what it wrote.
    """
    begin, busy, own = time.perf_counter(), _busy_seconds(cores), _children_seconds()
    with pinned(cores):
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    seconds = time.perf_counter() - begin
    used = _children_seconds() - own
    others = _busy_seconds(cores) - busy - used
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-LAST_LINES:])
        raise BenchmarkError(f"{name} ended with exit code {done.returncode}. The end of what it wrote:\n{said}")
    return Timed(seconds, used, max(0.0, others) / (seconds * len(cores)))


def _busy_seconds(cores: Sequence[int]) -> float:
    """Seconds that these cores were not idle, all processes together, and were taken by other virtual machines."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    ticks = {name: [int(value) for value in values] for name, *values in lines if name.startswith("cpu")}
    idle, waiting = 3, 4  # columns
    busy = sum(sum(each[:8]) - each[idle] - each[waiting] for each in (ticks[f"cpu{core}"] for core in cores))
    return busy / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    """Processor seconds of the processes that this one started and that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Contestant:
    """The benchmark's end; use as a context manager, so that the process ends."""

    def __init__(
        self,
        name: str,
        python: str | Path,
        module: str,
        arguments: Sequence[str] = (),
        *,
        cores: Sequence[int],
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float = 900.0,
    ) -> None:
        """Start `python -m module arguments` on the given cores, and wait until it is ready.

        Args:
            name: for people.
            python: interpreter of our environment or a peer's.
            module: calls `answer_rounds`.
            arguments: of its command line.
            cores: that it may use.
            environment: variables beyond those of this process.
            timeout_seconds: for getting ready, and for each round.
        """
        self.name, self.timeout_seconds = name, timeout_seconds
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        variables = {**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)}
        with pinned(cores):
            self._process = subprocess.Popen(
                [str(python), "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=variables,
            )
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.close()
            raise

    def play(self) -> dict[str, Any]:
        """Play one round.

        Raises:
            BenchmarkError: the process ended, said something else, or took too long; with the end of its stderr.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure("ended between two rounds") from error
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout
        if not select.select([stdout], [], [], self.timeout_seconds)[0]:
            raise self._failure(f"did not answer within {self.timeout_seconds:g} seconds")
        line = stdout.readline()
        if not line:
            raise self._failure(f"ended with exit code {self._process.wait()}")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._failure(f"answered {line!r}, which is not JSON") from error
        assert isinstance(answer, dict)
        return answer

    def _failure(self, what: str) -> BenchmarkError:
        self._errors.seek(0)
        said = "".join(self._errors.readlines()[-LAST_LINES:]).strip()
        return BenchmarkError(f"{self.name} {what}. The end of its stderr:\n{said or '(nothing)'}")


def answer_rounds(packages: Sequence[str], play: Callable[[], Mapping[str, Any]]) -> None:
    """The contestant's end: say what this is, then play a round for each line on stdin.

    Args:
        packages: distributions whose versions matter.
        play: one round; gives what was measured. Whatever must not be measured (imports, a first warm round) comes
            before this is called.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"versions": versions(packages)}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(play()), file=answers, flush=True)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of the given distributions in this environment."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
