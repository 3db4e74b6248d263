"""One episode as a film."""

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray

from cvpo import seeds
from cvpo.bundle import Mode
from cvpo.commands.target import Target
from cvpo.envs import CostEnv, make_env
from cvpo.errors import ConfigError, EnvError
from cvpo.evaluate import play

FRAMES_PER_SECOND = 30.0  # at most, and where the environment does not say how long a step takes


@dataclass(frozen=True)
class Film:
    """What is seen in it."""

    episode_return: float
    episode_cost: NDArray[np.float64]  # [C]


def film_episode(path: Path, target: Target, mode: Mode, seed: int = 0) -> Film:
    """Film one fresh episode, at the speed of the simulated time.

    Args:
        path: of the film, an .mp4; written whole or not at all.
        target: who acts, and in what.
        mode: how actions are chosen.
        seed: of the episode.

    Raises:
        ConfigError: no film can be written, or not there. EnvError: the environment gives no frames.
    """
    if path.suffix != ".mp4":
        raise ConfigError(f"{path} must end in .mp4, which is what a film is written as.")
    env = make_env(target.env_id, cost_names=target.cost_names, max_episode_steps=target.max_episode_steps, render=True)
    period_ms = env.spec.control_period_ms or 1000 / FRAMES_PER_SECOND
    every = max(1, round(1000 / period_ms / FRAMES_PER_SECOND))  # steps from one frame to the next
    partial = path.with_name(f".{path.name}.partial.mp4")
    total, cost = 0.0, np.zeros(len(env.spec.cost_names))
    film: subprocess.Popen[bytes] | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, step in enumerate(play(env, target.actor(mode), seed + seeds.EVALUATION)):
            total += step.reward
            cost += step.cost
            if number % every == 0:
                frame = _frame(env)
                if film is None:
                    height, width = frame.shape[:2]
                    film = _encoder(partial, width, height, 1000 / period_ms / every)
                _write(film, frame)
        if film is not None:
            _finish(film)
            partial.replace(path)
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror or error}. Choose another file.") from error
    finally:
        if film is not None:
            film.kill()
            film.communicate()
        with contextlib.suppress(OSError):  # it is there only where the film broke off
            partial.unlink()
        env.close()
    return Film(total, cost)


def _encoder(path: Path, width: int, height: int, frames_per_second: float) -> "subprocess.Popen[bytes]":
    """Start to encode what comes by its standard input, in a session of its own: Ctrl-C is not for it.

    imageio_ffmpeg's own `write_frames` runs Python between fork and exec, and with it gRPC's handlers of forks, which
    the child did not always survive where a policy service was asked by the same process.
    """
    frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{frames_per_second:.6g}"]
    film = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", "25"]
    return subprocess.Popen(
        [get_ffmpeg_exe(), "-y", "-v", "error", *frames, "-i", "-", *film, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _write(encoder: "subprocess.Popen[bytes]", frame: NDArray[np.uint8]) -> None:
    assert encoder.stdin is not None
    try:
        encoder.stdin.write(frame.tobytes())
    except BrokenPipeError:
        _finish(encoder)  # which says why


def _finish(encoder: "subprocess.Popen[bytes]") -> None:
    """Raises OSError where it has failed, with what it said."""
    _, said = encoder.communicate()
    if encoder.returncode:
        raise OSError(said.decode(errors="replace").strip() or f"the encoder ended with status {encoder.returncode}")


def _frame(env: CostEnv) -> NDArray[np.uint8]:
    """[height, width, 3], both even as the encoder wants them."""
    frame = env.render()
    if frame is None:
        raise EnvError(
            f"{env.spec.env_id} gives no frames: it makes its environment without render_mode='rgb_array', and decides "
            "about that itself. Let it make one with frames, or leave out --video."
        )
    height, width = frame.shape[:2]
    return frame[: height // 2 * 2, : width // 2 * 2]
