"""Which folders are bundles, which bundles are served, and which one a request means."""

import logging
from pathlib import Path

import pytest

from cvpo.bundle import MANIFEST
from serve.errors import FingerprintError, NotFoundError, StartupError
from serve.repository import Repository, find_bundles, load_repository
from tests.serve import bundles


@pytest.fixture(scope="module")
def loaded(repository: Path) -> Repository:
    return load_repository(repository, allow_uncalibrated=True)


def test_bundles_are_found_at_most_two_folders_deep(tmp_path: Path) -> None:
    for name in ("a", "b/1", "b/2", "c/d/e", ".hidden", "b/.3.partial", "plain"):
        (tmp_path / name).mkdir(parents=True)
        if name != "plain":
            (tmp_path / name / MANIFEST).write_text("{}")
    (tmp_path / "file").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in find_bundles(tmp_path)] == ["a", "b/1", "b/2"]


def test_a_bundle_is_a_repository_of_one(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "bundle", bundles.manifest("goal", 3))
    assert find_bundles(path) == [path]
    assert {name: list(v) for name, v in load_repository(path, allow_uncalibrated=False).policies.items()} == {
        "goal": [3]
    }


def test_name_and_version_come_from_the_manifest_and_versions_ascend(tmp_path: Path) -> None:
    bundles.write(tmp_path / "x" / "first", bundles.manifest("goal", 10))
    bundles.write(tmp_path / "x" / "second", bundles.manifest("goal", 9))
    repository = load_repository(tmp_path, allow_uncalibrated=False)
    assert list(repository.policies["goal"]) == [9, 10]
    assert repository.select("goal", None, "").served.version == 10


def test_a_second_bundle_of_the_same_version_is_refused_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundles.write(tmp_path / "a")
    bundles.write(tmp_path / "b")
    with caplog.at_level(logging.INFO):
        assert list(load_repository(tmp_path, allow_uncalibrated=False).policies["goal"]) == [1]
    (refused,) = [record for record in caplog.records if record.getMessage() == "bundle refused"]
    fields = vars(refused)["fields"]
    assert fields["path"] == str(tmp_path / "b")
    assert "already served" in fields["reason"]


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
    assert load_repository(tmp_path, allow_uncalibrated=True).policies


def test_an_empty_folder_says_what_writes_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cvpo export"):
        load_repository(tmp_path, allow_uncalibrated=False)


def test_many_refused_bundles_point_to_the_log(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bundles.write(tmp_path / name, bundles.manifest(calibration=None))
    with pytest.raises(StartupError, match="all 2 bundles were refused"):
        load_repository(tmp_path, allow_uncalibrated=False)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_repository_that_is_no_folder_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="is not a folder"):
        load_repository(tmp_path / name, allow_uncalibrated=False)


def test_the_highest_version_is_served_and_others_by_number(loaded: Repository) -> None:
    assert loaded.select("goal", None, "").served.version == 2
    assert loaded.select("goal", 1, "").served.version == 1


def test_an_unknown_policy_or_version_lists_what_there_is(loaded: Repository) -> None:
    with pytest.raises(NotFoundError, match="goal, other"):
        loaded.select("gaol", None, "")
    with pytest.raises(NotFoundError, match="1, 2"):
        loaded.select("goal", 3, "")
    with pytest.raises(NotFoundError, match=r"names no policy.*goal, other"):
        loaded.select("", None, "")


def test_the_name_may_be_left_out_where_there_is_one_policy(loaded: Repository) -> None:
    only = Repository({"goal": loaded.policies["goal"]})
    assert only.select("", None, "").served.name == "goal"


def test_another_fingerprint_is_refused(loaded: Repository) -> None:
    fingerprint = loaded.select("goal", None, "").served.fingerprint
    assert loaded.select("goal", None, fingerprint).served.fingerprint == fingerprint
    with pytest.raises(FingerprintError, match=fingerprint):
        loaded.select("goal", None, "0" * 16)
