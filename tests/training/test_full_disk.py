"""A disk that fills up during a run, a real one: nothing is lost but the newest checkpoint.

Where mounting is not allowed these are skipped; tests/commands/test_cli.py has the same with a limit on the size of
files.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvpo.errors import CheckpointError
from cvpo.training.trainer import resume, train
from tests.budget import Reports, never, small_config
from tests.runs import assert_same_run, saved

PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for a few runs."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(ballast: Path, pages_left: int) -> None:
    """Leave so many pages of a disk free."""
    size = 0
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                size += file.write(b"x" * PAGE)
        except OSError:
            file.truncate(size - size % PAGE - pages_left * PAGE)


def test_a_disk_that_fills_up_at_any_write_of_a_checkpoint_loses_only_that(disk: Path, tmp_path: Path) -> None:
    whole, origin, run, ballast = tmp_path / "whole", tmp_path / "origin", disk / "run", disk / "ballast"
    train(small_config(), whole, Reports(), never)
    first = Reports()
    train(small_config(), origin, first, first.stop_at(200))
    places: set[str] = set()
    for pages_left in (0, 5, 9, 10, 11, 20, 38):  # the checkpoint takes about 43
        shutil.copytree(origin, run)
        reports = Reports()

        def filled(reports: Reports = reports, pages_left: int = pages_left) -> bool:
            if reports.last is not None and reports.last.steps == 300 and not ballast.exists():
                fill(ballast, pages_left)
            return False

        with pytest.raises(CheckpointError, match=r"No space left on device.*Free space") as caught:
            resume(run, reports, filled)
        places |= set(re.findall(rf"Cannot write (?:to )?{run}(?:/(\w+))?", str(caught.value)))
        assert saved(run).steps == 200
        ballast.unlink()
        resume(run, Reports(), never)
        assert_same_run(whole, run)
        shutil.rmtree(run)
    assert places >= {"", "checkpoints", "replay", "resume"}, "each part of it has found the disk full"


def test_a_disk_that_is_full_from_the_start_is_said_and_the_run_begins_when_there_is_room(
    disk: Path, tmp_path: Path
) -> None:
    run, ballast = disk / "run", disk / "ballast"
    config = small_config()
    train(config, tmp_path / "whole", Reports(), never)
    fill(ballast, 3)  # for the folder, the lock and the config
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(config, run, Reports(), never)
    ballast.unlink()
    resume(run, Reports(), never)
    assert_same_run(tmp_path / "whole", run)
