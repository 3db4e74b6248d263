"""Writing folders whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cvpo.errors import CvpoError


def write_directory(path: Path, contents: Mapping[str, bytes], error_type: type[CvpoError]) -> None:
    """Write a new folder of files: a temporary name beside it, fsync, rename. What exists under `path` was whole.

    Raises:
        error_type: the parent cannot be written, the disk is full, or `path` is there already.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        for name, data in contents.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)
        _fsync_directory(temporary)
        temporary.rename(path)
        _fsync_directory(path.parent)
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror or str(error)
        raise error_type(
            f"Cannot write {path}: {reason}. Free space or choose another folder; nothing half-written was kept."
        ) from error


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
