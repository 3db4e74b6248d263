import os
import sys
from importlib.metadata import version

import pytest

from benchmarks import contestant
from benchmarks.contestant import Contestant, pinned, take_cores, timed
from benchmarks.errors import BenchmarkError

ONE_CORE = take_cores(1)


def player(what: str, timeout_seconds: float = 60.0) -> Contestant:
    return Contestant(
        what, sys.executable, "tests.benchmarks.players", [what], cores=ONE_CORE, timeout_seconds=timeout_seconds
    )


def test_a_contestant_says_what_it_is_and_plays_rounds_on_its_cores_alone() -> None:
    with player("plays") as contestant:
        answers = [contestant.play(), contestant.play()]
    assert contestant.versions["numpy"] == version("numpy")
    assert answers == [{"rounds": 1, "cores": list(ONE_CORE)}, {"rounds": 2, "cores": list(ONE_CORE)}]


def test_a_contestant_that_dies_is_named_with_the_end_of_its_stderr() -> None:
    with player("dies") as contestant, pytest.raises(BenchmarkError, match=r"(?s)dies ended with exit code 1.*of luck"):
        contestant.play()


def test_a_contestant_that_does_not_answer_is_named() -> None:
    with player("sleeps") as contestant:
        contestant.timeout_seconds = 0.1
        with pytest.raises(BenchmarkError, match=r"sleeps did not answer within 0\.1 seconds"):
            contestant.play()


def test_pinning_ends_with_its_block() -> None:
    before = os.sched_getaffinity(0)
    with pinned(ONE_CORE):
        assert os.sched_getaffinity(0) == set(ONE_CORE)
    assert os.sched_getaffinity(0) == before


def test_more_cores_than_there_are_cannot_be_taken() -> None:
    with pytest.raises(BenchmarkError, match=r"4096 cores are needed, and this process may use \d+"):
        take_cores(4096)


def test_a_process_is_timed_from_start_to_end() -> None:
    found = timed("naps", [sys.executable, "-c", "import time; time.sleep(0.2)"], cores=ONE_CORE)
    assert found.seconds > 0.2


def test_what_others_use_of_the_cores_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # The core was busy for 0.5 s more, of which the process had 0.1 s: others had 0.4 s of it.
    busy, own = iter([10.0, 10.5]), iter([3.0, 3.1])
    monkeypatch.setattr(contestant, "_busy_seconds", lambda cores: next(busy))
    monkeypatch.setattr(contestant, "_children_seconds", lambda: next(own))
    found = timed("naps", [sys.executable, "-c", "import time; time.sleep(0.2)"], cores=ONE_CORE)
    assert found.others * found.seconds == pytest.approx(0.4)
    assert found.core_seconds == pytest.approx(0.1)


def test_what_a_process_uses_itself_is_not_of_others() -> None:
    before = contestant._busy_seconds(ONE_CORE), contestant._children_seconds()
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    timed("spins", [sys.executable, "-c", spin], cores=ONE_CORE)
    busy = contestant._busy_seconds(ONE_CORE) - before[0]
    own = contestant._children_seconds() - before[1]
    assert own >= 0.3
    assert busy >= own - 0.05  # ticks of 10 ms


def test_a_timed_process_that_fails_is_named_with_the_end_of_what_it_wrote() -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)fails ended with exit code 1.*out of luck"):
        timed("fails", [sys.executable, "-c", "raise SystemExit('out of luck')"], cores=ONE_CORE)
