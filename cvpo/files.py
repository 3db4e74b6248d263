"""Writing files and folders whole or not at all, also when the machine stops in the midst of it."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from cvpo.errors import CvpoError

CHECKSUMS = "sha256.json"


def write_directory(path: Path, contents: Mapping[str, bytes], error_type: type[CvpoError]) -> None:
    """Write a new folder of files: a temporary name beside it, fsync, rename. What exists under `path` was whole.

    Raises:
        error_type: the parent cannot be written, the disk is full, or `path` is there already.
    """
    temporary: Path | None = None
    try:
        make_directory(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        for name, data in contents.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)
        fsync_directory(temporary)
        temporary.rename(path)
        fsync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise error_type(
            f"Cannot write {path}: {reason}. Free space or choose another folder; nothing half-written was kept."
        ) from error
    finally:
        if temporary is not None:  # it is there only where the writing broke off
            shutil.rmtree(temporary, ignore_errors=True)


def write_verified(path: Path, contents: Mapping[str, bytes], error_type: type[CvpoError]) -> None:
    """Write a new folder as `write_directory`, with the SHA-256 of its files, so that `read_verified` can read it."""
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_directory(path, {**contents, CHECKSUMS: json.dumps(checksums).encode()}, error_type)


def read_verified(path: Path) -> dict[str, bytes] | None:
    """The files of a folder of `write_verified`, or None if one is missing, cut short or altered.

    Raises:
        PermissionError: a file may not be read.
    """
    try:
        checksums = json.loads((path / CHECKSUMS).read_bytes())
        contents = {name: (path / name).read_bytes() for name in checksums}
        intact = all(hashlib.sha256(data).hexdigest() == checksums[name] for name, data in contents.items())
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return contents if intact else None


def write_file(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Write a file in place of the one before, or leave that as it is.

    Args:
        path: of the file.
        data: all of it.
        shared: others may write it at the same time, so that the temporary file needs a name of its own.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}" if shared else f".{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it is there only where the writing broke off
            temporary.unlink()


def remove_directory(path: Path) -> None:
    """Remove a folder: under its name it is whole or gone, whenever the removal is cut off."""
    hidden = path.with_name(f".{path.name}.removed")
    if hidden.exists():  # of a removal that was cut off
        shutil.rmtree(hidden)
    path.rename(hidden)
    shutil.rmtree(hidden)


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of writes and removals that were cut off; only for the one who writes there.

    Theirs are the names that begin with a dot and a number of steps: a network file system has dotted files of its own.
    """
    if parent.is_dir():
        for leftover in parent.glob(".[0-9]*"):
            shutil.rmtree(leftover)


def make_directory(path: Path) -> None:
    """Make a folder that may be there already, and bring its name to disk."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Bring the names in a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
