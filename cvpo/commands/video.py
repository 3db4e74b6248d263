"""One episode as a film."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from imageio_ffmpeg import write_frames
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
    film = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, step in enumerate(play(env, target.actor(mode), seed + seeds.EVALUATION)):
            total += step.reward
            cost += step.cost
            if number % every == 0:
                frame = _frame(env)
                if film is None:
                    height, width = frame.shape[:2]
                    film = write_frames(partial, (width, height), fps=1000 / period_ms / every, macro_block_size=2)
                    film.send(None)
                film.send(np.ascontiguousarray(frame))
        if film is not None:
            film.close()
            partial.replace(path)
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror or error}. Choose another file.") from error
    finally:
        if film is not None:
            film.close()
        with contextlib.suppress(OSError):  # it is there only where the film broke off
            partial.unlink()
        env.close()
    return Film(total, cost)


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
