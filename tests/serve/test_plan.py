"""serving.json: what it may say, that it is whole or not there, and what a rollback goes back to."""

import json
import os
import re
from pathlib import Path

import pytest

from cvpo import files
from serve.errors import PlanError
from serve.server.plan import PLAN, Canary, ServingPlan, plan_path, read_plan, write_plan
from tests.serve import bundles

FULL = ServingPlan(pinned=3, canary=Canary(version=4, share=0.25), shadow=5, history=(2, 3))


def test_what_is_written_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for plan in (ServingPlan(pinned=1), FULL):
        write_plan(tmp_path, "goal", plan)
        assert read_plan(tmp_path / "goal" / PLAN) == plan
    assert [path.name for path in (tmp_path / "goal").iterdir()] == [PLAN]


def test_a_written_plan_outlives_a_stop_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bool]] = []
    path = tmp_path / "goal" / PLAN
    monkeypatch.setattr(files, "fsync_directory", lambda folder: synced.append((folder, path.exists())))
    write_plan(tmp_path, "goal", FULL)
    assert synced == [(tmp_path / "goal", True)]  # the folder, once the file has its name


def test_a_person_may_write_no_more_than_is_meant(tmp_path: Path) -> None:
    path = tmp_path / PLAN
    path.write_text('{"pinned": 3}')
    assert read_plan(path) == ServingPlan(pinned=3)
    path.write_text('{"canary": {"version": 4, "share": 1}}')
    assert read_plan(path) == ServingPlan(canary=Canary(version=4, share=1.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"pinned": 3, "pinned": 4}', "pinned is there 2 times"),
        ('{"canary": {"version": 4, "share": 1, "share": 0.1}}', "share is there 2 times"),
        ("[" * 10_000, "recursion"),
    ],
)
def test_what_could_be_read_in_two_ways_or_without_end_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(PlanError, match=says):
        read_plan(tmp_path / PLAN)


def test_the_document_shows_a_plan(tmp_path: Path) -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "versions.md"
    (example,) = re.findall(r"```json\n(.*?)```", document.read_text(), re.DOTALL)
    (tmp_path / PLAN).write_text(example)
    assert read_plan(tmp_path / PLAN) == ServingPlan(pinned=6, canary=Canary(version=7, share=0.1), shadow=8)


def test_no_file_is_told_apart_from_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plan(tmp_path / "goal" / PLAN)
    (tmp_path / "goal" / PLAN).mkdir(parents=True)
    with pytest.raises(PlanError, match="Cannot read"):
        read_plan(tmp_path / "goal" / PLAN)


def test_a_pipe_in_its_place_is_not_waited_for_and_a_device_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / PLAN)
    with pytest.raises(PlanError, match=f"{PLAN} is no plain file"):
        read_plan(tmp_path / PLAN)
    (tmp_path / PLAN).unlink()
    (tmp_path / PLAN).symlink_to("/dev/zero")
    with pytest.raises(PlanError, match=f"{PLAN} is no plain file"):
        read_plan(tmp_path / PLAN)


def test_a_file_larger_than_any_plan_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / PLAN).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(PlanError, match=f"{PLAN} is larger than 65,536 bytes"):
        read_plan(tmp_path / PLAN)


def test_a_link_is_followed_as_in_a_mounted_config_map(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / PLAN).write_text('{"pinned": 3}')
    (tmp_path / PLAN).symlink_to(f"..data/{PLAN}")
    assert read_plan(tmp_path / PLAN) == ServingPlan(pinned=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "JSON"),
        ('{"pinned": 3', "JSON"),
        ('{"pinned": 0}', "pinned"),
        ('{"pinned": "3"}', "pinned"),
        ('{"pinned": 3.0}', "pinned"),
        ('{"pined": 3}', "pined"),
        ('{"canary": {"version": 4}}', "canary.share"),
        ('{"canary": {"version": 4, "share": 1.5}}', "canary.share"),
        ('{"canary": {"version": 4, "share": NaN}}', "canary.share"),
        ("[]", "object"),
    ],
)
def test_what_is_no_plan_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / PLAN
    path.write_text(text)
    with pytest.raises(PlanError, match=says) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_a_bundle_has_no_plan(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "goal")
    assert plan_path(bundle, "goal") is None
    assert plan_path(tmp_path, "goal") is None
    assert plan_path(tmp_path, "other") == tmp_path / "other" / PLAN
    for root in (bundle, tmp_path):
        before = sorted(bundle.rglob("*"))
        with pytest.raises(PlanError, match="is itself a bundle"):
            write_plan(root, "goal", FULL)
        assert sorted(bundle.rglob("*")) == before


