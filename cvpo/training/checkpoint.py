"""The config of a run and the policies it has learned, to disk and back.

`RUN/checkpoints/STEPS/` holds the policy and critics of that time, for evaluation and export; all are kept. What
training goes on from is in `cvpo.training.resume`.
"""

import io
import json
import pickle
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvpo import __version__
from cvpo.bundle import Constraint
from cvpo.envs import EnvSpec
from cvpo.errors import CheckpointError, ConfigError
from cvpo.files import read_verified, remove_directory, write_file, write_verified
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.learning.networks import Model, build_model
from cvpo.training.lock import LOCK, locked

CONFIG = "config.json"
POLICY = "policy.pt"
# What a run without a checkpoint may have, for the next one to write over; `checkpoints` and `resume` are then empty.
BEGUN = {LOCK, CONFIG, f".{CONFIG}", "metrics.jsonl", "residuals.csv", "tensorboard", "checkpoints", "resume", "replay"}


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy with its critics, as a checkpoint holds it, and what must be known to run it."""

    model: Model
    spec: EnvSpec
    config: TrainConfig
    constraints: tuple[Constraint, ...]
    reward_scale: float  # the model's reward values times this are in environment units
    steps: int


@contextmanager
def begun(run: Path, config: TrainConfig, say: Callable[[str], None]) -> Iterator[None]:
    """Begin a run's folder with its config, and hold its lock.

    Where a run failed or was stopped before it saved anything, the folder is as good as empty.

    Args:
        run: the folder.
        config: of the run.
        say: is told of such a run, and as for `locked`.

    Raises:
        CheckpointError: the folder is in use, or cannot be written.
    """
    try:
        if LOCK not in _contents(run):
            _check_empty(run)  # before a file is put there
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Cannot write {run}: {error.strerror}. Choose another --out.") from error
    with locked(run, say):
        _check_empty(run)
        if (run / CONFIG).exists():
            say(f"{run} has a run that saved nothing; this one begins in its place")
        replace_config(run, config)
        yield


def replace_config(run: Path, config: TrainConfig) -> None:
    """Write the config of a run, whole or not at all.

    Raises:
        CheckpointError: it cannot be written; the one before stays.
    """
    try:
        write_file(run / CONFIG, config.model_dump_json(indent=2).encode() + b"\n")
    except OSError as error:
        raise CheckpointError(f"Cannot write {run}: {error.strerror}. Free space or choose another --out.") from error


def read_config(run: Path) -> TrainConfig:
    """The config a run was started with.

    Raises:
        CheckpointError: there is no run there, or its config does not fit this version.
    """
    try:
        document = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{run} is not a run: it has no {CONFIG}. `cvpo train` makes one.") from error
    except OSError as error:
        raise CheckpointError(f"{run / CONFIG} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(
            f"{run / CONFIG} cannot be read: {error}. Put it back as it was, or start a new run; the checkpoints can "
            "still be evaluated and exported."
        ) from error
    return _read_config(document, run)


def _read_config(document: object, run: Path) -> TrainConfig:
    try:
        return parse_config(document)
    except ConfigError as error:
        raise CheckpointError(
            f"{run} has settings that cvpo {__version__} does not take: {error} Use the release that trained it, or "
            "train again."
        ) from error


def save_policy(run: Path, policy: TrainedPolicy) -> int:
    """Write a checkpoint for evaluation and export, and say how many bytes it has.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints stay.
    """
    document = {
        "model": policy.model.state_dict(),
        "config": policy.config.model_dump_json(),
        "constraints": [constraint.model_dump_json() for constraint in policy.constraints],
        "reward_scale": policy.reward_scale,
        "steps": policy.steps,
        "spec": spec_document(policy.spec),
    }
    path, contents = step_folder(run, "checkpoints", policy.steps), {POLICY: to_bytes(document)}
    if path.exists() and read_verified(path) != contents:  # a resumed run comes by again, and does not end the same
        remove_directory(path)
    if not path.exists():
        write_verified(path, contents, CheckpointError)
    return len(contents[POLICY])


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints of a run, in order.

    Raises:
        CheckpointError: there are none, or there is no run there.
    """
    steps = steps_of(run, "checkpoints")
    if not steps:
        read_config(run)  # says that there is no run, where that is why
        raise CheckpointError(
            f"{run} has no checkpoint yet. The first one is written at the end of the warm-up or later."
        )
    return steps


def checkpoint_written(run: Path, steps: int) -> int:
    """When the checkpoint of that step was written, seconds since 1970."""
    return int((step_folder(run, "checkpoints", steps) / POLICY).stat().st_mtime)


