"""What a run goes on from after a stop, a crash or a power failure.

`RUN/resume/STEPS/` holds all state but the transitions, whole or not at all; the newest two are kept, so that damage to
one loses what was learned since the other, and no more. Transitions are in `RUN/replay/`, which is appended to; a
resume point says which of its rows count. Every byte is verified when it is read.

The order makes it safe to stop at any moment: rows, then the point that speaks of them, then what neither needs is
removed.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo import __version__
from cvpo.envs import EnvSpec
from cvpo.errors import CheckpointError
from cvpo.files import read_verified, remove_directory, remove_leftovers, write_verified
from cvpo.learning.replay import Replay
from cvpo.training.checkpoint import from_bytes, read_spec, spec_document, step_folder, steps_of, to_bytes
from cvpo.training.rowlog import RowFile, RowLog, read_rows

# 1 had the whole replay in its state; 2 no factors of the cost values that follow a transition; 3 no measured level in
# the controller; 4 none of the critics; 5 nothing of what steps and episodes cost; 7 nothing of a proof
FORMAT = 8
KEPT = 2
REPLAY = "replay"
POINT = "point.json"
STATE = "state.pt"
ENVIRONMENTS = "environments.bin"
FILES_PER_REPLAY = 16  # the oldest file is removed whole, so this much more than the capacity is on disk


@dataclass(frozen=True)
class ResumePoint:
    """What training goes on from."""

    steps: int
    state: dict[str, Any]  # tensors and plain values
    environments: bytes  # pickled: resume only runs that you trust
    spec: dict[str, Any]  # of the environment, as `spec_document`
    versions: dict[str, str]  # of what decides how numbers are rounded, when it was made
    row_files: list[RowFile]
    rows: list[NDArray[np.float32]]  # of those files, [n, W] each; to be read before the next save

    def restore_replay(self, replay: Replay) -> None:
        """Put the transitions back."""
        for file, rows in zip(self.row_files, self.rows, strict=True):
            replay.restore(file.first, rows)

    def check_spec(self, run: Path, spec: EnvSpec) -> None:
        """Refuse an environment that is not the one the point is of.

        Raises:
            CheckpointError: says what differs.
        """
        now = spec_document(spec)
        for name, value in spec_document(read_spec(self.spec)).items():
            if now[name] != value:
                raise CheckpointError(
                    f"{run} was trained in an environment with {name} {value}, and now {name} is {now[name]}. "
                    f"Put the environment back as it was, or start a new run."
                )

    def warning(self) -> str | None:
        """A sentence for people where the run cannot go on to the bit; None where it can."""
        now = versions()
        changed = [f"{name} {now[name]} instead of {then}" for name, then in self.versions.items() if now[name] != then]
        return f"The run goes on, but not to the bit: with {', '.join(changed)}." if changed else None


class ResumePoints:
    """The writer of a run's resume points; for the one process that trains it."""

    def __init__(self, run: Path, replay: Replay, spec: EnvSpec) -> None:
        self.run, self.replay, self.spec = run, replay, spec
        file_rows = -(-replay.capacity // FILES_PER_REPLAY)
        self.log = RowLog(run / REPLAY, replay.rows.shape[1], file_rows)
        self._previous: list[RowFile] = []  # of the point before

    def go_on(self, point: ResumePoint | None) -> None:
        """Go on after a point, or from the start; what is newer is damaged or was cut off, and is removed."""
        for kind in ("checkpoints", "resume"):
            remove_leftovers(self.run / kind)
        if point is None:
            return
        for steps in steps_of(self.run, "resume"):
            if steps > point.steps:
                remove_directory(step_folder(self.run, "resume", steps))
        self.log.go_on(point.row_files)
        self._previous = point.row_files

    def save(self, steps: int, state: dict[str, Any], environments: bytes) -> int:
        """Write a point, remove what is older than the one before it, and say how many bytes were written.

        Raises:
            CheckpointError: the disk is full, or a folder cannot be written or is gone; the points before stay.
        """
        end = self.log.files[-1].end if self.log.files else 0
        first, rows = self.replay.since(end)
        try:
            self.log.append(first, rows)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.log.folder}, or a file in it, was removed or moved while the run went on. Put it back, then go "
                f"on from the newest checkpoint: cvpo train --resume {shlex.quote(str(self.run))}. If it is lost, "
                "begin again; the checkpoints can still be evaluated and exported."
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"Cannot write {self.log.folder}: {error.strerror or error}. Free space; the checkpoints before stay."
            ) from error
        row_files = [file for file in self.log.files if file.end > self.replay.total - self.replay.size]
        point = {
            "format": FORMAT,
            "versions": versions(),
            "spec": spec_document(self.spec),
            "row_width": self.log.width,
            "row_files": [vars(file) for file in row_files],
        }
        contents = {POINT: json.dumps(point).encode(), STATE: to_bytes(state), ENVIRONMENTS: environments}
        write_verified(step_folder(self.run, "resume", steps), contents, CheckpointError)
        for older in steps_of(self.run, "resume")[:-KEPT]:
            remove_directory(step_folder(self.run, "resume", older))
        self.log.keep([*self._previous, *row_files])
        self._previous = row_files
        return rows.nbytes + sum(map(len, contents.values()))


