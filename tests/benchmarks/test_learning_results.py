from pathlib import Path

import pytest

from benchmarks.learning import results
from benchmarks.learning.jobs import Job
from benchmarks.learning.results import Curve, path, read, summary, write
from tests.benchmarks.learned import CURVE, made_up


def test_the_target_is_met_by_return_and_cost_of_one_evaluation() -> None:
    # At 2,000 steps the return is there, at a cost over the limit.
    assert CURVE.steps_to(720, cost_limit=10) == 3_000
    assert CURVE.steps_to(720, cost_limit=11) == 2_000
    assert CURVE.steps_to(801, cost_limit=11) is None


def test_the_summary_is_of_means_over_seeds() -> None:
    # Episodes of seed 10: 700 / 4, 740 / 14; of seed 11: 800 / 6, 800 / 6. The limit is 10.
    slower = Curve(**(CURVE.model_dump() | {"episode_return": (0.0, 0.0, 800.0), "cost": (0.0, 0.0, 0.0)}))
    found = summary([made_up(), made_up(seed=11, returns=(800.0, 800.0), costs=(6.0, 6.0), curve=slower)])
    assert set(found) == {"SafetyBallCircle-v0"}
    task = found["SafetyBallCircle-v0"]
    assert task["seeds"] == [10, 11]
    assert (task["steps"], task["cost_limit"]) == (100_000, 10)
    assert task["return_mean"] == pytest.approx(760)  # (720 + 800) / 2
    assert task["cost_mean"] == pytest.approx(7.5)  # (9 + 6) / 2
    assert task["cost_cvar90"] == pytest.approx(10)  # (14 + 6) / 2
    assert task["over_limit_share"] == pytest.approx(0.25)  # (1/2 + 0) / 2
    assert task["steps_to_target"] == 3_000


def test_a_seed_that_does_not_come_to_the_target_counts_as_infinite() -> None:
    never = Curve(**(CURVE.model_dump() | {"cost": (11.0, 11.0, 11.0)}))
    one = [made_up(), made_up(seed=11), made_up(seed=12, curve=never)]
    assert summary(one)["SafetyBallCircle-v0"]["steps_to_target"] == 3_000
    two = [made_up(), made_up(seed=11, curve=never), made_up(seed=12, curve=never)]
    assert summary(two)["SafetyBallCircle-v0"]["steps_to_target"] is None


def test_the_summary_has_each_limit_of_point_circle_and_what_a_task_is_compared_with() -> None:
    circle = "SafetyPointCircle1-v0"
    found = summary(
        [
            *(made_up(circle, cost_limit=limit, costs=(limit, limit)) for limit in (5.0, 25.0)),
            made_up(variant="fsrl", costs=(90.0, 90.0)),
        ]
    )
    assert {limit: each["cost_mean"] for limit, each in found[circle]["limits"].items()} == {"5": 5.0, "25": 25.0}
    assert found[circle]["cost_mean"] == 25.0
    assert found["SafetyBallCircle-v0"].keys() == {"fsrl"}
    assert found["SafetyBallCircle-v0"]["fsrl"]["cost_mean"] == 90.0


def test_nothing_to_summarize_is_an_empty_object() -> None:
    assert summary([]) == {}


def test_a_trial_is_kept_apart_and_never_summarized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "TRIALS", tmp_path / "trials")
    counts, tuning = made_up(), made_up(seed=0)
    written = write(counts), write(tuning)
    assert [each.relative_to(tmp_path).parts[0] for each in written] == [written[0].name, "trials"]
    assert results.committed() == [counts]
    assert read(written[1]) == tuning
    short = Job("cvpo", "SafetyBallCircle-v0", 10.0, 2_000, 10)
    assert path(short).parent.name == "trials"


def test_every_committed_result_can_be_read() -> None:
    assert all(path(result.job).exists() for result in results.committed())
