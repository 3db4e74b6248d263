"""A run that is killed again and again ends bit for bit where the one ends that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cvpo.training.checkpoint import steps_of
from tests.command import DRIFT, ROOT, run_process, small
from tests.runs import assert_same_run, saved

STEPS, CHECKPOINT_EVERY = 4_000, 100
SETTINGS = small(
    environment__workers="1",
    schedule__updates_per_step="0.05",
    schedule__checkpoint_every=str(CHECKPOINT_EVERY),
    replay__capacity="800",  # goes round five times, in files of 50
    mstep__period="10",
)
PATIENCE_SECONDS = 300.0

# What a launcher does: it has imported what takes seconds, forks a process per line of its input, which becomes
# `cvpo ...`, and says how that ended. With `at`, the process kills itself at a change to its folder: the n-th whose
# name of an audit event and path are those.
LAUNCHER = """
import json, os, signal, sys
import cvpo.commands.report, cvpo.training.trainer
from cvpo.__main__ main

def become(argv, at):
    if at:
        event, part, number = at
        def audit(name, arguments):
            nonlocal number
            if name == event and part in str(arguments[0]):
                number -= 1
                if number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(audit)
    sys.argv = ["cvpo", *argv]
    main()

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ["CVPO_TEST"] = job["mark"]  # its simulators inherit it
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        become(job["argv"], job["at"])
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
""".replace("__main__ main", "__main__ import main")


class Launcher:
    """Starts `cvpo` as a process in a tenth of a second rather than in three."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        self.mark = f"test-{os.getpid()}-{time.monotonic_ns()}"

    def start(self, *argv: str | Path, at: tuple[str, str, int] | None = None) -> int:
        """The process that it has become."""
        job = {"argv": [str(argument) for argument in argv], "at": at, "log": str(self.log), "mark": self.mark}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The status that it ended with."""
        return self._answer()

    def simulators(self) -> list[int]:
        """Processes that those it started have started, and that are still there."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if f"CVPO_TEST={self.mark}".encode() in (folder / "environ").read_bytes():
                        found.append(int(folder.name))
                except OSError:  # it is gone, or not ours
                    continue
        return found

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@contextmanager
def launcher(log: Path) -> Iterator[Launcher]:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        yield Launcher(process, log)
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class Moment:
    """When a process is killed: at a change to the folder of the run, or a while after so many new resume points."""

    at: tuple[str, str, int] | None = None
    points: int = 0
    seconds: float = 0.0


def moments(seed: int) -> list[Moment]:
    """Eight in the midst of a checkpoint, one for each kind of change that it makes, and four at random."""
    changes = [
        ("open", "/checkpoints/.", 3),
        ("os.rename", "/checkpoints/.", 2),
        ("open", "/replay/", 4),
        ("open", "/resume/.", 6),
        ("os.rename", "/resume/.", 2),
        ("os.rename", "/resume/0", 3),  # what is older takes the name under which it is removed
        ("shutil.rmtree", "/resume/.", 2),
        ("os.remove", ".rows", 1),
    ]
    generator = random.Random(seed)
    planned = [Moment(change) for change in changes]
    planned += [Moment(points=points, seconds=generator.uniform(0, 0.2)) for points in (0, 0, 1, 2)]
    generator.shuffle(planned)
    return planned


def newest(run: Path) -> int:
    """Steps of the newest resume point, 0 if there is none."""
    return max(steps_of(run, "resume"), default=0)


def has_come(run: Path, pid: int, steps: int) -> bool:
    """Whether that process trains, and has come to a resume point that far."""
    return f"process {pid} " in (run / "lock").read_text() and newest(run) >= steps


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.001)


def test_a_run_killed_many_times_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    begin = ("train", DRIFT, "--steps", str(STEPS), *SETTINGS)
    assert run_process(*begin, "--out", straight).code == 0

    kills = 0
    with launcher(tmp_path / "log") as start:
        pid = start.start(*begin, "--out", run)
        wait_until((run / "config.json").exists, "the run does not begin")
        os.kill(pid, signal.SIGKILL)  # before the first checkpoint
        assert os.WTERMSIG(start.wait()) == signal.SIGKILL
        for moment in moments(seed=4):
            target = newest(run) + moment.points * CHECKPOINT_EVERY
            pid = start.start("train", "--resume", run, at=moment.at)
            if moment.at is None:
                wait_until(partial(has_come, run, pid, target), "the run does not go on")
                time.sleep(moment.seconds)
                os.kill(pid, signal.SIGKILL)
            status = start.wait()
            assert os.WIFSIGNALED(status), f"the run ended before it was killed: {(tmp_path / 'log').read_text()}"
            assert os.WTERMSIG(status) == signal.SIGKILL
            kills += 1
            wait_until(lambda: not start.simulators(), "a simulator outlived the run")
        before = saved(run).steps
        start.start("train", "--resume", run)
        assert start.wait() == 0, (tmp_path / "log").read_text()

    assert kills == 12
    assert 0 < before < STEPS
    assert_same_run(straight, run)
    files = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if "tensorboard" not in str(path)}
        for folder in (straight, run)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith((".pt", ".rows", ".jsonl", ".csv")) and name not in ("metrics.jsonl",):
            assert (straight / name).read_bytes() == (run / name).read_bytes(), name