def load_resume_point(run: Path, say: Callable[[str], None]) -> ResumePoint | None:
    """Read and verify the newest point that is intact; None if the run was stopped before its first one.

    Args:
        run: the folder of the run.
        say: is told of a damaged one that is passed over.

    Raises:
        CheckpointError: all are damaged or were removed, or another version of cvpo wrote the newest.
    """
    all_steps = steps_of(run, "resume")
    if not all_steps:
        if len(steps_of(run, "checkpoints")) > 1:  # the first is there a moment before its resume point
            raise CheckpointError(
                f"{run}/resume was removed, so the run cannot go on; its checkpoints can be exported."
            )
        return None
    damage = ""
    for steps in reversed(all_steps):
        if damage:
            say(f"{damage}; going on from {steps:,} steps, the resume point before")
        try:
            return _load(run, steps)
        except _DamageError as error:
            damage = str(error)
    raise CheckpointError(f"{damage}, and no resume point before it is intact. Its checkpoints can still be exported.")


class _DamageError(Exception):
    """A resume point cannot be used; another one may."""


def _load(run: Path, steps: int) -> ResumePoint:
    path = step_folder(run, "resume", steps)
    try:
        contents = read_verified(path)
        if contents is None:
            raise _DamageError(f"{path} was cut short or altered: a file does not match its SHA-256")
        point = _point(path, contents)
        row_files = [RowFile(**file) for file in point["row_files"]]
        rows = read_rows(run / REPLAY, point["row_width"], row_files)
    except PermissionError as error:
        raise CheckpointError(f"Cannot read {error.filename}: {error.strerror}.") from error
    except ValueError as error:
        raise _DamageError(str(error)) from error
    state = from_bytes(run, contents[STATE])
    return ResumePoint(steps, state, contents[ENVIRONMENTS], point["spec"], point["versions"], row_files, rows)


def _point(path: Path, contents: dict[str, bytes]) -> dict[str, Any]:
    if set(contents) == {STATE, ENVIRONMENTS}:
        raise CheckpointError(
            f"{path} was written by an earlier version of cvpo, which kept its replay in another way. Go on with that "
            f"version, or start a new run; its checkpoints can still be evaluated and exported."
        )
    point: dict[str, Any] = json.loads(contents.get(POINT, b"{}"))
    if point.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {point.get('format')}, and cvpo {__version__} reads format {FORMAT}. Go on with the "
            f"version that wrote it: cvpo {point.get('versions', {}).get('cvpo', 'unknown')}."
        )
    if set(contents) != {POINT, STATE, ENVIRONMENTS}:
        raise _DamageError(f"{path} was altered: its list of files is not that of a resume point")
    return point


def versions() -> dict[str, str]:
    """Of what decides how numbers are rounded."""
    packages = {name: version(name) for name in ("torch", "numpy", "gymnasium", "mujoco")}
    return {"cvpo": __version__, **packages, "cpu": torch.backends.cpu.get_cpu_capability()}