def load_policy(run: Path, steps: int) -> TrainedPolicy:
    """Read and verify the checkpoint of that step.

    Raises:
        CheckpointError: it is missing, cut short or altered, or its config does not fit this version.
    """
    document = from_bytes(run, _read(run, steps)[POLICY])
    env_spec = read_spec(document["spec"])
    config = _read_config(json.loads(document["config"]), run)
    constraints = tuple(Constraint.model_validate_json(text) for text in document["constraints"])
    model = build_model(
        config.network, env_spec.observation_size, env_spec.action_size, len(constraints), env_spec.closeness
    )
    document["model"].setdefault("cost_factor", model.cost_factor)  # runs of before have none
    model.load_state_dict(document["model"])
    return TrainedPolicy(
        model.requires_grad_(False), env_spec, config, constraints, document["reward_scale"], document["steps"]
    )


def spec_document(spec: EnvSpec) -> dict[str, Any]:
    """What identifies an environment, as plain values."""
    return {
        "env_id": spec.env_id,
        "observation_size": spec.observation_size,
        "action_low": spec.action_low.tolist(),
        "action_high": spec.action_high.tolist(),
        "cost_names": list(spec.cost_names),
        "max_episode_steps": spec.max_episode_steps,
        "control_period_ms": spec.control_period_ms,
        "closeness": list(spec.closeness),
    }


def read_spec(document: dict[str, Any]) -> EnvSpec:
    """What `spec_document` was given, also by an earlier version."""
    return EnvSpec(
        env_id=document["env_id"],
        observation_size=document["observation_size"],
        action_low=np.array(document["action_low"], np.float64),
        action_high=np.array(document["action_high"], np.float64),
        cost_names=tuple(document["cost_names"]),
        max_episode_steps=document["max_episode_steps"],
        control_period_ms=document["control_period_ms"],
        closeness=tuple(document.get("closeness", ())),  # runs of before have none
    )


def step_folder(run: Path, kind: str, steps: int) -> Path:
    """Where what was saved at that step is."""
    return run / kind / f"{steps:010d}"


def steps_of(run: Path, kind: str) -> list[int]:
    """The steps at which something was saved, in order."""
    parent = run / kind
    return sorted(int(path.name) for path in parent.iterdir() if path.name.isdigit()) if parent.is_dir() else []


def to_bytes(state: dict[str, Any]) -> bytes:
    """Tensors and plain values as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(run: Path, data: bytes) -> dict[str, Any]:
    """What `to_bytes` was given.

    Raises:
        CheckpointError: this version of torch does not read it.
    """
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"A checkpoint of {run} cannot be read by this version of torch: {error}.") from error
    return state


def _contents(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()} if run.exists() else set()


def _check_empty(run: Path) -> None:
    if not _saved_nothing(run):
        quoted = shlex.quote(str(run))
        go_on = f"go on with it: cvpo train --resume {quoted}" if (run / CONFIG).exists() else "remove it first."
        raise CheckpointError(f"{run} is not empty. Choose another --out, or {go_on}")


def _saved_nothing(run: Path) -> bool:
    """Whether there is nothing but what a run leaves that was cut off before its first checkpoint."""
    contents = _contents(run)
    if CONFIG in contents:
        try:
            read_config(run)
        except CheckpointError:  # it may be anybody's
            return False
    elif contents - {LOCK, f".{CONFIG}"}:
        return False
    saved = [name for kind in ("checkpoints", "resume") for name in _contents(run / kind)]
    return contents <= BEGUN and all(name.startswith(".") for name in saved)  # those that were being written


def _read(run: Path, steps: int) -> dict[str, bytes]:
    path = step_folder(run, "checkpoints", steps)
    if not path.is_dir():
        known = ", ".join(map(str, steps_of(run, "checkpoints"))) or "none"
        raise CheckpointError(f"{run} has no checkpoint at {steps} steps (there are: {known}).")
    try:
        contents = read_verified(path)
    except PermissionError as error:
        raise CheckpointError(f"Cannot read {error.filename}: {error.strerror}.") from error
    if contents is None or set(contents) != {POLICY}:
        whole = [
            other for other in steps_of(run, "checkpoints") if read_verified(step_folder(run, "checkpoints", other))
        ]
        use = (
            f"Use another checkpoint, the last that is whole with --step {whole[-1]}" if whole else "No other is whole"
        )
        raise CheckpointError(f"{path} was cut short or altered: a file does not match its SHA-256. {use}.")
    return contents
