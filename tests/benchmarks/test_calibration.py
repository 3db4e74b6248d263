"""The figures of docs/calibration.md: values worked out by hand, and that the page is the committed results'."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import shield
from benchmarks.calibration import compare, page
from benchmarks.calibration.__main__ import FOLDER
from benchmarks.calibration.figures import (
    Bounds,
    bound_figures,
    flag_figures,
    level_of_misses,
    pinball,
    probability_figures,
)
from benchmarks.errors import BenchmarkError
from cvpo.bundle import Constraint, Evaluation, Interval
from cvpo.calibration.sessions import Session
from cvpo.evaluate import Episode


def test_a_bound_that_is_too_low_costs_nine_times_as_much_as_one_too_high() -> None:
    assert pinball(np.array([10.0, 10.0]), np.array([9.0, 11.0]), 0.9) == pytest.approx([0.9, 0.1])


def test_a_bound_that_knows_is_held_against_the_best_constant_and_against_another() -> None:
    # Ten episodes of one cost each, 1 to 10. The best constant is 9: it loses 0.9 on 10, and 0.8, 0.7, ... on others.
    costs = [np.array([float(k)]) for k in range(1, 11)]
    knows = Bounds(costs, [cost + 1.0 for cost in costs])
    other = Bounds(costs, [cost + 2.0 for cost in costs])
    found = bound_figures(knows, other, 0.9)
    assert found["coverage"]["mean"] == 1
    assert found["pinball_ratio_constant"]["mean"] == pytest.approx(0.1 / ((0.9 + 0.1 * 36) / 10))
    assert found["pinball_ratio_elapsed"]["mean"] == pytest.approx(0.5)
    assert found["zero_cost_share"] == 0


def test_probabilities_are_scored_beside_the_base_rate() -> None:
    sure = [Session(np.full(10, 0.0), None), Session(np.full(10, 1.0), 9)]
    half = [Session(np.full(10, 0.5), None), Session(np.full(10, 0.5), 9)]
    found = probability_figures(sure, half)
    assert (found["brier"], found["brier_elapsed"], found["brier_base_rate"]) == (0, 0.25, 0.25)
    assert found["calibration_error"] == 0
    assert len(found["reliability"]) == 2


def sessions(announced: list[float], clean: list[float]) -> list[Session]:
    over = [Session(np.array([p, *[0.0] * 20]), 20) for p in announced]
    return [*over, *(Session(np.array([p, 0.0]), None) for p in clean)]


def test_flags_are_held_against_others_at_as_many_misses() -> None:
    ours = sessions([0.9, 0.8, 0.1, 0.7], [0.6, 0.2])
    other = sessions([0.9, 0.3, 0.2, 0.4], [0.35, 0.25])
    soon = Session(np.full(21, 0.9), 5)  # over its budget at step 5: no flag can come 20 steps before
    found = flag_figures(ours, [*ours[1:], soon], 0.5, {"elapsed": other}, lead_steps=20)
    assert (found["violating_sessions"], found["clean_sessions"]) == (4, 2)
    assert found["miss_rate"] == 0.25
    assert found["too_soon_sessions"] == 0
    assert found["at_limit"]["violating_sessions"] == 4
    assert found["at_limit"]["miss_rate"] == 0.5
    assert found["at_limit"]["miss_rate_upper"] == pytest.approx(0.85, abs=0.005)
    assert found["false_alarm_rate"] == 0.25  # one of two steps in one of two sessions
    # The other may miss one too, that of 0.2: its level is just below 0.3, and one of its clean sessions is over that.
    assert level_of_misses(other, 1, 20) == pytest.approx(0.3)
    assert found["false_alarm_rate_elapsed"] == 0.25
    assert found["lead_steps_median"] == 20


def test_what_was_cut_within_its_budget_is_no_false_alarm() -> None:
    ours = [*sessions([0.9], [0.6]), Session(np.full(2, 0.9), None, cut=True)]
    found = flag_figures(ours, ours, 0.5, {"elapsed": ours}, lead_steps=20)
    assert (found["clean_sessions"], found["false_alarm_rate"], found["false_alarm_rate_elapsed"]) == (1, 0.5, 0.0)


def document() -> dict[str, Any]:
    ours = sessions([0.9, 0.8], [0.6])
    costs = Bounds([np.array([1.0, 0.0])], [np.array([1.0, 2.0])])
    bounds = bound_figures(costs, costs, 0.9)
    return {
        "env_id": "SafetyMade-v0",
        "seed": 10,
        "steps": 1000,
        "cost_limit": 25.0,
        "episode_cost": {"mean": 1.0, "standard_deviation": 0.5},
        "episodes": {"fit": 30, "fresh": 3},
        "alarm_note": "0.5, chosen on 2 sessions over budget of 2 episodes",
        "rest": bounds,
        "window": bounds,
        "probability": probability_figures(ours, ours),
        "flags": flag_figures(ours, ours, 0.5, {"elapsed": ours, "uncalibrated": ours}, 20),
        "date": "2026-01-01",
        "cvpo": {"commit": "0000000"},
        "machine": {"cpu": "made up", "cores": 2, "memory_gib": 24.0},
    }


def test_the_summary_and_the_page_say_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "SafetyMade-v0.json").write_text(json.dumps(document()))
    documents = page.committed(tmp_path)
    (found,) = page.summary(documents).values()
    assert (found["episodes"], found["coverage"], found["miss_rate"]) == (3, 1.0, 0.0)
    text = "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in page.TABLES)
    filled = page.filled(text, documents)
    assert "| SafetyMade-v0, the window" in filled
    # Both bounds hold always, and half of the costs are zero.
    assert "of the costs are zero: SafetyMade-v0, all that is left; SafetyMade-v0, the window." in filled
    row = next(line for line in page.flags(documents).splitlines() if line.startswith("| SafetyMade"))
    told = ["2 / 1", "0", "0.0% (up to 65.8%)", "0.0% (up to 65.8%)"]
    assert [cell.strip() for cell in row.split("|")[2:6]] == told
    assert "Alarm levels: SafetyMade-v0, 0.5, chosen on 2 sessions over budget of 2 episodes." in filled
    assert page.filled(filled, documents) == filled
    assert "Not measured yet." in page.filled(text, [])


def test_the_summary_has_every_figure_that_a_target_speaks_of() -> None:
    wanted = """episodes coverage zero_cost_share pinball_ratio_constant pinball_ratio_elapsed calibration_error brier
        brier_base_rate miss_rate miss_rate_upper false_alarm_rate false_alarm_rate_uncalibrated
        false_alarm_rate_elapsed lead_steps_median"""
    for documents in ([document()], page.committed(FOLDER)):
        for found in page.summary(documents).values():
            assert set(wanted.split()) <= found.keys()
            assert all(isinstance(found[name], int | float) for name in wanted.split())


def test_error_brier_score_and_false_alarms_have_intervals_where_they_were_measured() -> None:
    made = document()
    assert made["probability"]["intervals"].keys() == {"calibration_error", "brier", "brier_elapsed"}
    names = {"false_alarm_rate", "false_alarm_rate_elapsed", "false_alarm_rate_uncalibrated"}
    assert made["flags"]["intervals"].keys() == names
    made["probability"] |= {"brier": 0.04, "intervals": {"brier": [0.03, 0.052]}}
    made["flags"] |= {"false_alarm_rate": 0.1, "intervals": {"false_alarm_rate": [0.081, 0.12]}}
    assert "| 0.040 (0.030 to 0.052) |" in page.probabilities([made])
    assert "| 10.0% (8.1% to 12.0%) |" in page.flags([made])
    del made["probability"]["intervals"], made["flags"]["intervals"]  # results of before
    assert "0.040 |" in page.probabilities([made])
    assert "10.0% |" in page.flags([made])


def test_results_from_before_misses_at_the_limit_were_measured_are_still_told() -> None:
    made = document()
    del made["alarm_note"], made["flags"]["too_soon_sessions"], made["flags"]["at_limit"]
    row, *_, levels = page.flags([made]).splitlines()[2:]
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["-", "0.0% (up to 65.8%)", "-"]
    assert levels == "Alarm levels: how they were found was not kept."


def test_each_way_to_guess_the_cost_is_told_by_task() -> None:
    figures = {"rest": 0.26, "window": 0.14, "calibration_error": 0.033, "brier": 0.0403}
    made = {**document(), "episodes": {"calibrating": 500, "fresh": 300}, "ways": {"forecast": figures}}
    told = page.ways([made])
    assert [cell.strip() for cell in told.splitlines()[2].split("|")[1:-1]] == [
        "SafetyMade-v0",
        "forecast",
        "0.26",
        "0.14",
        "0.033",
        "0.0403",
    ]
    assert "SafetyMade-v0: seed 10, 1,000 steps, cost 1.0 ± 0.5, 500 episodes to calibrate, 300 fresh." in told


def test_a_distributional_critic_learns_the_costs_of_steps_it_has_never_seen_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each step costs 1 with probability 0.5 or 0.1, as the observation says: 8 steps cost 4 or 0.8. Targets reach 4
    # steps ahead: the rest is known by bootstrapping alone.
    monkeypatch.setattr(compare, "MOST_UPDATES", 600)
    monkeypatch.setattr(compare, "BATCH", 64)
    generator = np.random.default_rng(0)

    def episode() -> Episode:
        sign = generator.choice([-1.0, 1.0])
        cost = (generator.random((32, 1)) < (0.5 if sign > 0 else 0.1)).astype(np.float64)
        return Episode(np.full((32, 1), sign, np.float32), np.zeros(32), cost, False, np.ones((32, 1)), None, None)

    constraint = Constraint(name="cost", cost_limit=10, discount=0.9, horizon_steps=32, window_steps=4)
    critic: Any = compare.fit_distributional([episode() for _ in range(60)], [constraint], lambda seen: seen, 0)
    signs, ones = torch.tensor([[-1.0], [1.0]]), torch.ones(2)
    low, high = critic.quantiles(signs, ones, torch.tensor([8, 8]))[:, 15:17].mean(1).tolist()
    assert low == pytest.approx(0.8, abs=0.8)
    assert high == pytest.approx(4, abs=0.8)
    assert critic.quantiles(signs, ones, torch.tensor([0, 0])).abs().max() == 0


def row(mode: str, level: float | None, cost: float) -> dict[str, Any]:
    interval = {"mean": cost, "low": cost - 1, "high": cost + 1}
    return {
        "mode": mode,
        "alarm_level": level,
        "episode_return": interval,
        "cost": interval,
        "cost_cvar90": 2 * cost,
        "over_budget_share": 0.5,
    }


def test_the_shield_with_the_least_cost_is_told_beside_the_deterministic_policy() -> None:
    rows = [row("deterministic", None, 40), row("shielded of 4", 0.1, 30), row("shielded of 16", 0.1, 20)]
    made = {**document(), "trained_cost_limit": 60.0, "budget": 25.0, "episodes": 80, "rows": rows}
    told = shield.headline(made)
    assert (told["deterministic"]["cost"], told["shielded"]["cost"], told["shielded"]["mode"]) == (
        40,
        20,
        "shielded of 16",
    )
    assert "| shielded of 4  |         0.1 | 30.0 (29.0 to 31.0) |  75% | 30.0 (29.0 to 31.0) |" in page.shield(made)


def test_a_shield_is_tried_only_on_a_policy_that_surely_costs_more_than_it_may(tmp_path: Path) -> None:
    def costing(low: float) -> Evaluation:
        return Evaluation(
            mode="deterministic",
            episodes=100,
            episode_return=Interval(mean=0, low=0, high=0),
            episode_cost=(Interval(mean=30, low=low, high=40),),
            cost_cvar90=(40,),
            over_limit_share=(0.5,),
        )

    shield.check_over(tmp_path / "run", costing(25.1), 25)
    with pytest.raises(BenchmarkError, match=r"run costs 30.0 \(24.9 to 40.0\) .* not above the budget of 25"):
        shield.check_over(tmp_path / "run", costing(24.9), 25)


def test_the_page_is_the_committed_results() -> None:
    text = page.PAGE.read_text()
    assert page.filled(text, page.committed(FOLDER)) == text, "run: python -m benchmarks.calibration --page"
