"""What a training run shows: plain rows where nobody watches, a line that moves on a terminal."""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from cvpo.bundle import Evaluation, Interval
from cvpo.commands import report
from cvpo.commands.report import HEADER, TrainingReport
from cvpo.training.progress import CheckpointReport, Progress, Waits


def progress(steps: int, multiplier: tuple[float, ...] | None = (1.843, 0.0), infeasible: float = 0.03) -> Progress:
    return Progress(
        steps=steps,
        total_steps=100_000,
        steps_per_second=412.3,
        train_return=None,
        train_cost=np.array([31.0, 2.0]),
        cost_limit=np.array([25.0, np.inf]),
        unmet_steps=np.zeros(2),
        temperature=None if multiplier is None else 0.5,
        cost_multiplier=None if multiplier is None else np.array(multiplier),
        infeasible_share=infeasible,
        updates_due=0,
        waits=Waits(200.0, 30.0, 120.0),
    )


def checkpoint(steps: int, costs: tuple[float, ...]) -> CheckpointReport:
    def around(mean: float) -> Interval:
        return Interval(mean=mean, low=mean - 1, high=mean + 1)

    return CheckpointReport(
        steps,
        Evaluation(
            mode="deterministic",
            episodes=10,
            episode_return=around(4.1),
            episode_cost=tuple(around(cost) for cost in costs),
            cost_cvar90=costs,
            over_limit_share=tuple(0.5 for _ in costs),
        ),
        progress(steps, (1.843, 0.0)[: len(costs)]),
    )


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Everything that a run shows, on a terminal or not."""

    def show(terminal: bool, *, costs: tuple[float, ...], limits: tuple[float, ...]) -> str:
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, highlight=False, soft_wrap=True, width=120)
        monkeypatch.setattr(report, "stderr", console)
        with TrainingReport(limits) as shown:
            assert stream.getvalue() == "" or terminal, "something was shown before the run had begun"
            shown.progress(progress(5, None))
            # Its evaluation ends later: the row has the figures of when the checkpoint was made.
            shown.progress(progress(55_000, (9.9, 9.9)[: len(costs)]))
            shown.checkpoint(checkpoint(50_000, costs))
            shown.progress(progress(50_000, (1.843, 0.0)[: len(costs)]))
        return stream.getvalue()

    return show


def test_without_a_terminal_there_are_rows_alone(shown: Callable[..., str]) -> None:
    # Columns: steps, return, cost / limit, lambda, share of infeasible updates, steps a second.
    assert shown(False, costs=(31.2,), limits=(25.0,)) == (
        f"{HEADER}\n     50,000       4.1         31.2 / 25 over      1.84         3%      412\n"
    )


def test_every_cost_stands_beside_its_limit(shown: Callable[..., str]) -> None:
    text = shown(False, costs=(31.2, 3.0), limits=(25.0, float("inf")))
    assert "31.2 / 25 over  3.0 / inf" in text
    assert "1.84, 0" in text


def test_columns_stand_under_their_heads(shown: Callable[..., str]) -> None:
    header, row = shown(False, costs=(3.0,), limits=(25.0,)).splitlines()
    assert len(header) == len(row)


def test_a_terminal_shows_a_line_that_moves(shown: Callable[..., str]) -> None:
    text = shown(True, costs=(31.2,), limits=(25.0,))
    for part in (
        "50,000",
        "412 steps/s",
        "0:02:01 left",
        "training cost 31.0",
        "eval 4.1, cost 31.2 / 25 over",
        "eta 0.5",
        "lambda 1.84",
    ):
        assert part in text


def test_updates_that_are_made_at_once_are_counted_down(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(report, "stderr", Console(file=stream, force_terminal=True, width=120))
    with TrainingReport((25.0,)) as shown:
        shown.progress(dataclasses.replace(progress(5_000), updates_due=480))
    assert "480 updates to go before the next step" in stream.getvalue()


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch, shown: Callable[..., str]) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(True, costs=(31.2,), limits=(25.0,))  # 30 to 39 are the foreground colours


def test_the_share_of_time_that_each_side_waits_is_told_in_the_end() -> None:
    # 30 and 120 of 200 seconds.
    report = TrainingReport((25.0,))
    assert report.waits() is None
    report.progress(progress(5))
    assert report.waits() == "learner 15% of the time, simulators 60%"
    report.progress(dataclasses.replace(progress(5), waits=Waits(200.0, 30.0, None)))  # without simulator processes
    assert report.waits() == "learner 15% of the time"


def test_people_are_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report.say("run     runs/circle")
    assert capsys.readouterr() == ("", "run     runs/circle\n")


def test_an_evaluation_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for terminal in (True, False):
        stream = io.StringIO()
        monkeypatch.setattr(report, "stderr", Console(file=stream, force_terminal=terminal, width=80))
        with report.EvaluationReport() as evaluation:
            evaluation.progress("deterministic", 10, 20, 0.6)
            evaluation.progress("sampled", 0, 30, 0.1)
        shown[terminal] = stream.getvalue() + capsys.readouterr().err
    assert "10 of 20 episodes" in shown[True]
    with report.EvaluationReport(announced=True) as evaluation:  # still without a terminal
        evaluation.progress("deterministic", 10, 20, 0.6)
    assert stream.getvalue() + capsys.readouterr().err == ""
    assert shown[False].split("\n")[:2] == ["rollout 20 episodes, deterministic", "rollout 30 episodes, sampled"]
