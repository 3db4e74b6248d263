import os
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.learning.cores import Core, StoppedError, work

FIRST = sorted(os.sched_getaffinity(0))[0]
WAITS = "import signal, sys; signal.signal(15, lambda *_: sys.exit('saved')); print('begun'); signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_runs_on_its_core_and_its_lines_are_told() -> None:
    lines: list[str] = []
    Core(FIRST).run(python("import os, sys; print(os.sched_getaffinity(0)); print('x', file=sys.stderr)"), lines.append)
    assert lines == [str({FIRST}), "x"]


def test_a_process_that_fails_is_said_with_the_end_of_what_it_wrote() -> None:
    with pytest.raises(BenchmarkError, match=r"exit code 3. The end of what it wrote:\nout of luck"):
        Core(FIRST).run(python("import sys; print('out of luck'); sys.exit(3)"), lambda line: None)


def test_what_fails_does_not_keep_others_from_being_done() -> None:
    done = []

    def do(job: int, core: Core) -> None:
        core.run(python(f"import sys; sys.exit({job == 1})"), lambda line: None)
        done.append(job)

    said: list[str] = []
    undone = work([0, 1, 2], [FIRST, FIRST], do, said.append)
    assert sorted(done) == [0, 2]
    assert [type(error) for error in undone] == [BenchmarkError]
    assert [line.split(":")[0] for line in said] == ["failed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_processes_save_and_begins_no_other(number: signal.Signals) -> None:
    said: list[str] = []
    begun: list[int] = []
    signalled = threading.Barrier(2, action=lambda: os.kill(os.getpid(), number))

    def tell(job: int) -> Callable[[str], None]:
        def once(line: str) -> None:
            said.append(line)
            if line == "begun":
                signalled.wait(timeout=30)

        return once

    def do(job: int, core: Core) -> None:
        begun.append(job)
        with pytest.raises(StoppedError):
            core.run(python(WAITS), tell(job))
        raise StoppedError

    undone = work([0, 1, 2, 3], [FIRST, FIRST], do, said.append)
    assert [type(error) for error in undone] == [StoppedError] * 4
    assert said.count("saved") == 2
    assert sum("stopping" in line for line in said) == 1
