"""Files and folders are written whole or not at all, whatever ends the writing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvpo.errors import BundleError
from cvpo.files import write_directory, write_file


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_directory(path, {"one": b"1"}, BundleError),
        lambda path: write_file(path, b"1"),
        lambda path: write_file(path, b"1", shared=True),
    ],
)
def test_an_interrupted_write_leaves_nothing(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
