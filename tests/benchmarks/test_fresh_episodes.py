"""Episodes that figures are of: none that the predictions were calibrated on, of a toy's policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import shield
from benchmarks.calibration import measure
from cvpo import seeds
from cvpo.calibration.calibrate import calibrate
from cvpo.evaluate import Episode, summarize
from tests.command import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "drift"
    train(path, "--cost", "cost", "--cost-limit", "10")
    return path


def beginnings(episodes: Sequence[Episode]) -> set[bytes]:
    return {episode.observation[0].tobytes() for episode in episodes}


def test_every_use_of_episodes_has_seeds_of_its_own() -> None:
    offsets = [value for name, value in vars(seeds).items() if name.isupper()]
    assert len(offsets) == 8
    assert len(set(offsets)) == len(offsets)
    assert 0 not in offsets  # which training's episodes have


def test_fresh_episodes_are_none_of_those_that_calibrate(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "finished_run", lambda env_id: (run, 0))
    monkeypatch.setattr(measure, "CALIBRATING", 12)
    monkeypatch.setattr(measure, "FRESH", 8)
    found = measure.roll_out("Drift", lambda _: None)
    assert (len(beginnings(found.calibrating)), len(beginnings(found.fresh))) == (12, 8)
    assert beginnings(found.calibrating).isdisjoint(beginnings(found.fresh))


def test_a_shield_is_measured_on_none_of_the_episodes_that_calibrate_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CALIBRATING": 12, "EPISODES": 8, "CANDIDATES": (2,), "LEVELS": (0.1,)}.items():
        monkeypatch.setattr(shield, name, value)
    monkeypatch.setattr(shield._rollouts, "__defaults__", (8, 0))
    calibrating: list[Episode] = []
    measured: list[Sequence[Episode]] = []

    def calibrated(episodes: Sequence[Episode], *arguments: Any, **settings: Any) -> Any:
        calibrating.extend(episodes)
        return calibrate(episodes, *arguments, **settings)

    def summarized(episodes: Sequence[Episode], *arguments: Any) -> Any:
        measured.append(episodes)
        return summarize(episodes, *arguments)

    monkeypatch.setattr(shield, "calibrate", calibrated)
    monkeypatch.setattr(shield, "summarize", summarized)
    document = shield.measure(run, 0.01, lambda _: None)
    # Deterministic, and shielded with the level given and with the one that was chosen.
    assert [row["mode"] for row in document["rows"]] == ["deterministic", "shielded of 2", "shielded of 2"]
    assert len(beginnings(calibrating)) == 12
    for episodes in measured:
        assert len(beginnings(episodes)) == 8
        assert beginnings(episodes).isdisjoint(beginnings(calibrating))
        assert beginnings(episodes) == beginnings(measured[0])  # the same seeds in every row