def test_where_nothing_can_be_written_the_plan_before_stays(tmp_path: Path) -> None:
    write_plan(tmp_path, "goal", FULL)
    (tmp_path / "other").write_text("a file where the folder would be")
    with pytest.raises(PlanError, match="change the file where it is made"):
        write_plan(tmp_path, "other", FULL)
    assert json.loads((tmp_path / "goal" / PLAN).read_text())["pinned"] == 3


def test_a_rollback_goes_to_the_version_that_the_plan_before_served() -> None:
    # 5 was served as the highest, then 2 was pinned, then 4.
    loaded = frozenset({1, 2, 3, 4, 5})
    plan = ServingPlan().followed_by(ServingPlan(pinned=2), served=5, then=2)
    plan = plan.followed_by(ServingPlan(pinned=4, canary=Canary(version=5, share=0.1), shadow=3), served=2, then=4)
    assert plan.history == (5, 2, 4)
    back = plan.rolled_back(served=4, loaded=loaded)
    assert back == ServingPlan(pinned=2, history=(5, 2))  # without canary and shadow
    further = back.rolled_back(served=2, loaded=loaded)
    assert further == ServingPlan(pinned=5, history=(5,))  # not forward to 4


def test_a_second_rollback_does_not_serve_what_the_first_one_left() -> None:
    # 7 arrived and was served at once; then 6 was pinned while 7 was tried, and 7 again.
    loaded = frozenset({5, 6, 7})
    plan = ServingPlan().followed_by(ServingPlan(pinned=6, canary=Canary(version=7, share=0.1)), served=7, then=6)
    plan = plan.followed_by(ServingPlan(pinned=7), served=6, then=7)
    back = plan.rolled_back(served=7, loaded=loaded)
    assert back == ServingPlan(pinned=6, history=(6,))
    assert back.rolled_back(served=6, loaded=loaded) == ServingPlan(pinned=5, history=(5,))


def test_a_rollback_from_what_became_the_highest_by_itself_goes_to_the_next_below() -> None:
    plan = ServingPlan()
    back = plan.rolled_back(served=3, loaded=frozenset({1, 2, 3}))
    assert back == ServingPlan(pinned=2, history=(2,))
    # The plan that unpinned served 5; then 6 and 7 arrived.
    plan = ServingPlan(history=(1, 5))
    assert plan.rolled_back(served=7, loaded=frozenset({1, 5, 6, 7})) == ServingPlan(pinned=6, history=(1, 5, 6))
    # Before any arrived it goes to what was served before the plan.
    assert plan.rolled_back(served=5, loaded=frozenset({1, 3, 5})) == ServingPlan(pinned=1, history=(1,))


def test_a_version_that_was_served_again_is_the_one_before() -> None:
    plan = ServingPlan(pinned=1, history=(1,))
    for served, then in ((1, 2), (2, 1), (1, 3)):
        plan = plan.followed_by(ServingPlan(pinned=then), served=served, then=then)
    back = plan.rolled_back(served=3, loaded=frozenset({1, 2, 3}))
    assert back == ServingPlan(pinned=1, history=(1, 2, 1))


def test_a_rollback_passes_over_versions_that_are_gone() -> None:
    plan = ServingPlan(pinned=4, history=(1, 2, 3, 4))
    assert plan.rolled_back(served=4, loaded=frozenset({1, 4})) == ServingPlan(pinned=1, history=(1,))


def test_a_rollback_of_a_plan_without_history_goes_to_the_next_below() -> None:
    assert ServingPlan(pinned=4).rolled_back(served=4, loaded=frozenset({1, 2, 4, 5})) == ServingPlan(
        pinned=2, history=(2,)
    )


def test_a_rollback_without_history_passes_over_versions_on_trial() -> None:
    # Served to everybody before 4 was 1; 2 and 3 were only tried.
    plan = ServingPlan(canary=Canary(version=3, share=0.5), shadow=2)
    loaded = frozenset({1, 2, 3, 4})
    assert plan.rolled_back(served=4, loaded=loaded) == ServingPlan(pinned=1, history=(1,))
    assert plan.rolled_back(served=4, loaded=loaded - {1}) is None


def test_there_is_no_rollback_from_the_first_version() -> None:
    assert ServingPlan().rolled_back(served=1, loaded=frozenset({1})) is None
    assert ServingPlan(pinned=1, history=(1,)).rolled_back(served=1, loaded=frozenset({1, 2})) is None
    assert ServingPlan().rolled_back(served=None, loaded=frozenset()) is None


def test_history_keeps_the_latest_versions_and_names_none_twice_in_a_row() -> None:
    plan = ServingPlan()
    for version in range(1, 31):
        plan = plan.followed_by(ServingPlan(pinned=version), served=max(version - 1, 1), then=version)
    assert plan.history == tuple(range(15, 31))
    assert plan.followed_by(ServingPlan(pinned=30), served=30, then=30).history == plan.history
