"""Rows of float32 in files that are only ever appended to: a checkpoint writes what is new, not all there is.

Rows are numbered from the beginning of the run. A file `FIRST.rows` holds those from number FIRST on, and is left for
the next one when it is full. A record says how many rows of each file count and what their SHA-256 is: rows after them
are of a run that was killed before it had made a record of them, and are written over.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvpo.files import fsync_directory, make_directory


@dataclass(frozen=True)
class RowFile:
    """The rows of one file that count."""

    first: int
    count: int
    sha256: str

    @property
    def end(self) -> int:
        """Number of the row after the last."""
        return self.first + self.count

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.first:012d}.rows"


class RowLog:
    """The rows of one folder. One process at a time writes there."""

    def __init__(self, folder: Path, width: int, file_rows: int) -> None:
        """Say where the rows are; nothing is read or written yet.

        Args:
            folder: made with the first row.
            width: numbers in a row.
            file_rows: rows of a full file.
        """
        self.folder, self.width, self.file_rows = folder, width, file_rows
        self.files: list[RowFile] = []
        self._hash = hashlib.sha256()  # of the last file's rows

    def append(self, first: int, rows: NDArray[np.float32]) -> None:
        """Bring rows [n, width] to disk, the first of them with that number; on return they are there.

        Where `first` is not the number after the last row, rows are left out, and a new file begins.

        Raises:
            OSError: the disk is full. What was there is intact; the same rows may be appended again.
        """
        while len(rows):
            last = self.files[-1] if self.files else None
            if last is None or last.end != first or last.count >= self.file_rows:
                last, self._hash = self._begin(first), hashlib.sha256()
            part = np.ascontiguousarray(rows[: self.file_rows - last.count])
            with (self.folder / last.name).open("r+b") as file:
                file.seek(last.count * self.width * part.itemsize)
                file.write(part.data)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            self._hash.update(part.data)
            self.files[-1] = RowFile(last.first, last.count + len(part), self._hash.hexdigest())
            first, rows = first + len(part), rows[len(part) :]

    def go_on(self, files: Sequence[RowFile]) -> None:
        """Go on after the rows of a record; what is beyond them is written over."""
        self.files = list(files)
        self._hash = hashlib.sha256()
        for rows in read_rows(self.folder, self.width, files[-1:]):
            self._hash.update(rows.data)

    def keep(self, files: Sequence[RowFile]) -> None:
        """Remove every file but these."""
        names = {file.name for file in files}
        self.files = [file for file in self.files if file.name in names]
        for path in self.folder.glob("*.rows"):
            if path.name not in names:
                path.unlink()

    def _begin(self, first: int) -> RowFile:
        make_directory(self.folder)
        file = RowFile(first, 0, "")
        (self.folder / file.name).touch()
        fsync_directory(self.folder)
        self.files.append(file)
        return file


def read_rows(folder: Path, width: int, files: Sequence[RowFile]) -> list[NDArray[np.float32]]:
    """The rows of a record, [count, width] per file, mapped into memory: read them before more are appended.

    Raises:
        ValueError: a file is missing, cut short or altered; says which.
    """
    return [_read(folder / file.name, width, file) for file in files]


def _read(path: Path, width: int, file: RowFile) -> NDArray[np.float32]:
    try:
        rows = np.memmap(path, np.float32, "r", shape=(file.count, width))  # ValueError if the file is shorter
        intact = hashlib.sha256(rows.data).hexdigest() == file.sha256
    except PermissionError:
        raise
    except (OSError, ValueError):
        intact = False
    if not intact:
        raise ValueError(f"{path} was cut short or altered: its rows do not match their SHA-256")
    return rows
