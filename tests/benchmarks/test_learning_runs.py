"""Of a job, on a small task: the same result whether it was stopped or not, and what is done again when."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.learning import evaluate, jobs, results, runs
from benchmarks.learning.cores import Core, StoppedError
from benchmarks.learning.jobs import TASKS, Job, Task
from cvpo.training import trainer
from tests.budget import Reports
from tests.command import DRIFT, SMALL, STEPS, succeed

JOB = Job("cvpo", DRIFT, 5.0, STEPS, 10)


class Here(Core):
    """Runs what a benchmark runs, in this process; can be stopped in the midst of a training."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(0)
        self.stop_at = stop_at
        self.commands: list[str] = []

    def run(self, command: Sequence[str], tell: Callable[[str], None]) -> None:
        _, _, module, *arguments = command
        self.commands.append(" ".join([module, *arguments[:2]]))
        if module == "cvpo" and self.stop_at is not None:
            reports = Reports()
            trainer.train(JOB.config(), Path(arguments[-1]), reports, reports.stop_at(self.stop_at))
            raise StoppedError
        if module == "cvpo":
            succeed(*arguments)
        else:
            with mock.patch("sys.argv", [module, *arguments]):
                evaluate.main()


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, DRIFT, Task(DRIFT, "1", 5.0, STEPS, 1.0, "", ""))
    monkeypatch.setattr(
        jobs, "ONE_CORE", {**jobs.ONE_CORE, **{name: json.loads(value) for name, value in SMALL.items()}}
    )
    monkeypatch.setattr(runs, "EPISODES", 20)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")


def finish(core: Core) -> tuple[results.Result, list[str]]:
    said: list[str] = []
    return runs.finish(JOB, core, 2, said.append), said


def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path) -> None:
    core = Here()
    whole, _ = finish(core)
    assert [command.split()[:2] for command in core.commands] == [
        ["cvpo", "train"],
        ["benchmarks.learning.evaluate", str(runs.RUNS / JOB.name)],
    ]
    assert results.read(results.path(JOB)) == whole
    runs.discard(JOB)
    assert not runs.stands(JOB, pytest.fail)

    with pytest.raises(StoppedError):
        finish(Here(stop_at=400))
    core = Here()
    resumed, _ = finish(core)
    assert core.commands[0] == "cvpo train --resume"
    for name in ("curve", "deterministic", "sampled", "config"):
        assert getattr(resumed, name) == getattr(whole, name)


def test_a_result_has_the_curve_and_the_episodes_of_the_last_policy() -> None:
    result, _ = finish(Here())
    assert result.curve.steps == (205, 400, 600)  # the first one waits for the first updates
    assert len(result.deterministic.returns) == len(result.sampled.costs) == 20
    assert result.deterministic.returns != result.sampled.returns
    assert result.deterministic.over_limit_share == sum(cost > 5 for cost in result.deterministic.costs) / 20


def test_the_time_of_a_training_is_that_of_the_steps_that_count() -> None:
    # 1,000 steps at 100 a second, 1,000 at 50: also where it was stopped, and went on, between the two.
    rows = [{"steps": 1_000.0, "steps_per_second": 100.0}, {"steps": 2_000.0, "steps_per_second": 50.0}]
    assert runs.training_seconds(rows) == 30.0


def test_a_training_that_ended_before_its_evaluation_is_not_trained_again() -> None:
    finish(Here())
    results.path(JOB).unlink()
    core = Here()
    finish(core)
    assert len(core.commands) == 1
    assert core.commands[0].startswith("benchmarks.learning.evaluate")


def test_what_was_begun_with_other_settings_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoppedError):
        finish(Here(stop_at=400))
    monkeypatch.setitem(jobs.ONE_CORE, "estep.kl_bound", 0.05)
    core = Here()
    result, said = finish(core)
    assert core.commands[0] == f"cvpo train {DRIFT}"
    assert any("other settings than today's" in line for line in said)
    assert result.config["estep"]["kl_bound"] == 0.05


def test_a_result_of_other_settings_is_told_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    finish(Here())
    assert runs.stands(JOB, pytest.fail)
    monkeypatch.setitem(jobs.ONE_CORE, "estep.kl_bound", 0.05)
    said: list[str] = []
    assert runs.stands(JOB, said.append)
    assert "other settings than today's" in said[0]


def test_a_setting_that_is_new_since_a_result_has_its_default_there() -> None:
    finish(Here())
    path = results.path(JOB)
    document = json.loads(path.read_text())
    del document["config"]["estep"]["kl_bound"]
    path.write_text(json.dumps(document))
    assert runs.stands(JOB, pytest.fail)
