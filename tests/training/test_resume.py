"""Resume points: back as they were, refused when a byte is missing or altered, safe whenever a run is killed."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvpo.envs import EnvSpec
from cvpo.errors import CheckpointError
from cvpo.files import write_verified
from cvpo.learning.replay import Replay
from cvpo.learning.returns import NStepReturn
from cvpo.training import resume
from cvpo.training.resume import FORMAT, ResumePoint, ResumePoints, load_resume_point

CAPACITY = 64  # in files of 4 rows
SPEC = EnvSpec(
    env_id="Env-v0",
    observation_size=3,
    action_low=np.array([-1.0, 0.1]),
    action_high=np.array([1.0, 1 / 3]),
    cost_names=("cost",),
    max_episode_steps=40,
    control_period_ms=None,
)


class Run:
    """A run that stores transitions, the reward of each its number, and saves resume points."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replay = Replay(CAPACITY, 3, 2, 1)
        self.points = ResumePoints(path, self.replay, SPEC)

    def store(self, count: int) -> None:
        for i in range(self.replay.total, self.replay.total + count):
            row = np.full(3, i, np.float32)
            self.replay.add(row, row[:2], NStepReturn(i, np.array([i]), 0.9, np.array([0.9])), row + 1)

    def save(self, steps: int) -> int:
        return self.points.save(steps, state(steps), f"environments {steps}".encode())

    def resume(self) -> "tuple[Run, ResumePoint]":
        """As a new process would."""
        point, run = newest(self.path), Run(self.path)
        point.restore_replay(run.replay)
        run.points.go_on(point)
        return run, point


def state(steps: int) -> dict[str, Any]:
    return {"weights": torch.arange(3.0) + steps, "big": 2**100, "list": [1.5, None]}


def newest(path: Path, said: list[str] | None = None) -> ResumePoint:
    point = load_resume_point(path, pytest.fail if said is None else said.append)
    assert point is not None
    return point


def check(point: ResumePoint, steps: int, total: int) -> None:
    """The point is the one of that step, with the newest of that many transitions."""
    assert point.steps == steps
    assert torch.equal(point.state.pop("weights"), torch.arange(3.0) + steps)
    assert point.state == {"big": 2**100, "list": [1.5, None]}
    assert point.environments == f"environments {steps}".encode()
    replay = Replay(CAPACITY, 3, 2, 1)
    point.restore_replay(replay)
    assert replay.total == total
    numbers = np.arange(max(0, total - CAPACITY), total)
    np.testing.assert_array_equal(replay.reward[numbers % CAPACITY], numbers)
    np.testing.assert_array_equal(replay.next_observation[numbers % CAPACITY, 2], numbers + 1)


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def filled(path: Path) -> Run:
    """Points at 1,000, 2,000 and 3,000 steps, of 10, 20 and 30 transitions; the first is gone."""
    run = Run(path)
    for steps in (1000, 2000, 3000):
        run.store(10)
        run.save(steps)
    return run


# Back as they were.


def test_a_point_comes_back(tmp_path: Path) -> None:
    filled(tmp_path)
    check(newest(tmp_path), 3000, 30)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    filled(tmp_path)
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["0000002000", "0000003000"]


def test_a_run_that_goes_on_leaves_what_one_that_was_not_stopped_leaves(tmp_path: Path) -> None:
    straight = filled(tmp_path / "straight")
    stopped, _ = filled(tmp_path / "stopped").resume()
    for steps in range(4000, 30_000, 1000):  # far enough for the ring to go round four times
        for run in (straight, stopped):
            run.store(10)
            run.save(steps)
        if steps % 3000 == 0:
            stopped, _ = stopped.resume()
    check(newest(stopped.path), 29_000, 290)
    assert files(stopped.path) == files(straight.path)
    for name in files(straight.path):
        assert (stopped.path / name).read_bytes() == (straight.path / name).read_bytes(), name


