"""Rows that are appended: what was recorded comes back, what is damaged is noticed, what came later is written over."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cvpo.training.rowlog import RowFile, RowLog, read_rows


def rows(first: int, end: int) -> NDArray[np.float32]:
    """Rows of three numbers; row i begins with i."""
    return np.outer(np.arange(first, end), [1, 10, 100]).astype(np.float32)


def log(folder: Path, file_rows: int = 10) -> RowLog:
    return RowLog(folder / "log", 3, file_rows)


def read(folder: Path, files: list[RowFile]) -> list[float]:
    """The first number of each row."""
    return [float(value) for part in read_rows(folder / "log", 3, files) for value in part[:, 0]]


def test_rows_come_back_from_files_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    one = log(tmp_path)
    for first, end in ((0, 4), (4, 17), (17, 17), (17, 33)):
        one.append(first, rows(first, end))
    assert [(file.first, file.count) for file in one.files] == [(0, 10), (10, 10), (20, 10), (30, 3)]
    assert read(tmp_path, one.files) == list(range(33))
    np.testing.assert_array_equal(read_rows(tmp_path / "log", 3, one.files)[1], rows(10, 20))


def test_what_was_there_is_not_written_again(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.append(0, rows(0, 15))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "log").iterdir()}
    one.append(15, rows(15, 18))
    path = tmp_path / "log" / "000000000000.rows"
    assert path.stat().st_mtime_ns == before[path.name]
    assert sum(path.stat().st_size for path in (tmp_path / "log").iterdir()) == 18 * 12


def test_an_earlier_record_stays_true(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.append(0, rows(0, 14))
    record = list(one.files)
    one.append(14, rows(14, 40))
    assert read(tmp_path, record) == list(range(14))


def test_rows_after_a_record_are_written_over(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.append(0, rows(0, 14))
    record = list(one.files)
    one.append(14, rows(14, 40) + 0.5)  # of a run that was killed then
    other = log(tmp_path)
    other.go_on(record)
    other.append(14, rows(14, 16))
    assert read(tmp_path, other.files) == list(range(16))
    assert (tmp_path / "log" / "000000000010.rows").stat().st_size == 6 * 12
    other.append(16, rows(16, 33))
    assert read(tmp_path, other.files) == list(range(33))


def test_it_goes_on_in_the_midst_of_a_file_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    straight, first = log(tmp_path / "straight"), log(tmp_path / "stopped")
    straight.append(0, rows(0, 5))
    first.append(0, rows(0, 5))
    second = log(tmp_path / "stopped")
    second.go_on(first.files)
    for one in (straight, second):
        one.append(5, rows(5, 25))
    assert second.files == straight.files


def test_rows_that_were_left_out_begin_a_new_file(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.append(0, rows(0, 4))
    one.append(100, rows(100, 103))
    assert [(file.first, file.count) for file in one.files] == [(0, 4), (100, 3)]
    assert read(tmp_path, one.files[1:]) == [100, 101, 102]


def test_files_that_nothing_needs_are_removed(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.append(0, rows(0, 35))
    one.keep(one.files[2:])
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["000000000020.rows", "000000000030.rows"]
    one.append(35, rows(35, 37))
    assert read(tmp_path, one.files) == list(range(20, 37))


@pytest.mark.parametrize("damage", ["altered", "cut", "removed"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    one = log(tmp_path)
    one.append(0, rows(0, 25))
    path = tmp_path / "log" / "000000000010.rows"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(data if damage == "altered" else data[:-1])
    with pytest.raises(ValueError, match=r"log/000000000010\.rows was cut short or altered"):
        read(tmp_path, one.files)
    assert read(tmp_path, [one.files[0], one.files[2]]) == [*range(10), *range(20, 25)]


def test_a_full_disk_leaves_what_was_there_and_the_rows_can_be_appended_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = log(tmp_path)
    one.append(0, rows(0, 8))
    record = list(one.files)
    fsync, calls = os.fsync, iter(range(10))

    def full(descriptor: int) -> None:
        if next(calls) >= 2:  # the first file, the folder of the second; then the second itself
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        one.append(8, rows(8, 15))
    monkeypatch.undo()
    assert read(tmp_path, record) == list(range(8))
    one.append(10, rows(10, 15))  # two of them had come to disk
    assert read(tmp_path, one.files) == list(range(15))
