import pytest

from benchmarks import training
from benchmarks.contestant import Timed
from benchmarks.errors import BenchmarkError
from benchmarks.training import Run, compare


def stand_in(monkeypatch: pytest.MonkeyPatch, ours: Run, theirs: Run) -> None:
    monkeypatch.setattr(training, "our_run", lambda *_: ours)
    monkeypatch.setattr(training, "fsrl_run", lambda *_: theirs)


def test_a_whole_run_is_compared_with_and_without_what_it_takes_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    # 120/40 = 3 in all; (120 - 20)/(40 - 15) = 4 without the start; 180/30 = 6 in seconds of the cores.
    stand_in(
        monkeypatch,
        Run(Timed(40.0, 30.0, 0.0), 15.0, 10_000, 2_000, {}),
        Run(Timed(120.0, 180.0, 0.0), 20.0, 10_000, 2_000, {}),
    )
    found = compare("Task-v0", 10_000, 2, 1, (0,))
    assert found["ratio"]["per_round"] == [3.0, 3.0]
    assert found["ratio_without_startup"]["median"] == 4.0
    assert found["ratio_of_core_seconds"]["median"] == 6.0


@pytest.mark.parametrize(("steps", "updates"), [(9_000, 2_000), (10_000, 1_900)])
def test_runs_that_did_not_do_the_same_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, steps: int, updates: int
) -> None:
    stand_in(
        monkeypatch,
        Run(Timed(40.0, 30.0, 0.0), 1.0, steps, updates, {}),
        Run(Timed(120.0, 180.0, 0.0), 1.0, 10_000, 2_000, {}),
    )
    with pytest.raises(BenchmarkError, match=f"cvpo made {updates} updates in {steps} steps and FSRL 2000 in 10000"):
        compare("Task-v0", 10_000, 1, 1, (0,))
