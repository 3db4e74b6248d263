import sys
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.errors import BenchmarkError

COMMENT = "# nothing at all\n"


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A peer `bare` that needs nothing, so that no index is asked."""
    monkeypatch.setattr(peers, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path / "environments")
    (tmp_path / "recipes" / "bare").mkdir(parents=True)
    (tmp_path / "recipes" / "bare" / "requirements.txt").write_text(COMMENT)
    return tmp_path / "recipes"


def test_an_environment_is_kept_until_its_requirements_change(recipes: Path) -> None:
    python = peers.peer_python("bare")
    assert python.is_file()
    left_behind = python.parent / "left-behind"
    left_behind.touch()
    assert peers.peer_python("bare") == python
    assert left_behind.exists()
    (recipes / "bare" / "no-deps.txt").write_text(COMMENT)
    peers.peer_python("bare")
    assert not left_behind.exists()


def test_an_environment_that_cannot_be_made_says_what_pip_said_and_is_not_kept(recipes: Path) -> None:
    (recipes / "bare" / "requirements.txt").write_text("./no-such-folder\n")
    for _ in range(2):
        with pytest.raises(BenchmarkError, match=r"(?s)environment of bare cannot be made.*no-such-folder"):
            peers.peer_python("bare")


def test_an_unknown_peer_is_named() -> None:
    with pytest.raises(BenchmarkError, match="There is no peer nobody"):
        peers.peer_python("nobody")


def test_a_peer_never_runs_in_our_environment(recipes: Path) -> None:
    assert peers.peer_python("bare").parents[1] != Path(sys.prefix)
