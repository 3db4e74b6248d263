"""One episode as a film, and what stands in its way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe, read_frames
from numpy.typing import NDArray

from cvpo.commands import video
from cvpo.commands.target import Target
from cvpo.commands.video import film_episode
from cvpo.envs import EnvSpec, make_env
from cvpo.errors import ConfigError, EnvError
from cvpo.evaluate import RandomActor
from tests.envs.toys import Drift

STEPS = 40


class Filmed(Drift):
    """Drift, seen as a grey that follows x, in frames whose sides are odd."""

    render_mode = "rgb_array"

    def __init__(self) -> None:
        super().__init__()
        self.dt = 0.02

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        return np.full((121, 161, 3), np.clip(128 + 30 * self.x[0], 0, 255), np.uint8)

    def step(self, action: NDArray[np.float64]) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


def target(env_id: str) -> Target:
    spec: EnvSpec = make_env(env_id, max_episode_steps=STEPS).spec
    return Target(env_id, ("cost",), (5.0,), STEPS, lambda mode: RandomActor(spec, 0))


def film(path: Path, env_id: str = "tests.commands.test_video:Filmed") -> Any:
    return film_episode(path, target(env_id), "deterministic")


def test_an_episode_is_filmed_at_the_speed_of_the_simulated_time(tmp_path: Path) -> None:
    shown = film(tmp_path / "new" / "drift.mp4")
    assert 0 <= shown.episode_cost[0] <= STEPS
    reader = read_frames(tmp_path / "new" / "drift.mp4")
    about, frames = next(reader), [np.frombuffer(frame, np.uint8) for frame in reader]
    # 40 steps of 20 ms are 50 a second: every second one is shown, 25 a second.
    assert len(frames) == STEPS / 2
    assert about["duration"] == pytest.approx(STEPS * 0.02, abs=0.05)
    assert about["size"] == (160, 120)
    assert len({int(frame.mean()) for frame in frames}) > 5
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["drift.mp4"]


def test_nothing_of_this_process_is_run_in_the_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As handlers of forks are, of which a child may die: gRPC has some."""
    at_forks: list[Callable[[], None]] = []
    os.register_at_fork(after_in_child=lambda: [each() for each in at_forks])
    get_ffmpeg_exe()  # which starts one to see whether it works, once
    at_forks.append(lambda: os._exit(3))
    film(tmp_path / "drift.mp4")
    at_forks.clear()
    assert (tmp_path / "drift.mp4").stat().st_size > 0


def test_an_encoder_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = video._encoder(tmp_path / "no" / "drift.mp4", 160, 120, 25.0)
    with pytest.raises(OSError, match="No such file or directory"):
        video._finish(encoder)
    monkeypatch.setattr(video, "get_ffmpeg_exe", lambda: "/bin/false")
    with pytest.raises(ConfigError, match=r"Cannot write .*drift\.mp4: the encoder ended with status 1\. Choose"):
        film(tmp_path / "drift.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_environment_without_frames_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"tests\.envs\.toys:Drift gives no frames: .* leave out --video"):
        film(tmp_path / "drift.mp4", "tests.envs.toys:Drift")
    assert list(tmp_path.iterdir()) == []


def test_a_film_is_an_mp4_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"drift\.gif must end in \.mp4"):
        film(tmp_path / "drift.gif")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"Cannot write .*file/drift\.mp4"):
        film(tmp_path / "file" / "drift.mp4")
