import json
from pathlib import Path

import pytest

from benchmarks import rounds
from benchmarks.rounds import Ratio, finish, interleave, machine, table


def test_a_ratio_is_taken_round_by_round() -> None:
    # 6/2, 20/5, 9/9: the ratio of the medians would be 9/5, and of the sums 35/16.
    ratio = Ratio.of([6.0, 20.0, 9.0], [2.0, 5.0, 9.0])
    assert ratio.per_round == (3.0, 4.0, 1.0)
    assert ratio.median == 3.0
    assert ratio.spread == (1.0, 4.0)
    assert str(ratio) == "3.00 (1.00 to 4.00 over 3 rounds)"
    assert ratio.document() == {"median": 3.0, "low": 1.0, "high": 4.0, "per_round": [3.0, 4.0, 1.0]}


def test_rounds_of_two_contestants_must_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        Ratio.of([1.0, 2.0], [1.0])


def test_contestants_alternate_in_who_begins() -> None:
    played: list[str] = []

    def player(name: str) -> int:
        played.append(name)
        return len(played)

    given = interleave({"ours": lambda: player("ours"), "peer": lambda: player("peer")}, 3)
    assert played == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert given == {"ours": [1, 4, 5], "peer": [2, 3, 6]}


def test_a_result_is_a_file_with_the_machine_and_one_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "RESULTS", tmp_path)
    print("a table")
    finish("speed", {"speed_ratio": 3.5}, {"rounds": [{"ours": 7.0, "peer": 2.0}]})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"speed_ratio": 3.5}
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["speed_ratio"] == 3.5
    assert written["rounds"] == [{"ours": 7.0, "peer": 2.0}]
    assert written["machine"] == machine()
    assert written["date"][:2] == "20"
    assert written["cvpo"]["version"]


def test_a_machine_has_a_name_cores_and_memory() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0


def test_a_table_is_aligned_words_left_and_numbers_right() -> None:
    assert table(["who", "ms"], [["ours", "5"], ["a peer", "23.1"]]).splitlines() == [
        "| who    |   ms |",
        "| ------ | ---: |",
        "| ours   |    5 |",
        "| a peer | 23.1 |",
    ]
