"""The bundle's contract: whole or not at all, every byte verified, parts that agree with each other."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cvpo.bundle import (
    CRITIC_GRAPH,
    GOLDEN,
    MANIFEST,
    MODEL_CARD,
    POLICY_GRAPH,
    Calibration,
    Constraint,
    Manifest,
    read_bundle,
    slack,
    write_bundle,
)
from cvpo.bundle.storage import seal
from cvpo.errors import BundleError
from tests.serve.bundles import calibration, critic_graph, drawn, golden, manifest, policy_graph

FILES = (MANIFEST, POLICY_GRAPH, CRITIC_GRAPH, MODEL_CARD, GOLDEN)
GRAPHS = policy_graph(), critic_graph()
CARD = "# Kärtchen\n"
REQUEST = golden()


def write(path: Path, document: Manifest | None = None) -> Path:
    policy, critic = GRAPHS
    return write_bundle(
        path, document or manifest(), policy_graph=policy, critic_graph=critic, model_card=CARD, golden=REQUEST
    )


def rewrite_manifest(path: Path, **changes: object) -> None:
    """Change the manifest as someone would who also knows how to make its digest."""
    document = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_bytes(seal(document | changes))


finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, max_value=1e300)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    base = manifest(
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        version=draw(st.integers(1, 2**63 - 1)),
        calibration=draw(st.sampled_from([None, calibration()])),
        cost_limit=(draw(st.none() | positive), draw(st.none() | positive)),
        constraint_names=draw(st.tuples(st.text(min_size=1), st.text(min_size=1)).filter(lambda n: n[0] != n[1])),
        control_period_ms=draw(st.none() | st.floats(min_value=1e-3, max_value=1e6)),
    )
    scalars = st.none() | st.booleans() | st.integers() | finite | st.text()
    config = draw(st.dictionaries(st.text(), st.recursive(scalars, st.lists, max_leaves=4), max_size=4))
    return base.model_copy(update={"provenance": base.provenance.model_copy(update={"config": config})})


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=manifests())
def test_what_is_read_is_what_was_written(document: Manifest, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.mktemp("bundles") / "bundle", document)
    bundle = read_bundle(path)
    assert bundle.manifest.model_copy(update={"files": {}}) == document
    assert (bundle.policy_graph, bundle.critic_graph, bundle.model_card) == (*GRAPHS, CARD)
    assert bundle.golden.render() == REQUEST.render()
    assert not bundle.signed


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = write(tmp_path_factory.mktemp("bundles") / "bundle")
    return {name: (path / name).read_bytes() for name in FILES}


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_one_altered_byte_in_any_file_is_refused(
    data: st.DataObject, written: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(FILES))
    position = data.draw(st.integers(0, len(written[name]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != written[name][position]))
    altered = written[name][:position] + bytes([byte]) + written[name][position + 1 :]
    path = tmp_path_factory.mktemp("altered")
    for file, content in (written | {name: altered}).items():
        (path / file).write_bytes(content)
    with pytest.raises(BundleError):
        read_bundle(path)


def test_a_changed_space_between_two_values_of_the_manifest_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace("\n  ", "\n\t ", 1))
    with pytest.raises(BundleError, match="not as it was written"):
        read_bundle(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_file_cut_short_anywhere_is_refused(
    data: st.DataObject, written: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(FILES))
    length = data.draw(st.integers(0, len(written[name]) - 1))
    path = tmp_path_factory.mktemp("short")
    for file, content in (written | {name: written[name][:length]}).items():
        (path / file).write_bytes(content)
    with pytest.raises(BundleError):
        read_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    (path / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        read_bundle(path)


def test_a_file_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    (path / "notes.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        read_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_a_link_is_not_followed_even_to_the_very_bytes(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{re.escape(name)}: it is a link"):
        read_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused_without_waiting(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(BundleError, match=f"{re.escape(name)} is no plain file"):
        read_bundle(path)
    (path / name).unlink()
    (path / name).mkdir()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BundleError, match=re.escape(name)):
        read_bundle(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_file_larger_than_a_bundle_may_hold_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    with (path / MANIFEST).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match=r"manifest\.json is larger than 1,048,576 bytes"):
        read_bundle(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "policy.onnx/../../x", "more"])
def test_a_path_in_the_manifest_is_never_opened(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    files = json.loads((path / MANIFEST).read_text())["files"]
    rewrite_manifest(path, files=files | {name: files[POLICY_GRAPH]})
    with pytest.raises(BundleError, match="must list exactly"):
        read_bundle(path)


def test_a_bundle_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(write(tmp_path / "bundle"))
    assert read_bundle(tmp_path / "current").manifest == read_bundle(tmp_path / "bundle").manifest


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json\. `cvpo export` writes one\.$"):
        read_bundle(tmp_path)


def test_a_folder_of_bundles_is_no_bundle_and_those_in_it_are_named(tmp_path: Path) -> None:
    for name in ("goal/1", "goal/2", "goal/.3", "single"):
        write(tmp_path / name)
    named = ", ".join(str(tmp_path / name) for name in ("goal/1", "goal/2", "single"))
    with pytest.raises(BundleError, match=f"is not a bundle: .*Name one of the bundles in it: {named}\\.$"):
        read_bundle(tmp_path)
    write(tmp_path / "goal" / "4")
    with pytest.raises(BundleError, match=r"goal/4 and 1 more\.$"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("version", "says"),
    [(1, "Export the bundle again"), (3, "Use a later cvpo"), ("2", "Export"), (2.0, "Export"), (None, "Export")],
)
def test_another_schema_version_is_refused_by_its_number(tmp_path: Path, version: object, says: str) -> None:
    path = write(tmp_path / "bundle")
    rewrite_manifest(path, schema_version=version)
    with pytest.raises(BundleError, match=f"schema_version {version!r}; this cvpo reads 2. {says}"):
        read_bundle(path)


@pytest.mark.parametrize("version", ["seven", "1", 1.0, True])
def test_a_field_of_the_wrong_kind_is_named(tmp_path: Path, version: object) -> None:
    path = write(tmp_path / "bundle")
    rewrite_manifest(path, version=version)
    with pytest.raises(BundleError, match="version:"):
        read_bundle(path)


def test_a_fingerprint_of_other_spaces_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    rewrite_manifest(path, fingerprint="0" * 16)
    with pytest.raises(BundleError, match="fingerprint"):
        read_bundle(path)


def test_a_manifest_that_lists_other_files_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    rewrite_manifest(path, files={})
    with pytest.raises(BundleError, match="must list exactly"):
        read_bundle(path)


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"schema_version": NaN}', "[" * 100_000, "\ud800".encode(errors="surrogatepass")]
)
def test_a_manifest_that_is_something_else_is_refused(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError):
        read_bundle(tmp_path)


@pytest.mark.parametrize("depth", [33, 300, 480, 900])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_a_manifest_that_is_nested_without_end_is_refused(
    depth: int, opening: str, closing: str, tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_text(f'{{"a": {opening * depth}1{closing * depth}}}')
    with pytest.raises(BundleError, match="nested more than 32 deep"):
        read_bundle(tmp_path)


def test_a_sealed_manifest_whose_configuration_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    nested: list[Any] = []
    for _ in range(340):
        nested = [nested]
    provenance = json.loads((path / MANIFEST).read_text())["provenance"]
    rewrite_manifest(path, provenance=provenance | {"config": {"a": nested}})
    with pytest.raises(BundleError, match="nested more than 32 deep"):
        read_bundle(path)


def test_text_that_no_message_can_carry_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    constraints = json.loads((path / MANIFEST).read_text())["constraints"]
    constraints[0]["unit"] = "m\ud800"
    rewrite_manifest(path, constraints=constraints, fingerprint="")
    with pytest.raises(BundleError, match=re.escape(r"'m\ud800', which is no text in UTF-8")):
        read_bundle(path)


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    with pytest.raises(BundleError, match="already exists"):
        write(path)


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BundleError, match="No space left on device"):
        write(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="Cannot write"):
        write(tmp_path / "file" / "bundle")


def test_an_infinite_setting_of_the_training_is_kept_as_text(tmp_path: Path) -> None:
    provenance = manifest().provenance.model_copy(update={"config": {"limit": [math.inf]}})
    path = write(tmp_path / "bundle", manifest().model_copy(update={"provenance": provenance}))
    assert read_bundle(path).manifest.provenance.config == {"limit": ["Infinity"]}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("action", {"names": ["left", "right"], "low": [-1, None], "high": [1, 2]}, "every bound must be finite"),
        ("action", {"names": ["left", "left"], "low": [-1, -2], "high": [1, 2]}, "same name"),
        ("action", {"names": ["left", "right"], "low": [-1, 3], "high": [1, 2]}, "above the upper bound"),
        ("action", {"names": ["left"], "low": [-1, -2], "high": [1, 2]}, "1 names, 2 low"),
        ("safe_action", [0.0], "safe_action has 1 entries"),
        ("safe_action", [0.0, 2.5], "outside the action's bounds"),
        ("name", "../etc", "pattern"),
        ("version", 0, "greater than 0"),
        ("unknown", 1, "Extra inputs"),
        ("constraints", [], "at least 1 item"),
    ],
)
def test_a_manifest_whose_parts_do_not_agree_cannot_be_made(field: str, value: object, says: str) -> None:
    document = manifest().model_dump() | {"fingerprint": "", field: value}
    with pytest.raises(ValidationError, match=says):
        Manifest.model_validate(document)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([{"horizon_steps": 50}, {}], "same for all"),
        ([{"window_steps": 101}, {"window_steps": 101}], "longer than horizon_steps"),
        ([{"name": "heat"}, {"name": "heat"}], "same name"),
    ],
)
def test_constraints_that_do_not_agree_are_refused(changes: list[dict[str, object]], says: str) -> None:
    document = manifest().model_dump()
    for constraint, change in zip(document["constraints"], changes, strict=True):
        constraint.update(change)
    with pytest.raises(ValidationError, match=says):
        Manifest.model_validate(document | {"fingerprint": ""})


def test_calibration_needs_one_level_for_each_constraint() -> None:
    one_level: Calibration = calibration().model_copy(update={"alarm_levels": (0.5,)})
    with pytest.raises(ValidationError, match="one entry for each constraint"):
        Manifest.model_validate(manifest().model_dump() | {"calibration": one_level.model_dump()})


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("evaluations", 0, "costs"), [[1.0]], "one cost for each constraint"),
        (("evaluations", 0, "costs"), [[1.0, -1.0]], "greater than or equal to 0"),
        (("evaluations", 0, "costs"), [[1.0, math.nan]], "finite"),
        (("evaluations", 0, "costs"), [[1.0, 1.0]] * 21, "21 costs of 20 episodes"),
        (("evaluations", 0, "costs"), [[1.0, 1.0]] * 201, "at most 200"),
        (("provenance", "learning_curve", 0, "episode_cost"), [], "one cost for each constraint"),
        (("provenance", "learning_curve", 0, "steps"), 500, "do not increase"),
        (("provenance", "learning_curve", 2, "steps"), 1001, "goes on after 1000 steps"),
        (("provenance", "learning_curve", 0, "steps"), 2**63, "less than"),
        (("provenance", "learning_curve", 0, "episode_return", "mean"), math.inf, "finite"),
        (("example", "spent"), [1.0], "differ in length"),
        (("example", "spent", 0), math.nan, "finite"),
        (("example", "steps"), [], "at least 1"),
        (("example", "steps", 1), 0, "do not increase"),
        (("example", "steps", 9), 2**31, "less than"),
        (("example", "violation_probability", 0), 1.5, "less than or equal to 1"),
        (("example", "violation_probability", 0), math.nan, "less than or equal to 1|greater than or equal to 0"),
        (("example", "steps"), list(range(201)), "at most 200"),
        (("example", "crossing"), -1, "greater than or equal to 0"),
        (("example", "budget"), math.inf, "finite"),
    ],
)
def test_what_is_kept_to_be_drawn_is_small_finite_and_agrees(
    place: tuple[str | int, ...], value: Any, says: str
) -> None:
    document: Any = json.loads(drawn(manifest()).model_dump_json())
    Manifest.model_validate(document)
    inner = document
    if place[0] == "example":
        inner = document["calibration"]["results"][0]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValidationError, match=says):
        Manifest.model_validate(document)


@pytest.mark.parametrize("field", ["episode_cost", "cost_cvar90", "over_limit_share"])
def test_an_evaluation_needs_one_of_each_for_each_constraint(field: str) -> None:
    document: Any = json.loads(manifest().model_dump_json())
    document["evaluations"][0][field].pop()
    with pytest.raises(ValidationError, match="one cost for each constraint"):
        Manifest.model_validate(document)


@pytest.mark.parametrize(
    "place",
    [
        ("constraints", 0, "window_steps"),
        ("evaluations", 0, "episodes"),
        ("calibration", "modes", 1, "candidates"),
        ("calibration", "lead_steps"),
        ("calibration", "episodes", "fit"),
        ("calibration", "results", 0, "test_episodes"),
        ("observation_statistics", "shift_episodes"),
        ("provenance", "seed"),
        ("provenance", "steps"),
    ],
)
def test_no_whole_number_of_a_manifest_is_without_bounds(place: tuple[str | int, ...]) -> None:
    for value, says in ((10**400, "less than"), (-1, "greater than")):
        document: Any = json.loads(manifest().model_dump_json())
        inner = document
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with pytest.raises(ValidationError, match=says):
            Manifest.model_validate(document)


def test_a_curve_of_more_points_than_are_drawn_is_refused() -> None:
    document: Any = json.loads(drawn(manifest()).model_dump_json())
    point = document["provenance"]["learning_curve"][0]
    document["provenance"]["learning_curve"] = [point | {"steps": steps} for steps in range(101)]
    with pytest.raises(ValidationError, match="at most 100"):
        Manifest.model_validate(document)


def test_a_bundle_of_before_there_was_anything_to_draw_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    document = json.loads((path / MANIFEST).read_text())
    del document["provenance"]["learning_curve"]
    for evaluation in document["evaluations"]:
        del evaluation["costs"]
    for result in document["calibration"]["results"]:
        del result["example"]
    (path / MANIFEST).write_bytes(seal(document))
    assert read_bundle(path).manifest == read_bundle(write(tmp_path / "new")).manifest


def test_observation_statistics_have_one_entry_for_each_dimension() -> None:
    document = manifest().model_dump()
    document["observation_statistics"]["mean"] = [0.0]
    with pytest.raises(ValidationError, match=r"observation_statistics\.mean must have 3"):
        Manifest.model_validate(document)
    document = manifest().model_dump()
    document["observation_statistics"]["frozen_after_steps"] = [5, None]
    with pytest.raises(ValidationError, match=r"observation_statistics\.frozen_after_steps must have 3"):
        Manifest.model_validate(document)


def test_alarm_levels_are_zero_without_calibration() -> None:
    assert manifest(calibration=None).alarm_levels == (0.0, 0.0)
    assert manifest().alarm_levels == (0.6, 0.6)


def test_threshold_of_a_limit_worked_out_by_hand() -> None:
    # Four steps, discount 1/2: one cost a step is 4 undiscounted and 1 + 1/2 + 1/4 + 1/8 = 1.875 discounted.
    constraint = Constraint(name="heat", cost_limit=4.0, discount=0.5, horizon_steps=4, window_steps=2)
    assert constraint.threshold() == pytest.approx(1.875)


def test_no_limit_allows_everything() -> None:
    constraint = Constraint(name="heat", cost_limit=None, discount=0.5, horizon_steps=4, window_steps=2)
    assert constraint.threshold() == math.inf


def test_the_fingerprint_tells_spaces_and_constraints_apart_and_nothing_else() -> None:
    assert manifest().fingerprint == manifest("other", 7, calibration=None, cost_limit=(None, 1.0)).fingerprint
    assert manifest().fingerprint != manifest(constraint_names=("heat", "noise")).fingerprint
    heat, wear = manifest().constraints
    in_calories = (heat.model_copy(update={"unit": "cal"}), wear)
    document = manifest().model_dump() | {"constraints": in_calories, "fingerprint": ""}
    assert manifest().fingerprint != Manifest.model_validate(document).fingerprint


def test_a_value_of_the_manifest_that_was_changed_does_not_fit_its_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle")
    data = (path / MANIFEST).read_bytes()
    assert data.count(b'"golden_tolerance": 0.0001') == 1
    (path / MANIFEST).write_bytes(data.replace(b'"golden_tolerance": 0.0001', b'"golden_tolerance": 0.0999'))
    with pytest.raises(BundleError, match="does not match its own digest"):
        read_bundle(path)


def test_another_choice_or_what_is_no_number_is_no_golden_answer() -> None:
    answer = REQUEST.outputs[POLICY_GRAPH]
    REQUEST.check(POLICY_GRAPH, answer, 0.1)
    other = answer["chosen"].copy()
    other[0] += 1
    nothing = np.full_like(answer["reward_value"], np.nan)
    for name, found in (("chosen", other), ("reward_value", nothing)):
        with pytest.raises(BundleError, match=f"golden request as it did at export: {name} differs"):
            REQUEST.check(POLICY_GRAPH, {**answer, name: found}, 0.1)
    assert slack("chosen", np.array([63]), 0.1) == 0  # not a share of it, either
