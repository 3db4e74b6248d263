"""Asking a real server from a shell: what it says to people, to programs, and about a wrong question."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvpo.commands.query import ask, describe
from serve.server.settings import Settings
from tests.command import cvpo, succeed
from tests.serve import bundles
from tests.serve.running import ServerThread


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of policies goal (two constraints, the second without a limit) and other (not calibrated)."""
    root = tmp_path_factory.mktemp("repository")
    bundles.write(root / "goal", bundles.manifest(cost_limit=(20.0, None)))
    bundles.write(root / "other", bundles.manifest("other", 7, calibration=None))
    server = ServerThread(Settings(repository=root, address="127.0.0.1:0", allow_uncalibrated=True))
    yield server.address
    server.stop(drain_seconds=1)


def query(address: str, *arguments: str) -> str:
    return succeed("query", address, "--timeout-seconds", "30", *arguments).out


def refusal(address: str, *arguments: str) -> str:
    return cvpo("query", address, "--timeout-seconds", "30", *arguments).sentence


def test_what_is_served_is_told_line_by_line(address: str) -> None:
    goal, other = query(address).splitlines()
    assert goal.startswith("goal version 1 (fingerprint ")
    assert "observation [3], action [2]; heat <= 20 an episode, wear without a limit; calibrated" in goal
    assert other.endswith("NOT calibrated: every answer is flagged")


def test_what_is_served_is_told_as_json(address: str) -> None:
    goal, other = json.loads(query(address, "--json"))
    assert goal["policy"]["name"] == "goal"
    assert [constraint["cost_limit"] for constraint in goal["constraints"]] == [20.0, None]  # JSON has no infinity
    assert other["calibration"] is None


def test_an_answer_is_told_in_words(address: str) -> None:
    # u = (0.5 · 1, 0): cost to go of 10 steps is 5, at most 2 · 5 + 1; probability 5 / (5 + 100), under the level 0.6.
    said = query(
        address, "--policy", "goal", "--observation", "[1, 0, 0]", "--steps-left", "10",
        "--cost-allowed", "100", "--cost-allowed", "inf",
    ).splitlines()  # fmt: skip
    assert said[0].split() == ["action", "[0.5,", "0.", "]"]
    assert said[1].startswith("policy  goal version 1; ")
    assert said[2] == "over the next 10 steps, calibrated:"
    assert said[3] == "  heat: expected 5, at most 11; allowed 100, probability 0.0476: no violation predicted"
    assert "allowed inf, probability 0: no violation predicted" in said[4]


def test_a_predicted_violation_stands_out(address: str) -> None:
    said = query(address, "--policy", "goal", "--observation", "[1, 0, 0]", "--steps-left", "10",
                 "--cost-allowed", "0", "--cost-allowed", "0")  # fmt: skip
    assert "heat: expected 5, at most 11; allowed 0, probability 1: VIOLATION PREDICTED" in said


def test_an_answer_that_no_measurement_backs_says_why(address: str) -> None:
    def status(policy: str, *arguments: str) -> str:
        return query(address, "--policy", policy, "--observation", *arguments).splitlines()[2]

    assert "NOT calibrated for this observation, which is outside" in status("goal", "[9, 0, 0]")
    assert "FLAGGED, since nothing measured backs this" in query(
        address, "--policy", "goal", "--observation", "[9, 0, 0]", "--cost-allowed", "100", "--cost-allowed", "inf"
    )
    assert "NOT calibrated for this mode and number" in status("goal", "[1, 0, 0]", "--mode", "sampled")
    assert status("other", "[1, 0, 0]").endswith(" steps, NOT calibrated:")


def test_an_answer_is_told_as_json(address: str) -> None:
    answer = json.loads(query(address, "--policy", "goal", "--observation", "[1, 0, 0]", "--json"))
    assert answer["action"] == [0.5, 0.0]
    assert answer["prediction"]["cost_allowed"] == [2.0, None]  # 20 · 10 / 100, and no limit
    assert answer["prediction"]["violation"] == [True, False]  # 5 / (5 + 2) is over 0.6


def test_an_observation_is_read_from_stdin(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 0, 0]\n"))
    assert "[0.5, 0. ]" in query(address, "--policy", "goal", "--observation", "-")


def test_a_seed_repeats_a_draw(address: str) -> None:
    def action(*arguments: str) -> object:
        text = query(address, "--policy", "goal", "--observation", "[1, 0, 0]", "--json", *arguments)
        return json.loads(text)["action"]

    drawn = ["--mode", "sampled", "--seed", "5"]
    assert action(*drawn) == action(*drawn) != action("--mode", "sampled", "--seed", "6")
    assert action(*drawn) != action()
    assert action("--mode", "shielded", "--candidates", "8", "--seed", "5") == action(
        "--mode", "shielded", "--candidates", "8", "--seed", "5"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--observation", "[1, 0]"], "situations[0].observation: "),
        (["--observation", "[]"], "situations[0].observation: "),
        (["--observation", "[1, NaN, 0]"], "situations[0].observation[1]: "),
        (["--observation", "[1, 0, 1e999]"], "situations[0].observation[2]: "),
        (["--observation", "[1, 0, 0]", "--cost-allowed", "1"], "cost_allowed: "),
        (["--observation", "[1, 0, 0]", "--cost-allowed", "nan", "--cost-allowed", "1"], "cost_allowed[0]: "),
        (["--observation", "[1, 0, 0]", "--steps-left", "101"], "steps_left: "),
        (["--observation", "[1, 0, 0]", "--mode", "shielded", "--candidates", "1000"], "candidates: "),
    ],
)
def test_a_wrong_question_names_the_field(arguments: list[str], reason: str, address: str) -> None:
    assert reason in refusal(address, "--policy", "goal", *arguments)


def test_an_unknown_policy_is_answered_with_those_that_are_served(address: str) -> None:
    question = ["--observation", "[1, 0, 0]"]
    assert "There is no policy 'gaol'; this server has goal, other." in refusal(address, "--policy", "gaol", *question)
    assert "The request names no policy; this server has goal, other." in refusal(address, *question)


def test_evaluating_needs_the_name_of_the_policy_too(address: str, tmp_path: Path) -> None:
    assert "this server has goal, other" in cvpo("evaluate", address).sentence
    for name in ("goal", "other"):
        bundles.write(tmp_path / name, bundles.manifest(name))
    assert "this server has goal, other" in cvpo("evaluate", tmp_path).sentence
    assert "There is no environment ByHand-v0." in cvpo("evaluate", tmp_path, "--policy", "goal").sentence


def test_the_functions_take_what_the_command_does(address: str) -> None:
    assert len(json.loads(describe(address, 30, True))) == 2
    text = ask(
        address, [1, 0, 0], policy="goal", steps_left=None, cost_allowed=None, mode="deterministic", candidates=2,
        seed=None, timeout_seconds=30, as_json=False,
    )  # fmt: skip
    assert text.startswith("action  [0.5, 0. ]")
