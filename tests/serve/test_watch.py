"""What happens to a server's versions when the files of its repository change."""

import errno
import gc
import logging
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvpo.bundle import MANIFEST, Bundle, make_keys, read_private_key, read_trusted_keys, sign_bundle
from serve.errors import NotFoundError, PlanError, RefusedBundleError, StartupError, UnavailableError
from serve.server.plan import PLAN, Canary, ServingPlan, write_plan
from serve.server.runtime import PolicyRuntime, load
from serve.server.watch import Watcher, find_bundles, load_repository
from serve.values import Deterministic, Situations
from tests.serve import bundles

PATIENCE_SECONDS = 30.0


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    """Has looked at version 1 of goal in REPOSITORY/goal/1."""
    bundles.write(tmp_path / "goal" / "1", bundles.manifest(version=1))
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    return watcher


def add(root: Path, version: int, **fields: object) -> Path:
    return bundles.write(root / "goal" / str(version), bundles.manifest(version=version, **fields))  # type: ignore[arg-type]


def served(watcher: Watcher) -> int:
    return watcher.repository.select("goal", None, "").served.version


def loaded(watcher: Watcher) -> list[int]:
    return list(watcher.repository.snapshot.policies["goal"].loaded)


def problem(watcher: Watcher) -> str:
    return watcher.repository.snapshot.policies["goal"].problem


# --- bundles --------------------------------------------------------------------------------------------------------


