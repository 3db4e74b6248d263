"""The `cvpo` command as a user types it, in this process or in one of its own, and a run that takes a second."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from cvpo.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
DRIFT = "tests.envs.toys:drift"  # 20 steps; costs `cost` (0 or 1 a step) and `cost_fuel`; observation and action [2]
STEPS = 600
SMALL = {
    "environment.workers": "0",
    "schedule.evaluation_workers": "0",
    "schedule.warmup_steps": "200",
    "schedule.warmup_updates": "5",
    "schedule.updates_per_step": "0.1",
    "schedule.checkpoint_every": "200",
    "schedule.evaluation_episodes": "4",
    "replay.batch_size": "32",
    "network.hidden": "16",
}


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line that says what is wrong; fails where there is another line, a traceback, or no failure."""
        lines = self.err.strip().splitlines()
        assert self.code == 1, self
        assert len(lines) == 1, self
        return lines[0]

    @property
    def usage_error(self) -> str:
        """What is wrong with how the command was used, which comes with the usage and exit status 2."""
        lines = self.err.strip().splitlines()
        assert self.code == 2, self
        assert lines[0].lower().startswith("usage: cvpo"), self
        assert "error: " in lines[-1].lower(), self
        assert "Traceback" not in self.err, self
        return lines[-1]


def cvpo(*arguments: str | Path) -> Outcome:
    """Run `cvpo ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    command = ["cvpo", *map(str, arguments)]
    with mock.patch.object(sys, "argv", command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*arguments: str | Path) -> Outcome:
    """The same, where it must not fail."""
    outcome = cvpo(*arguments)
    assert outcome.code == 0, outcome
    return outcome


@contextlib.contextmanager
def spawned(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`cvpo ARGUMENTS` as a process, at the head of its own group as a shell would have it; killed in the end."""
    interrupt = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests in the background ignore it, children too
    process = subprocess.Popen(
        [sys.executable, "-m", "cvpo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    signal.signal(signal.SIGINT, interrupt)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def run_process(*arguments: str | Path) -> Outcome:
    """Run `cvpo ARGUMENTS` as a process, to its end."""
    with spawned(*arguments) as process:
        out, err = process.communicate(timeout=300)
        return Outcome(process.returncode, out, err)


def small(**settings: str) -> list[str]:
    """Arguments that make a run small; a setting is named with a double underscore for the dot."""
    wanted = SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    return [argument for name, value in wanted.items() for argument in ("--set", f"{name}={value}")]


def train(out: Path, *arguments: str) -> Outcome:
    """Train a small policy in Drift; the rest of the arguments is the caller's."""
    return succeed("train", DRIFT, "--steps", str(STEPS), "--out", out, *small(), *arguments)
