"""serving.json: which versions of a policy are asked for, in one file that every server on the folder follows."""

import json
import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cvpo.bundle import MANIFEST
from cvpo.files import write_file
from serve.errors import PlanError

PLAN = "serving.json"

_MOST_BYTES = 64 * 1024  # of the file; a plan has some hundred
_REMEMBERED = 16  # versions; further back than anybody rolls back

Version = Annotated[int, Field(gt=0, lt=2**63)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Canary(_Model):
    """A version that a share of the callers gets instead of the served one."""

    version: Version
    share: Annotated[float, Field(ge=0, le=1)]


class ServingPlan(_Model):
    """What is asked for of one policy."""

    pinned: Version | None = None  # served where a request names no version; None: the highest that is not on trial
    canary: Canary | None = None
    shadow: Version | None = None  # computes beside the served version; its answers are not used
    history: tuple[Version, ...] = ()  # versions that plans have served, in order of time; what a rollback goes by

    @property
    def on_trial(self) -> frozenset[int]:
        """Versions that are not served to everybody unless they are pinned."""
        canary = () if self.canary is None else (self.canary.version,)
        return frozenset((*canary, *(() if self.shadow is None else (self.shadow,))))

    def followed_by(self, plan: "ServingPlan", *, served: int | None, then: int) -> "ServingPlan":
        """Return `plan` with the history of this one.

        Args:
            plan: what is asked for next.
            served: the version that is served now.
            then: the version that `plan` serves.
        """
        history = list(self.history)
        for version in (served, then):
            if version is not None and history[-1:] != [version]:
                history.append(version)
        return plan.model_copy(update={"history": tuple(history[-_REMEMBERED:])})

    def rolled_back(self, *, served: int | None, loaded: frozenset[int]) -> "ServingPlan | None":
        """Return the plan that pins the version served before, without canary or shadow; None where there is none.

        A second rollback goes one version further back, never to the one that was left, whenever that was served.
        """
        history = [version for version in self.history if version != served]
        by_itself = self.pinned is None and self.history[-1:] != (served,)  # as the highest, which a new bundle became
        if not by_itself:
            while history and history[-1] not in loaded:
                history.pop()
        if by_itself or not history:
            served_to_all = loaded - self.on_trial
            below = max((version for version in served_to_all if served is not None and version < served), default=None)
            if below is None:
                return None
            history.append(below)
        return ServingPlan(pinned=history[-1], history=tuple(history))


def plan_path(root: Path, name: str) -> Path | None:
    """Return where the plan of a policy belongs; None where it can have none: that folder is a bundle itself."""
    folder = root / name
    return None if holds_bundle(root) or holds_bundle(folder) else folder / PLAN


def holds_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle; one that cannot be read is none."""
    try:
        return (folder / MANIFEST).exists()
    except OSError:
        return False


def read_plan(path: Path) -> ServingPlan:
    """Read a plan.

    Raises:
        FileNotFoundError: there is no file.
        PlanError: it cannot be read, or is not a plan.
    """
    try:
        data = _read(path)
        _refuse_repeats(path, data)
        return ServingPlan.model_validate_json(data)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PlanError(f"Cannot read {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"{path}: {where + ': ' if where else ''}{first['msg']}. Correct the file.") from error


def _read(path: Path) -> bytes:
    """Read a plain file of a size within bounds. Links are followed: a ConfigMap's files are links.

    Raises:
        PlanError: it is another, and was not read.
        OSError: it cannot be read.
    """
    # Not waiting, for a pipe in the file's place would never open, and no other policy would be followed any more.
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PlanError(f"{path} is no plain file. Put one in its place.")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise PlanError(f"{path} is larger than {_MOST_BYTES:,} bytes, the most that a plan may be. Correct the file.")
    return data


def _refuse_repeats(path: Path, data: bytes) -> None:
    """Refuse a key that is there twice, of which JSON's readers would take the last without a word."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        for key, times in Counter(key for key, _ in pairs).items():
            if times > 1:
                raise PlanError(f"{path}: {key} is there {times} times. Keep one.")
        return dict(pairs)

    with suppress(ValueError, RecursionError):  # what is no JSON, or nested without end, is refused by who reads it
        json.loads(data, object_pairs_hook=once)


def write_plan(root: Path, name: str, plan: ServingPlan) -> None:
    """Write a policy's plan in place of the one before, whole or not at all, also when the machine stops.

    Raises:
        PlanError: the repository cannot be written, or has no place for a plan.
    """
    path = plan_path(root, name)
    if path is None:
        raise PlanError(
            f"There is no place for {PLAN}: {root} or {root / name} is itself a bundle, and bundles are immutable. "
            f"Arrange the bundles as {root.name}/{name}/VERSION."
        )
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(path, plan.model_dump_json(indent=2).encode() + b"\n", shared=True)  # by several servers
    except OSError as error:
        raise PlanError(
            f"Cannot write {path}: {error.strerror}. Where the server may only read the repository, change the file "
            "where it is made."
        ) from error
