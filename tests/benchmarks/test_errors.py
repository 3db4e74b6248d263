"""How a benchmark's command ends."""

import os
import subprocess
import sys

import pytest

from tests.command import ROOT


def ended(main: str, *, unread: bool) -> tuple[int, str]:
    """Exit status and stderr of a command that does what `main` says; nobody reads what it prints, if `unread`."""
    reading, writing = os.pipe()
    if unread:
        os.close(reading)
    code = f"from benchmarks.errors import BenchmarkError, run\ndef main(): {main}\nrun(main)"
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    if not unread:
        os.close(reading)
    return done.returncode, done.stderr


@pytest.mark.parametrize("length", [1, 100_000])
def test_a_pipe_that_is_closed_early_is_told_by_the_exit_status_alone(length: int) -> None:
    assert ended(f"print({length} * 'x')", unread=True) == (1, "")


def test_a_pipe_of_a_contestant_that_breaks_is_no_end_without_a_word() -> None:
    code, said = ended("raise BrokenPipeError('of a contestant')", unread=False)
    assert code == 1
    assert said.endswith("BrokenPipeError: of a contestant\n")


def test_what_cannot_be_done_is_one_sentence() -> None:
    assert ended("raise BenchmarkError('There is no peer.')", unread=False) == (1, "error: There is no peer.\n")
    read = "from pathlib import Path; from cvpo.training.checkpoint import read_config; read_config(Path('nowhere'))"
    code, said = ended(read, unread=False)
    assert (code, said.splitlines()) == (1, [said.strip()])
    assert said.startswith("error: nowhere is not a run:")
    served = "from serve.errors import StartupError; raise StartupError('It is not calibrated.')"
    assert ended(served, unread=False) == (1, "error: It is not calibrated.\n")
