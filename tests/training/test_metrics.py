"""The files of a run: what goes in comes out, and a resumed run cuts them back to where it goes on."""

import csv
import errno
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cvpo.bundle import Evaluation, Interval
from cvpo.evaluate import CostLevel
from cvpo.training.metrics import MetricsWriter, read_evaluations, read_metrics

EVALUATION = Evaluation(
    mode="deterministic",
    episodes=10,
    episode_return=Interval(mean=1.5, low=1.0, high=2.0),
    episode_cost=(Interval(mean=20.0, low=10.0, high=30.0),),
    cost_cvar90=(50.0,),
    over_limit_share=(0.2,),
)


def write(run: Path, upto: int, start: int = 0) -> None:
    """A row each 1,000 steps, an update each 500, an evaluation each 2,000."""
    with MetricsWriter(run, ("cost",), start, start // 500) as writer:
        for steps in range(start + 500, upto + 1, 500):
            writer.residual(steps // 500, True, 0.5, -1e-9, [(steps / 100, 1e-9)])
            if steps % 1000 == 0:
                writer.row({"steps": steps, "updates": steps // 500, "train/cost/cost": steps / 10})
            if steps % 2000 == 0:
                writer.evaluation(steps, EVALUATION, [CostLevel(predicted=3.0, realized=2.0)])


def updates(run: Path) -> list[int]:
    with (run / "residuals.csv").open(newline="") as file:
        return [int(row["update"]) for row in csv.DictReader(file)]


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_rows_residuals_evaluations_and_events_are_read_back(tmp_path: Path) -> None:
    write(tmp_path, 4000)
    assert [row["steps"] for row in read_metrics(tmp_path)] == [1000, 2000, 3000, 4000]
    assert read_metrics(tmp_path)[1] == {"steps": 2000, "updates": 4, "train/cost/cost": 200.0}
    assert read_evaluations(tmp_path) == {2000: EVALUATION, 4000: EVALUATION}
    assert updates(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    with (tmp_path / "residuals.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first == {
        "update": "1",
        "feasible": "1",
        "temperature": "0.5",
        "kl_residual": "-1e-09",
        "cost_multiplier/cost": "5",
        "cost_residual/cost": "1e-09",
    }
    assert events(tmp_path)["train/cost/cost"] == [(1000, 100), (2000, 200), (3000, 300), (4000, 400)]
    assert events(tmp_path)["evaluation/return"] == [(2000, 1.5), (4000, 1.5)]
    assert events(tmp_path)["evaluation/discounted_cost/cost"] == [(2000, 2.0), (4000, 2.0)]
    assert events(tmp_path)["evaluation/cost_level/cost"] == [(2000, 1.5), (4000, 1.5)]


def test_a_resumed_run_cuts_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 4500)
    write(tmp_path, 5000, start=2000)
    assert [row["steps"] for row in read_metrics(tmp_path)] == [1000, 2000, 3000, 4000, 5000]
    assert updates(tmp_path) == list(range(1, 11))
    assert list(read_evaluations(tmp_path)) == [2000, 4000]
    assert [step for step, _ in events(tmp_path)["train/cost/cost"]] == [1000, 2000, 3000, 4000, 5000]
    assert (tmp_path / "residuals.csv").read_text().count("temperature") == 1


def test_a_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, 2000)
    for name in ("metrics.jsonl", "residuals.csv", "evaluations.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"steps": 1' if name.endswith("jsonl") else "1")
    write(tmp_path, 3000, start=2000)
    assert [row["steps"] for row in read_metrics(tmp_path)] == [1000, 2000, 3000]
    assert updates(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert list(read_evaluations(tmp_path)) == [2000]


def test_a_full_disk_does_not_keep_a_resumed_run_from_cutting_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 4000)
    (tmp_path / "tensorboard").rename(tmp_path / "elsewhere")
    (tmp_path / "tensorboard").touch()  # stands for the disk: the new file of events cannot be made

    with pytest.raises(OSError, match="exists"):
        MetricsWriter(tmp_path, ("cost",), 3000, 6)
    assert [row["steps"] for row in read_metrics(tmp_path)] == [1000, 2000, 3000]
    assert updates(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert list(read_evaluations(tmp_path)) == [2000]


def test_a_run_without_evaluations_has_none(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == {}


def test_a_full_disk_is_heard_of_at_the_next_flush(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, ("cost",))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._metrics.fileno())
    os.close(full)
    with pytest.raises(OSError, match="No space left") as caught:
        writer.row({"steps": 1000})
    assert caught.value.errno == errno.ENOSPC