def test_a_save_writes_what_is_new_and_what_is_overwritten_leaves_the_disk(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for steps in range(1000, 50_000, 1000):
        run.store(10)
        small = run.save(steps)
    row_bytes = 4 * (3 + 2 + 1 + 1 + 1 + 1 + 3)
    others = sum(path.stat().st_size for path in (tmp_path / "resume" / "0000049000").iterdir())
    assert small <= 10 * row_bytes + others
    stored = sum(path.stat().st_size for path in (tmp_path / "replay").iterdir()) // row_bytes
    # The newest 64, the 10 before them that the older point needs, and what else the oldest file of 4 has.
    assert CAPACITY + 10 <= stored <= CAPACITY + 10 + 4
    check(newest(tmp_path), 49_000, 490)


def test_a_ring_that_goes_round_between_two_points_keeps_its_newest(tmp_path: Path) -> None:
    run = filled(tmp_path)
    run.store(200)
    run.save(4000)
    check(newest(tmp_path), 4000, 230)
    run, _ = run.resume()
    run.store(3)
    run.save(5000)
    check(newest(tmp_path), 5000, 233)


def test_a_run_without_a_point_has_none(tmp_path: Path) -> None:
    assert load_resume_point(tmp_path, pytest.fail) is None


def test_only_its_own_leftovers_are_removed(tmp_path: Path) -> None:
    run = filled(tmp_path)
    (tmp_path / "resume" / ".0000004000.ab12").mkdir()
    (tmp_path / "resume" / ".0000001000.removed").mkdir()
    (tmp_path / "resume" / ".nfs0001").touch()  # a file that was removed while it was open, on NFS
    run.resume()
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == [".nfs0001", "0000002000", "0000003000"]


# Damaged.


def harm(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    match damage:
        case "altered":
            data[len(data) // 2] ^= 1
        case "cut":
            del data[-1]
        case "emptied":
            data.clear()
        case "removed":
            path.unlink()
            return
    path.write_bytes(data)


NAMES = ["state.pt", "environments.bin", "point.json", "sha256.json", "replay"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["altered", "cut", "emptied", "removed"])
def test_a_damaged_point_is_passed_over_for_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    filled(tmp_path)
    # Rows 20 to 29 are new in the newest point; the files of 4 rows that hold them begin at 20, 24 and 28.
    harm(tmp_path / ("replay/000000000024.rows" if name == "replay" else f"resume/0000003000/{name}"), damage)
    said: list[str] = []
    check(newest(tmp_path, said), 2000, 20)
    (sentence,) = said
    where = "replay/000000000024.rows" if name == "replay" else "resume/0000003000"
    assert sentence.startswith(f"{tmp_path}/{where} was cut short or altered")
    assert sentence.endswith("going on from 2,000 steps, the resume point before")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_went_on_from_the_point_before_writes_the_damaged_one_anew(tmp_path: Path, name: str) -> None:
    filled(tmp_path / "straight")
    filled(tmp_path / "harmed")
    harm(
        tmp_path / ("harmed/replay/000000000024.rows" if name == "replay" else f"harmed/resume/0000003000/{name}"),
        "cut",
    )
    point, run = newest(tmp_path / "harmed", []), Run(tmp_path / "harmed")
    point.restore_replay(run.replay)
    run.points.go_on(point)
    assert [path.name for path in (run.path / "resume").iterdir()] == ["0000002000"]
    run.store(10)
    run.save(3000)
    check(newest(run.path), 3000, 30)
    assert files(run.path) == files(tmp_path / "straight")


def test_when_both_are_damaged_nothing_is_resumed(tmp_path: Path) -> None:
    filled(tmp_path)
    harm(tmp_path / "replay" / "000000000000.rows", "altered")  # both need it
    with pytest.raises(CheckpointError, match=r"000000000000\.rows was cut short.*no resume point before it is intact"):
        load_resume_point(tmp_path, lambda text: None)


def test_checksums_cannot_be_made_to_cover_less(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "resume" / "0000003000" / "sha256.json"
    checksums = json.loads(path.read_text())
    path.write_text(json.dumps({name: checksums[name] for name in ("point.json", "state.pt")}))
    said: list[str] = []
    check(newest(tmp_path, said), 2000, 20)
    assert "is not that of a resume point" in said[0]


# Of something else.


def test_a_point_of_the_version_before_is_refused(tmp_path: Path) -> None:
    write_verified(
        tmp_path / "resume" / "0000001000", {"state.pt": b"all of it", "environments.bin": b""}, CheckpointError
    )
    with pytest.raises(CheckpointError, match=r"0000001000 was written by an earlier version of cvpo.*Go on with that"):
        load_resume_point(tmp_path, pytest.fail)


def test_a_point_of_a_later_format_is_refused_with_the_version_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(resume, "FORMAT", FORMAT + 1)
        later.setattr(resume, "__version__", "7.1.0")
        filled(tmp_path)
    refused = rf"has format {FORMAT + 1}, and cvpo 0\.\d+\.\d+ reads format {FORMAT}.*cvpo 7\.1\.0\."
    with pytest.raises(CheckpointError, match=refused):
        load_resume_point(tmp_path, pytest.fail)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"env_id": "Other-v0"}, "env_id Env-v0, and now env_id is Other-v0"),
        ({"observation_size": 4}, "observation_size 3, and now observation_size is 4"),
        ({"cost_names": ("cost", "fuel")}, r"cost_names \['cost'\], and now cost_names is \['cost', 'fuel'\]"),
        ({"action_high": np.ones(2)}, "action_high"),
    ],
)
def test_another_environment_is_refused_with_what_differs(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    filled(tmp_path)
    point = newest(tmp_path)
    point.check_spec(tmp_path, SPEC)
    with pytest.raises(CheckpointError, match=sentence):
        point.check_spec(tmp_path, EnvSpec(**(vars(SPEC) | change)))


def test_a_point_from_before_closeness_goes_on_where_the_environment_names_none(tmp_path: Path) -> None:
    filled(tmp_path)
    point = newest(tmp_path)
    del point.spec["closeness"]
    point.check_spec(tmp_path, SPEC)
    with pytest.raises(CheckpointError, match=r"with closeness \[\], and now closeness is \[1\]. Put the environment"):
        point.check_spec(tmp_path, replace(SPEC, closeness=(1,)))


def test_what_the_run_was_made_with_before_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    assert newest(tmp_path).warning() is None
    then = resume.versions()
    monkeypatch.setattr(resume, "versions", lambda: then | {"torch": "9.9.9", "cpu": "none"})
    assert newest(tmp_path).warning() == (
        f"The run goes on, but not to the bit: with torch 9.9.9 instead of {then['torch']}, "
        f"cpu none instead of {then['cpu']}."
    )


# Killed.


def forked(work: Any) -> int:
    """Do some work in a fork of this process, and give the status that it ended with."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def kill_at(number: int, run: Path) -> None:
    """Kill this process when it does that number of changes (from 0 on) to the folder of the run."""
    changes: Iterator[int] = iter(range(10_000))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        changing = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changing and str(run) in str(arguments[0]) and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def test_a_run_killed_at_any_change_to_its_folder_has_the_point_before_or_the_new_one(tmp_path: Path) -> None:
    """Every change that a save makes: temporary folders, rows, renames, and what is removed."""
    origin = filled(tmp_path / "origin")
    for steps in range(4000, 15_000, 1000):  # until each save removes rows too
        origin.store(10)
        origin.save(steps)
    seen = set()
    for number in range(200):
        path = tmp_path / str(number)

        def save(path: Path = path, number: int = number) -> None:
            os.system(f"cp -r {origin.path} {path}")
            run, point = Run(path).resume()
            assert point.steps == 14_000
            run.store(10)
            kill_at(number, path)
            run.save(15_000)

        status = forked(save)
        point = newest(path)
        seen.add(point.steps)
        check(point, point.steps, 140 if point.steps == 14_000 else 150)
        run, point = Run(path).resume()  # and it goes on
        run.store(160 - run.replay.total)
        run.save(16_000)
        check(newest(path), 16_000, 160)
        assert not list((path / "resume").glob(".*"))
        assert len(list((path / "resume").iterdir())) == 2
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert number > 15
    assert seen == {14_000, 15_000}
