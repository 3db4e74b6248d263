"""Pictures: readable files that show something, for one run and for several."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cvpo.commands import plot
from cvpo.commands.plot import Track, plot_runs, plot_tracks
from cvpo.errors import CheckpointError, ConfigError
from cvpo.learning.config import parse_config

LIMIT_RED = np.array([0xD6, 0x27, 0x28]) / 255  # tab:red


def write_run(
    run: Path,
    costs: tuple[str, ...] = ("cost",),
    limits: tuple[float, ...] = (25.0,),
    schedule: Sequence[tuple[int, list[float]]] = (),
) -> Path:
    """The files of a run that pictures are drawn from."""
    run.mkdir()
    config = parse_config(
        {
            "environment": {"env_id": "Toy-v0", "cost_names": costs},
            "cost_limits": limits,
            "schedule": {"steps": 3_000, "warmup_steps": 500},
            "limit": {"schedule": schedule},
        }
    )
    (run / "config.json").write_text(config.model_dump_json())
    with (run / "metrics.jsonl").open("w") as metrics, (run / "evaluations.jsonl").open("w") as evaluations:
        for step in (1_000, 2_000, 3_000):
            row: dict[str, float] = {"steps": step, **{f"train/cost/{name}": 60 - step / 100 for name in costs}}
            if step > 1_000:  # no episode had ended before
                row["train/return"] = step / 100
            metrics.write(json.dumps(row) + "\n")
            interval = {"mean": step / 90, "low": step / 100, "high": step / 80}
            evaluation = {
                "mode": "deterministic",
                "episodes": 10,
                "episode_return": interval,
                "episode_cost": [interval for _ in costs],
                "cost_cvar90": [step / 70 for _ in costs],
                "over_limit_share": [0.5 for _ in costs],
            }
            evaluations.write(json.dumps({"steps": step, "evaluation": evaluation}) + "\n")
    return run


def pixels(picture: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return np.asarray(plt.imread(picture), np.float64)[..., :3]


def is_drawn(picture: Path, colour: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]" = LIMIT_RED) -> bool:
    """Whether a colour is in the picture."""
    return bool((np.abs(pixels(picture) - colour).max(-1) < 0.02).any())


def test_a_run_is_drawn_with_its_limit(tmp_path: Path) -> None:
    out = plot_runs([write_run(tmp_path / "one")], tmp_path / "pictures" / "curves.png")
    height, width, _ = pixels(out).shape
    assert (height, width) == (480, 1320)  # 4 x 11 inches, 120 dots each
    assert 0.5 < (pixels(out) == 1).all(-1).mean() < 0.99  # white paper with something on it
    assert is_drawn(out)
    assert [path.name for path in out.parent.iterdir()] == ["curves.png"]


def test_several_runs_share_one_picture(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "two", "three")]
    out = plot_runs(runs, tmp_path / "curves.png")
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)):  # the first three of matplotlib's
        assert is_drawn(out, np.array(colour) / 255)


def test_every_cost_has_its_own_axes_and_no_limit_draws_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", ("cost_a", "cost_b"), (float("inf"), float("inf")))
    out = plot_runs([run], tmp_path / "curves.png")
    assert pixels(out).shape[1] == 1980
    assert not is_drawn(out)


def test_a_scheduled_limit_is_drawn_on_its_way(tmp_path: Path) -> None:
    # From 60 to 40 between steps 1,000 and 2,000, where 25 takes over.
    run = write_run(tmp_path / "run", schedule=[(1_000, [60]), (2_000, [40])])
    with mock.patch.object(plot, "save", lambda figure, out: figure):
        figure: Any = plot_runs([run], tmp_path / "curves.png")
    (drawn,) = [line for line in figure.axes[1].lines if line.get_color() == plot.LIMIT]
    assert drawn.get_xydata().tolist() == [[0, 60], [1_000, 60], [2_000, 40], [2_000, 25], [3_000, 25]]
    plt.close(figure)


def test_a_run_that_has_just_begun_is_drawn_without_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "young")
    (run / "evaluations.jsonl").unlink()
    (run / "metrics.jsonl").write_text("")
    assert is_drawn(plot_runs([run], tmp_path / "curves.png"))  # the limit


def test_a_run_without_metrics_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "young")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match="has no metrics yet; the first row comes after 1,000 steps"):
        plot_runs([run], tmp_path / "curves.png")


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run"):
        plot_runs([tmp_path], tmp_path / "curves.png")


def test_runs_with_different_costs_are_not_mixed(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    for name, costs, limits in (("two", ("a", "b"), (1.0, 2.0)), ("three", ("cost_fuel",), (25.0,))):
        runs = [one, write_run(tmp_path / name, costs, limits)]
        with pytest.raises(ConfigError, match=rf"different costs \(.*one: cost; .*{name}: {', '.join(costs)}\)"):
            plot_runs(runs, tmp_path / "curves.png")


@pytest.mark.parametrize(("other", "says"), [("Toy-v0", ""), ("Other-v0", ", of several environments")])
def test_titles_say_what_costs_and_whether_environments_differ(
    other: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    runs = [write_run(tmp_path / name, ("cost_fuel",)) for name in ("one", "two")]
    (runs[1] / "metrics.jsonl").write_text("")  # whose first row is still to come
    config = runs[1] / "config.json"
    config.write_text(config.read_text().replace("Toy-v0", other))
    monkeypatch.setattr(plot, "save", lambda figure, out: titles.extend(axis.get_title() for axis in figure.axes))
    plot_runs(runs, tmp_path / "curves.png")
    assert titles == [f"episode return{says}", f"episode cost: cost_fuel{says}"]


@pytest.mark.parametrize("name", ["curves.nonsense", "file/curves.png"])
def test_a_picture_that_cannot_be_written_is_said(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Cannot write the picture"):
        plot_runs([run], tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "file"}


def test_tracks_show_position_and_cost(tmp_path: Path) -> None:
    seconds = np.linspace(0, 10, 100)
    still = Track(seconds, 0 * seconds, 5 * seconds)
    away = Track(seconds, seconds, 0 * seconds)
    out = plot_tracks({"random": [still], "trained": [away, away]}, 25.0, tmp_path / "motion.png")
    assert pixels(out).shape == (480, 1200, 3)
    assert is_drawn(out)