def test_bundles_are_found_at_most_two_folders_deep(tmp_path: Path) -> None:
    for name in ("a", "b/1", "b/2", "c/d/e", ".hidden", "b/.3.partial", "plain"):
        (tmp_path / name).mkdir(parents=True)
        if name != "plain":
            (tmp_path / name / MANIFEST).write_text("{}")
    (tmp_path / "file").write_text("")
    found, unreadable = find_bundles(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a", "b/1", "b/2"]
    assert not unreadable


def test_a_bundle_is_a_repository_of_one(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "bundle", bundles.manifest("goal", 3))
    assert find_bundles(path) == ([path], {})
    repository = load_repository(path, allow_uncalibrated=False)
    assert {name: list(policy.loaded) for name, policy in repository.snapshot.policies.items()} == {"goal": [3]}


def test_name_and_version_come_from_the_manifest_and_versions_ascend(tmp_path: Path) -> None:
    bundles.write(tmp_path / "x" / "first", bundles.manifest("goal", 10))
    bundles.write(tmp_path / "x" / "second", bundles.manifest("goal", 9))
    repository = load_repository(tmp_path, allow_uncalibrated=False)
    assert list(repository.snapshot.policies["goal"].loaded) == [9, 10]
    assert repository.select("goal", None, "").served.version == 10


def test_a_second_bundle_of_the_same_version_is_refused_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundles.write(tmp_path / "a")
    bundles.write(tmp_path / "b")
    with caplog.at_level(logging.INFO):
        snapshot = load_repository(tmp_path, allow_uncalibrated=False).snapshot
    assert list(snapshot.policies["goal"].loaded) == [1]
    assert list(snapshot.refused) == ["b"]
    assert "already served" in snapshot.refused["b"]
    (refused,) = [record for record in caplog.records if record.getMessage() == "bundle refused"]
    assert vars(refused)["fields"] == {"path": str(tmp_path / "b"), "reason": snapshot.refused["b"]}


def test_an_altered_bundle_is_left_out_and_the_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundles.write(tmp_path / "1", bundles.manifest(version=1))
    newest = bundles.write(tmp_path / "2", bundles.manifest(version=2))
    (newest / "policy.onnx").write_bytes(b"altered")
    repository = load_repository(tmp_path, allow_uncalibrated=False)
    assert repository.select("goal", None, "").served.version == 1
    assert "bundle refused" in caplog.messages


def test_a_bundle_without_calibration_is_served_only_with_leave(tmp_path: Path) -> None:
    bundles.write(tmp_path / "bundle", bundles.manifest(calibration=None))
    with pytest.raises(StartupError, match="--allow-uncalibrated"):
        load_repository(tmp_path, allow_uncalibrated=False)
    assert load_repository(tmp_path, allow_uncalibrated=True).snapshot.policies


def test_an_empty_folder_says_what_writes_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cvpo export"):
        load_repository(tmp_path, allow_uncalibrated=False)


def test_many_refused_bundles_point_to_the_log(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bundles.write(tmp_path / name, bundles.manifest(calibration=None))
    with pytest.raises(StartupError, match="all 2 bundles were refused"):
        load_repository(tmp_path, allow_uncalibrated=False)


def test_with_trusted_keys_only_what_one_of_them_signed_is_served(tmp_path: Path) -> None:
    key, public = make_keys(tmp_path / "release")
    path = bundles.write(tmp_path / "goal" / "1")
    watcher = Watcher(tmp_path, allow_uncalibrated=False, trusted=read_trusted_keys([public]))
    watcher.poll(first=True)
    assert "is not signed" in watcher.repository.snapshot.refused["goal/1"]
    sign_bundle(path, read_private_key(key))
    watcher.poll()
    assert served(watcher) == 1


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_repository_that_is_no_folder_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="is not a folder"):
        load_repository(tmp_path / name, allow_uncalibrated=False)


# --- bundles that come and go ---------------------------------------------------------------------------------------


def test_a_new_version_is_served_and_the_one_before_by_number(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    watcher.poll()
    assert served(watcher) == 2
    assert loaded(watcher) == [1, 2]


def test_a_first_bundle_is_served_when_it_comes(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    assert not watcher.repository.snapshot.ready
    add(tmp_path, 1)
    watcher.poll()
    assert watcher.repository.snapshot.ready
    assert served(watcher) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_who_answers_waits_for_short_slices_only_while_a_bundle_is_loaded(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    before, while_loading = sys.getswitchinterval(), []

    def record(bundle: Bundle) -> PolicyRuntime:
        while_loading.append(sys.getswitchinterval())
        if fails:
            raise RefusedBundleError("as it happens")
        return load(bundle)

    monkeypatch.setattr("serve.server.watch.load", record)
    add(tmp_path, 2)
    watcher.poll()
    assert while_loading == [pytest.approx(5e-4)]
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("spoil", ["altered", "uncalibrated", "graph"])
def test_a_bad_bundle_is_refused_and_the_old_goes_on(
    watcher: Watcher, tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    if spoil == "altered":
        (add(tmp_path, 2) / "critic.onnx").write_bytes(b"")
    elif spoil == "uncalibrated":
        add(tmp_path, 2, calibration=None)
    else:
        out_of_bounds = bundles.policy_graph(lambda text: text.replace("1.0, 2.0", "9.0, 2.0"))
        bundles.write(tmp_path / "goal" / "2", bundles.manifest(version=2), policy=out_of_bounds)
    for _ in range(4):
        watcher.poll()
    assert served(watcher) == 1
    assert list(watcher.repository.snapshot.refused) == ["goal/2"]
    assert watcher.repository.snapshot.refused["goal/2"]
    assert caplog.messages.count("bundle refused") == 1  # told once, and not tried again


def test_a_folder_whose_name_is_not_utf_8_is_refused_in_utf_8(tmp_path: Path) -> None:
    bundles.write(tmp_path / "good")
    (bundles.write(tmp_path / os.fsdecode(b"b\xff"), bundles.manifest(version=2)) / "critic.onnx").write_bytes(b"")
    refused = load_repository(tmp_path, allow_uncalibrated=False).snapshot.refused
    assert list(refused) == ["b\\xff"]
    assert refused["b\\xff"].encode()


def test_a_refused_bundle_is_tried_again_when_its_files_change(watcher: Watcher, tmp_path: Path) -> None:
    path = add(tmp_path, 2)
    whole = (path / "critic.onnx").read_bytes()
    (path / "critic.onnx").write_bytes(b"")
    watcher.poll()
    watcher.poll()
    assert watcher.repository.snapshot.refused
    (path / "critic.onnx").write_bytes(whole)
    watcher.poll()
    assert served(watcher) == 2
    assert not watcher.repository.snapshot.refused


def test_the_second_folder_of_a_version_is_served_once_the_first_is_gone(
    watcher: Watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = add(tmp_path, 2)
    bundles.write(tmp_path / "goal" / "two", bundles.manifest(version=2))
    for _ in range(4):
        watcher.poll()
    assert list(watcher.repository.snapshot.refused) == ["goal/two"]
    assert caplog.messages.count("bundle refused") == 1
    shutil.rmtree(first)
    watcher.poll()
    assert served(watcher) == 2
    assert not watcher.repository.snapshot.refused
    assert not problem(watcher)  # it is the second folder's, not the first one's that goes on from memory


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        ("cvpo.bundle.storage.os.open", OSError(errno.EMFILE, "Too many open files")),
        ("cvpo.bundle.storage.os.fstat", OSError(errno.EIO, "Input/output error")),
        ("serve.server.watch.read_bundle", OSError(errno.EIO, "Input/output error")),
        ("serve.server.graph.ort.InferenceSession", MemoryError("std::bad_alloc")),
        ("serve.server.graph.ort.InferenceSession", MemoryError()),
    ],
)
def test_a_bundle_that_the_machine_could_not_read_is_refused_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str, error: Exception
) -> None:
    add(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fails, fail)
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    for _ in range(3):
        watcher.poll()
        assert watcher.repository.snapshot.refused["goal/1"]
    assert caplog.messages.count("bundle refused") == 1
    monkeypatch.undo()
    watcher.poll()
    assert served(watcher) == 1
    assert not watcher.repository.snapshot.refused


@pytest.mark.parametrize("wrong", ["missing", "a link"])
def test_a_bundle_without_one_of_its_files_is_not_tried_again_until_it_is_there(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    file = add(tmp_path, 2) / "critic.onnx"
    file.rename(tmp_path / "critic.onnx")
    if wrong == "a link":
        file.symlink_to(tmp_path / "critic.onnx")
    for _ in range(2):
        watcher.poll()
    assert "critic.onnx" in watcher.repository.snapshot.refused["goal/2"]
    with monkeypatch.context() as patched:
        patched.delattr("serve.server.watch.read_bundle")
        watcher.poll()
    assert "critic.onnx" in watcher.repository.snapshot.refused["goal/2"]
    (tmp_path / "critic.onnx").rename(file)
    watcher.poll()
    assert served(watcher) == 2


def test_a_bundle_that_is_being_copied_is_waited_for(
    watcher: Watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = bundles.write(tmp_path / ".source", bundles.manifest(version=2))
    target = tmp_path / "goal" / "2"
    target.mkdir()
    for file in (MANIFEST, "MODEL_CARD.md", "golden.json", "critic.onnx"):
        shutil.copy(source / file, target)
        watcher.poll()
        assert served(watcher) == 1
    content = (source / "policy.onnx").read_bytes()
    with (target / "policy.onnx").open("wb") as copy:
        for begin in range(0, len(content), len(content) // 3):
            copy.write(content[begin : begin + len(content) // 3])
            copy.flush()
            watcher.poll()
    watcher.poll()
    assert served(watcher) == 2
    assert "bundle refused" not in caplog.messages


def test_a_version_whose_folder_is_gone_is_retired(watcher: Watcher, tmp_path: Path) -> None:
    path = add(tmp_path, 2)
    watcher.poll()
    shutil.rmtree(path)
    watcher.poll()
    assert served(watcher) == 1
    with pytest.raises(NotFoundError, match="this server has 1"):
        watcher.repository.select("goal", 2, "")


def test_the_last_version_goes_on_without_its_folder_until_another_comes(watcher: Watcher, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "goal")
    for _ in range(2):
        watcher.poll()
        assert served(watcher) == 1
        assert "its bundle is gone" in problem(watcher)
    add(tmp_path, 3)
    watcher.poll()
    assert loaded(watcher) == [3]
    assert not problem(watcher)


def test_a_repository_that_is_gone_for_a_while_changes_nothing(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    watcher.poll()
    away = tmp_path.with_name(tmp_path.name + "-away")
    tmp_path.rename(away)
    watcher.poll()
    assert loaded(watcher) == [1, 2]
    assert "is not a folder" in watcher.repository.snapshot.refused["."]
    away.rename(tmp_path)
    watcher.poll()
    assert loaded(watcher) == [1, 2]
    assert not watcher.repository.snapshot.refused


def lock(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have nobody read a folder: no mode of it would keep root out."""
    iterdir, stat = Path.iterdir, Path.stat

    def check(path: Path) -> None:
        if path.is_relative_to(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def checked_iterdir(self: Path) -> Iterator[Path]:
        check(self)
        return iterdir(self)

    def checked_stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        check(self.parent)
        return stat(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "iterdir", checked_iterdir)
    monkeypatch.setattr(Path, "stat", checked_stat)


def test_a_folder_that_cannot_be_read_is_refused_and_all_else_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, 1)
    (tmp_path / "locked").mkdir()
    lock(monkeypatch, tmp_path / "locked")
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    assert served(watcher) == 1
    add(tmp_path, 2)
    watcher.poll()
    assert served(watcher) == 2
    why = f"Cannot read {tmp_path / 'locked'}: Permission denied."
    assert watcher.repository.snapshot.refused == {"locked": why}
    assert caplog.messages.count("folder unreadable") == 1
    monkeypatch.undo()
    watcher.poll()
    assert not watcher.repository.snapshot.refused


def test_the_lost_and_found_of_a_volume_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, 1)
    for volume in (tmp_path, tmp_path / "goal"):
        (volume / "lost+found").mkdir()
        lock(monkeypatch, volume / "lost+found")
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    assert served(watcher) == 1
    assert not watcher.repository.snapshot.refused
    assert "folder unreadable" not in caplog.messages


@pytest.mark.parametrize("folder", ["goal", "goal/1", "."])
def test_versions_in_a_folder_that_cannot_be_read_go_on(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    lock(monkeypatch, tmp_path / folder)
    for _ in range(2):
        watcher.poll()
        assert loaded(watcher) == [1, 2]
        assert served(watcher) == 1
        assert list(watcher.repository.snapshot.refused) == [folder]


def test_a_repository_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(monkeypatch, tmp_path)
    with pytest.raises(StartupError, match=f"^Cannot read {tmp_path}: Permission denied.$"):
        load_repository(tmp_path, allow_uncalibrated=False)


def test_a_bundle_that_moves_is_the_same_version(watcher: Watcher, tmp_path: Path) -> None:
    (tmp_path / "goal" / "1").rename(tmp_path / "goal" / "one")
    watcher.poll()
    assert served(watcher) == 1
    assert not problem(watcher)
    assert not watcher.repository.snapshot.refused


def test_a_bundle_replaced_in_place_is_refused_and_the_one_in_memory_goes_on(watcher: Watcher, tmp_path: Path) -> None:
    path = tmp_path / "goal" / "1"
    for file in path.iterdir():
        os.utime(file)  # touched, not changed
    watcher.poll()
    assert not watcher.repository.snapshot.refused
    runtime = watcher.repository.select("goal", 1, "")
    shutil.rmtree(path)
    add(tmp_path, 1, cost_limit=(1.0, 1.0))
    watcher.poll()
    watcher.poll()
    assert watcher.repository.select("goal", 1, "") is runtime
    assert "immutable" in watcher.repository.snapshot.refused["goal/1"]


def test_retired_versions_are_let_go(watcher: Watcher, tmp_path: Path) -> None:
    in_flight = watcher.repository.select("goal", None, "")
    first = weakref.ref(in_flight)
    shutil.rmtree(tmp_path / "goal" / "1")
    second = None
    for version in (2, 3):
        path = add(tmp_path, version)
        watcher.poll()
        if version == 2:
            second = weakref.ref(watcher.repository.select("goal", None, ""))
        shutil.rmtree(path)
    add(tmp_path, 4)
    watcher.poll()
    assert loaded(watcher) == [4]
    gc.collect()
    assert second is not None
    assert second() is None
    assert first() is in_flight  # a request that began with it ends with it
    assert act(in_flight) == [0.25, -2.0]
    del in_flight
    gc.collect()
    assert first() is None


def act(runtime: PolicyRuntime) -> list[float]:
    situations = Situations(observation=[[1, 2, -1]], steps_left=[10], cost_allowed=[[1, 1]])
    return runtime.act(situations, Deterministic()).action[0]


# --- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_is_followed_and_so_is_its_removal(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    assert served(watcher) == 1
    write_plan(tmp_path, "goal", ServingPlan(canary=Canary(version=2, share=1.0)))
    watcher.poll()
    assert served(watcher) == 1
    assert watcher.repository.select("goal", None, "", "session").served.version == 2
    (tmp_path / "goal" / PLAN).unlink()
    watcher.poll()
    assert served(watcher) == 1  # for one look
    watcher.poll()
    assert served(watcher) == 2
    assert not problem(watcher)


def test_a_plan_beside_bundles_in_other_folders_is_followed_and_so_is_its_removal(tmp_path: Path) -> None:
    for version in (1, 2):
        bundles.write(tmp_path / f"goal-{version}", bundles.manifest(version=version))
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    assert served(watcher) == 1
    shutil.rmtree(tmp_path / "goal")
    for _ in range(2):
        watcher.poll()
    assert served(watcher) == 2
    assert not problem(watcher)


def test_a_plan_is_followed_from_the_first_look_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for version in (1, 2, 3):
        add(tmp_path, version)
    write_plan(tmp_path, "goal", ServingPlan(pinned=2))
    with caplog.at_level(logging.INFO):
        watcher = Watcher(tmp_path, allow_uncalibrated=False)
        watcher.poll(first=True)
    assert served(watcher) == 2
    assert caplog.messages.count("serving") == 1
    assert "plan not followed" not in caplog.messages


def test_a_plan_that_is_there_first_holds_when_the_bundle_comes(tmp_path: Path) -> None:
    add(tmp_path, 1)
    write_plan(tmp_path, "goal", ServingPlan(shadow=2))
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    assert problem(watcher) == "Version 2, the shadow, is not loaded."
    add(tmp_path, 2)
    watcher.poll()
    assert served(watcher) == 1
    assert not problem(watcher)


def test_a_broken_plan_is_told_and_the_one_before_goes_on(
    watcher: Watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    (tmp_path / "goal" / PLAN).write_text('{"pinned": ')
    add(tmp_path, 2)
    for _ in range(3):
        watcher.poll()
        assert served(watcher) == 1
        assert "JSON" in problem(watcher)
    assert caplog.messages.count("plan not followed") == 1
    write_plan(tmp_path, "goal", ServingPlan(pinned=2))
    watcher.poll()
    assert served(watcher) == 2
    assert not problem(watcher)


def test_a_plan_that_the_machine_could_not_read_is_read_again_at_each_look(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, 2)
    watcher.poll()
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))

    open_file = os.open

    def fail(path: Path | str, flags: int, **options: int) -> int:
        if Path(path).name == PLAN:
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path, flags, **options)

    monkeypatch.setattr(os, "open", fail)
    for _ in range(3):
        watcher.poll()
        assert served(watcher) == 2
        assert "Input/output error" in problem(watcher)
    assert caplog.messages.count("plan not followed") == 1
    monkeypatch.undo()
    watcher.poll()
    assert served(watcher) == 1
    assert not problem(watcher)


@pytest.mark.parametrize(
    "plan",
    [ServingPlan(pinned=1), ServingPlan(canary=Canary(version=2, share=0.0)), ServingPlan(shadow=2)],
    ids=["pin", "canary", "shadow"],
)
@pytest.mark.parametrize("away", ["root renamed", "volume of the root unmounted", "policy renamed", "policy unmounted"])
def test_a_plan_holds_while_its_folder_is_away(
    watcher: Watcher, tmp_path: Path, plan: ServingPlan, away: str, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", plan)
    watcher.poll()
    assert served(watcher) == 1
    folder = tmp_path if away.startswith(("root", "volume")) else tmp_path / "goal"
    elsewhere = tmp_path.with_name(f".{tmp_path.name}-away")
    folder.rename(elsewhere)
    if away.endswith("unmounted"):
        folder.mkdir()
    for _ in range(3):
        watcher.poll()
        assert served(watcher) == 1
        assert watcher.repository.snapshot.policies["goal"].plan == plan
        assert f"{PLAN} is gone with the bundles" in problem(watcher)
    if away.endswith("unmounted"):
        folder.rmdir()
    elsewhere.rename(folder)
    for _ in range(2):
        watcher.poll()
        assert served(watcher) == 1
        assert not problem(watcher)
    assert loaded(watcher) == [1, 2]


def test_a_folder_that_comes_back_bit_by_bit_is_served_by_its_plan_throughout(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    goal, away = tmp_path / "goal", tmp_path / ".goal"
    goal.rename(away)
    watcher.poll()
    goal.mkdir()
    for version in ("1", "2"):
        shutil.copytree(away / version, goal / version)
        for _ in range(3):
            watcher.poll()
            assert served(watcher) == 1
            assert "write {} into it to ask for nothing" in problem(watcher)
    (goal / PLAN).write_text("")  # not whole yet
    watcher.poll()
    (goal / PLAN).unlink()
    for _ in range(3):
        watcher.poll()
        assert served(watcher) == 1
    shutil.copy2(away / PLAN, goal / PLAN)
    watcher.poll()
    assert served(watcher) == 1
    assert not problem(watcher)


def test_a_folder_that_comes_back_asks_for_nothing_once_its_plan_says_so(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    (tmp_path / "goal").rename(tmp_path / ".goal")
    watcher.poll()
    (tmp_path / ".goal").rename(tmp_path / "goal")
    (tmp_path / "goal" / PLAN).write_text("{}")
    watcher.poll()
    assert served(watcher) == 2
    assert not problem(watcher)


def test_a_plan_that_is_removed_before_its_folder_holds(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    (tmp_path / "goal" / PLAN).unlink()
    add(tmp_path, 3)  # within a look the plan is read several times
    watcher.poll()
    assert served(watcher) == 1
    shutil.rmtree(tmp_path / "goal")
    for _ in range(2):
        watcher.poll()
        assert served(watcher) == 1
        assert f"{PLAN} is gone with the bundles" in problem(watcher)


def test_a_plan_whose_folder_is_renamed_holds(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    (tmp_path / "goal").rename(tmp_path / "renamed")
    for _ in range(3):
        watcher.poll()
        assert loaded(watcher) == [1, 2]
        assert served(watcher) == 1
        assert f"{PLAN} is gone with the bundles" in problem(watcher)


def test_a_plan_that_goes_away_while_it_is_read_is_read_once_it_is_back(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    write_plan(tmp_path, "goal", ServingPlan(pinned=2))

    open_file, away = os.open, tmp_path / ".goal"

    def unmount(path: Path | str, flags: int, **options: int) -> int:
        if Path(path).name == PLAN:
            Path(path).parent.rename(away)
        return open_file(path, flags, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", unmount)
        watcher.poll()
    assert served(watcher) == 1
    assert "is gone" in problem(watcher)
    away.rename(tmp_path / "goal")
    watcher.poll()
    assert served(watcher) == 2
    assert not problem(watcher)


def test_a_broken_plan_at_first_serves_nothing_rather_than_a_guess(tmp_path: Path) -> None:
    add(tmp_path, 1)
    (tmp_path / "goal" / PLAN).write_text("{}}")
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    assert not watcher.repository.snapshot.ready
    with pytest.raises(UnavailableError, match=PLAN):
        served(watcher)
    (tmp_path / "goal" / PLAN).write_text("{}")
    watcher.poll()
    assert served(watcher) == 1


def test_a_pinned_version_whose_folder_is_gone_goes_on(watcher: Watcher, tmp_path: Path) -> None:
    add(tmp_path, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    shutil.rmtree(tmp_path / "goal" / "1")
    watcher.poll()
    assert served(watcher) == 1
    assert "its bundle is gone" in problem(watcher)


# --- the thread -----------------------------------------------------------------------------------------------------


@pytest.fixture
def start(watcher: Watcher) -> Iterator[Callable[[float], threading.Semaphore]]:
    """Start the thread of the watcher, and return what is released after each look."""
    looks = threading.Semaphore(0)
    before = set(threading.enumerate())  # servers of other tests may have theirs

    def start(poll_seconds: float) -> threading.Semaphore:
        watcher.start(poll_seconds, looks.release)
        return looks

    yield start
    watcher.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), thread.name


def test_the_thread_finds_what_is_new(
    watcher: Watcher, tmp_path: Path, start: Callable[[float], threading.Semaphore]
) -> None:
    looks = start(0.01)
    add(tmp_path, 2)
    while served(watcher) == 1:  # looks of before count too
        assert looks.acquire(timeout=PATIENCE_SECONDS)
    assert served(watcher) == 2


def test_a_plan_that_is_set_is_followed_at_once_and_is_what_others_read(
    watcher: Watcher, tmp_path: Path, start: Callable[[float], threading.Semaphore]
) -> None:
    add(tmp_path, 2)
    watcher.poll()
    other = Watcher(tmp_path, allow_uncalibrated=False)
    other.poll(first=True)
    start(3600)  # nobody waits for the next look
    policy = watcher.set_plan("goal", ServingPlan(pinned=1), PATIENCE_SECONDS)
    assert policy.served is watcher.repository.select("goal", None, "")
    assert served(watcher) == 1
    other.poll()
    assert served(other) == 1


def test_a_plan_that_is_not_followed_in_time_is_unavailable(watcher: Watcher) -> None:
    with pytest.raises(UnavailableError, match="is written, but"):
        watcher.set_plan("goal", ServingPlan(pinned=1), 0.01)  # no thread looks


def test_where_a_plan_cannot_be_written_nothing_changes(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "bundle")
    watcher = Watcher(bundle, allow_uncalibrated=False)
    watcher.poll(first=True)
    with pytest.raises(PlanError, match="is itself a bundle"):
        watcher.set_plan("goal", ServingPlan(pinned=1), PATIENCE_SECONDS)
    watcher.poll()
    assert served(watcher) == 1
    assert not problem(watcher)


def test_the_thread_outlives_what_goes_wrong(
    watcher: Watcher,
    tmp_path: Path,
    start: Callable[[float], threading.Semaphore],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = threading.Event()

    def fail(root: Path) -> None:
        failed.set()
        raise RuntimeError("of a kind that nobody thought of")

    add(tmp_path, 2)
    monkeypatch.setattr("serve.server.watch.find_bundles", fail)
    looks = start(0.01)
    assert failed.wait(PATIENCE_SECONDS)
    monkeypatch.undo()
    while served(watcher) == 1:
        assert looks.acquire(timeout=PATIENCE_SECONDS)
    assert "looking at the repository failed" in caplog.messages
