"""One process trains in a folder: a second one is told which, and a dead one is not in the way."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cvpo.errors import CheckpointError
from cvpo.training.lock import locked


def hold(run: Path) -> subprocess.Popen[str]:
    code = (
        "import pathlib, sys, time\n"
        "from cvpo.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), print):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_folder_where_a_process_trains_is_refused_with_its_name_until_it_is_killed(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        with (
            pytest.raises(CheckpointError, match=rf"is being trained by process {holder.pid} on .+\. Wait until"),
            locked(tmp_path, pytest.fail),
        ):
            pytest.fail("both had it")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path, pytest.fail):
            assert str(os.getpid()) in (tmp_path / "lock").read_text()
    with locked(tmp_path, pytest.fail):  # and again
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"Cannot write .*nowhere/lock: No such file"),
        locked(tmp_path / "nowhere", pytest.fail),
    ):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    with locked(tmp_path, said.append):
        assert "without locks" in said[0]
