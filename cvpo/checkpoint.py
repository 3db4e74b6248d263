"""All state of a run to disk and back.

`RUN/checkpoints/STEPS/` holds the policy and critics of that time, for evaluation and export; all are kept.
`RUN/resume/STEPS/` holds everything else that training goes on from; only the newest is kept. Both are written whole
or not at all, and every byte is verified when they are read.
"""

import hashlib
import io
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cvpo.bundle import Constraint
from cvpo.config import TrainConfig, parse_config
from cvpo.envs import EnvSpec
from cvpo.errors import CheckpointError
from cvpo.files import write_directory
from cvpo.networks import Model, build_model

CONFIG = "config.json"
CHECKSUMS = "sha256.json"
POLICY = "policy.pt"
STATE = "state.pt"
ENVIRONMENTS = "environments.bin"
Kind = Literal["checkpoints", "resume"]


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy with its critics, as a checkpoint holds it, and what must be known to run it."""

    model: Model
    spec: EnvSpec
    config: TrainConfig
    constraints: tuple[Constraint, ...]
    reward_scale: float  # the model's reward values times this are in environment units
    steps: int


@dataclass(frozen=True)
class ResumePoint:
    """What training goes on from."""

    steps: int
    state: dict[str, Any]  # tensors and plain values
    environments: bytes  # pickled: resume only runs that you trust


def write_config(run: Path, config: TrainConfig) -> None:
    """Begin a run's folder with its config.

    Raises:
        CheckpointError: the folder is in use, or cannot be written.
    """
    try:
        if run.exists() and any(run.iterdir()):
            go_on = f"go on with it: cvpo train --resume {run}" if _folders(run, "resume") else "remove it first."
            raise CheckpointError(f"{run} is not empty. Choose another --out, or {go_on}")
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Cannot write {run}: {error.strerror}. Choose another --out.") from error
    replace_config(run, config)


def replace_config(run: Path, config: TrainConfig) -> None:
    """Write the config of a run, whole or not at all.

    Raises:
        CheckpointError: it cannot be written; the one before stays.
    """
    temporary = run / f".{CONFIG}"
    try:
        temporary.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.replace(run / CONFIG)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {run}: {error.strerror}. Free space or choose another --out.") from error


def read_config(run: Path) -> TrainConfig:
    """The config a run was started with.

    Raises:
        CheckpointError: there is no run there. ConfigError: its config does not fit this version.
    """
    try:
        document = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{run} is not a run: it has no {CONFIG}. `cvpo train` makes one.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run / CONFIG} cannot be read: {error}.") from error
    return parse_config(document)


def save_policy(run: Path, policy: TrainedPolicy) -> Path:
    """Write a checkpoint for evaluation and export.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints stay.
    """
    spec = policy.spec
    document = {
        "model": policy.model.state_dict(),
        "config": policy.config.model_dump_json(),
        "constraints": [constraint.model_dump_json() for constraint in policy.constraints],
        "reward_scale": policy.reward_scale,
        "steps": policy.steps,
        "spec": {
            "env_id": spec.env_id,
            "observation_size": spec.observation_size,
            "action_low": spec.action_low.tolist(),
            "action_high": spec.action_high.tolist(),
            "cost_names": list(spec.cost_names),
            "max_episode_steps": spec.max_episode_steps,
            "control_period_ms": spec.control_period_ms,
        },
    }
    return _write(run, "checkpoints", policy.steps, {POLICY: _to_bytes(document)})


def save_resume_point(run: Path, point: ResumePoint) -> Path:
    """Write what training goes on from, then remove the one before.

    Raises:
        CheckpointError: as `save_policy`; the one before stays.
    """
    path = _write(run, "resume", point.steps, {STATE: _to_bytes(point.state), ENVIRONMENTS: point.environments})
    for older in _folders(run, "resume")[:-1]:
        shutil.rmtree(older)
    return path


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints of a run, in order.

    Raises:
        CheckpointError: there are none.
    """
    steps = [int(folder.name) for folder in _folders(run, "checkpoints")]
    if not steps:
        raise CheckpointError(
            f"{run} has no checkpoint yet. The first one is written at the end of the warm-up or later."
        )
    return steps


def load_policy(run: Path, steps: int) -> TrainedPolicy:
    """Read and verify the checkpoint of that step.

    Raises:
        CheckpointError: it is missing, cut short or altered. ConfigError: its config does not fit this version.
    """
    document = _from_bytes(run, _read(run, "checkpoints", steps)[POLICY])
    spec = document["spec"]
    env_spec = EnvSpec(
        env_id=spec["env_id"],
        observation_size=spec["observation_size"],
        action_low=np.array(spec["action_low"], np.float64),
        action_high=np.array(spec["action_high"], np.float64),
        cost_names=tuple(spec["cost_names"]),
        max_episode_steps=spec["max_episode_steps"],
        control_period_ms=spec["control_period_ms"],
    )
    config = parse_config(json.loads(document["config"]))
    constraints = tuple(Constraint.model_validate_json(text) for text in document["constraints"])
    model = build_model(config.network, env_spec.observation_size, env_spec.action_size, len(constraints))
    model.load_state_dict(document["model"])
    return TrainedPolicy(
        model.requires_grad_(False), env_spec, config, constraints, document["reward_scale"], document["steps"]
    )


def load_resume_point(run: Path) -> ResumePoint:
    """Read and verify the newest point that training can go on from.

    Raises:
        CheckpointError: there is none, or it is cut short or altered.
    """
    folders = _folders(run, "resume")
    if not folders:
        raise CheckpointError(f"{run} has nothing to go on from yet; start it again with another --out.")
    steps = int(folders[-1].name)
    contents = _read(run, "resume", steps)
    return ResumePoint(steps, _from_bytes(run, contents[STATE]), contents[ENVIRONMENTS])


def _folders(run: Path, kind: Kind) -> list[Path]:
    parent = run / kind
    return sorted(path for path in parent.iterdir() if path.name.isdigit()) if parent.is_dir() else []


def _write(run: Path, kind: Kind, steps: int, contents: dict[str, bytes]) -> Path:
    path = run / kind / f"{steps:010d}"
    if path.exists():  # a resumed run comes by again, with the same contents
        return path
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_directory(path, {**contents, CHECKSUMS: json.dumps(checksums).encode()}, CheckpointError)
    return path


def _read(run: Path, kind: Kind, steps: int) -> dict[str, bytes]:
    path = run / kind / f"{steps:010d}"
    if not path.is_dir():
        known = ", ".join(str(int(folder.name)) for folder in _folders(run, kind)) or "none"
        raise CheckpointError(f"{run} has no checkpoint at {steps} steps (there are: {known}).")
    try:
        checksums = json.loads((path / CHECKSUMS).read_bytes())
        contents = {name: (path / name).read_bytes() for name in checksums}
        intact = all(hashlib.sha256(data).hexdigest() == checksums[name] for name, data in contents.items())
        expected = {POLICY} if kind == "checkpoints" else {STATE, ENVIRONMENTS}
        intact = intact and set(contents) == expected
    except PermissionError as error:
        raise CheckpointError(f"Cannot read {error.filename}: {error.strerror}.") from error
    except (OSError, ValueError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise CheckpointError(
            f"{path} was cut short or altered: a file does not match its SHA-256. Use another checkpoint."
        )
    return contents


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _from_bytes(run: Path, data: bytes) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"A checkpoint of {run} cannot be read by this version of torch: {error}.") from error
    return state
