"""A bundle calibrated again: the same policy, new figures, and what is refused before minutes are spent on it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cvpo.bundle import MANIFEST, MODEL_CARD, POLICY_GRAPH, make_keys, read_bundle
from cvpo.calibration.frozen import MARGIN
from cvpo.evaluate import ServedActor
from cvpo.exporting.measure import Plan
from cvpo.exporting.recalibrate import recalibrate
from cvpo.exporting.release import release
from cvpo.exporting.verify import verify_bundle
from tests.command import DRIFT, cvpo, succeed, train
from tests.commands.test_cli import alter
from tests.serve import bundles

SHORT = ("--episodes", "12", "--evaluation-episodes", "3", "--workers", "0")
SAME_SPACES = "tests.envs.toys:ToyDrift-v0"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two costs, of which the second has no limit; not calibrated."""
    folder = tmp_path_factory.mktemp("recalibrate")
    train(folder / "run", "--cost", "cost", "--cost", "cost_fuel", "--cost-limit", "10", "--cost-limit", "inf")
    path = folder / "drift" / "1"
    release(folder / "run", path, plan=Plan(0, 3), workers=0, say=lambda text: None)
    return path


@pytest.fixture(scope="module")
def again(bundle: Path) -> Path:
    path = bundle.parent / "2"
    recalibrate(bundle, path, plan=Plan(40, 3), workers=0, say=lambda text: None)
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "drift" / "3"


def seen(path: Path) -> set[tuple[float, ...]]:
    """Observations of the episodes that were run."""
    return {tuple(row) for row in read_bundle(path).golden.inputs[POLICY_GRAPH]["observation"].tolist()}


def test_the_next_version_is_the_same_policy_with_figures_of_its_own(bundle: Path, again: Path) -> None:
    before, after = read_bundle(bundle).manifest, verify_bundle(again, None).manifest
    assert (after.name, after.version) == ("drift", 2)
    assert before.calibration is None
    assert after.calibration is not None
    assert after.calibration.episodes == {"fit": 12, "calibrate": 12, "alarm": 10, "test": 6}
    assert not seen(bundle) & seen(again)  # other episodes
    measured = {"version", "calibration", "evaluations", "provenance", "files", "observation_statistics"}
    assert before.model_dump(exclude=measured) == after.model_dump(exclude=measured)
    of_shift = {"shift_threshold", "shift_false_alarm_rate", "shift_episodes", "frozen_after_steps"}
    assert before.observation_statistics.model_dump(exclude=of_shift) == after.observation_statistics.model_dump(
        exclude=of_shift
    )
    assert before.observation_statistics.shift_false_alarm_rate is None
    assert after.observation_statistics.shift_false_alarm_rate == pytest.approx((40 * 0.001 + 1) / 41)
    assert after.observation_statistics.shift_episodes == 40
    assert before.observation_statistics.frozen_after_steps == ()
    assert after.observation_statistics.frozen_after_steps == (MARGIN, MARGIN)  # noise never repeats
    origin = {"calibrated_from", "packages"}
    assert before.provenance.model_dump(exclude=origin) == after.provenance.model_dump(exclude=origin)

    observation = np.random.default_rng(0).normal(0, 1, (50, 2)).astype(np.float32)
    decisions = [
        ServedActor.from_bundle(path, mode, seed=3).act(observation, np.full(50, 9), np.zeros((50, 2)))
        for mode in ("deterministic", "sampled")
        for path in (bundle, again)
    ]
    for one, other in (decisions[:2], decisions[2:]):
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.cost_value, other.cost_value)
    assert decisions[0].violation is not None
    assert decisions[1].violation is not None
    assert decisions[0].violation[:, 0].all()
    assert not decisions[1].violation.all()


def test_the_bundle_before_is_named_and_stays_as_it_was(bundle: Path, new: Path) -> None:
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    succeed("calibrate", bundle, "--out", new, *SHORT)
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
    digest = hashlib.sha256(before[MANIFEST]).hexdigest()
    assert read_bundle(new).manifest.provenance.calibrated_from == digest
    assert digest in (new / MODEL_CARD).read_text()
    assert digest in succeed("inspect", new).out


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_episodes(bundle: Path, tmp_path: Path) -> None:
    contents = []
    for place, seed in (("one", 0), ("two", 0), ("three", 1)):
        path = tmp_path / place / "drift"
        recalibrate(bundle, path, plan=Plan(12, 3, seed), workers=0, say=lambda text: None)
        contents.append({file.name: file.read_bytes() for file in path.iterdir()})
    assert contents[0] == contents[1]
    assert not seen(tmp_path / "one" / "drift") & seen(tmp_path / "three" / "drift")


def test_it_is_measured_where_one_drives_and_says_so(again: Path, tmp_path: Path) -> None:
    there, still_there, back = (tmp_path / "drift" / version for version in "345")
    succeed("calibrate", again, "--out", there, "--env", SAME_SPACES, *SHORT)
    source = read_bundle(there).manifest.provenance
    assert (source.environment, source.measured_in) == (DRIFT, SAME_SPACES)
    assert f"measured in `{SAME_SPACES}`**, which it was not trained in" in (there / MODEL_CARD).read_text()
    assert f"measured in {SAME_SPACES}" in succeed("inspect", there).out

    said = succeed("calibrate", there, "--out", still_there, *SHORT).err
    assert said.splitlines()[0] == f"measure drift, version 3, in {SAME_SPACES}"
    assert read_bundle(still_there).manifest.provenance.measured_in == SAME_SPACES
    succeed("calibrate", there, "--out", back, "--env", DRIFT, *SHORT)
    assert read_bundle(back).manifest.provenance.measured_in is None


def test_what_is_asked_for_is_claimed_or_said_not_to_be(bundle: Path, new: Path) -> None:
    said = succeed(
        "calibrate", bundle, "--out", new, "--confidence", "0.8", "--miss-rate", "0.4", *SHORT
    ).err.splitlines()  # 4 of 12 calibrate and 3 choose alarm levels, of 2 that it takes
    assert said[1] == "rollout 12 episodes to calibrate and 3 to evaluate"
    warnings = [line for line in said if line.startswith("warning ")]
    assert warnings == [  # it has no limit
        "warning cost_fuel: No miss rate: 40% needs 2 episodes that exceed budgets late enough to announce it, 4 steps "
        "before; of the 3 that choose the level none did."
    ]
    calibration = read_bundle(new).manifest.calibration
    assert calibration is not None
    assert (calibration.confidence, calibration.miss_rate) == (0.8, 0.4)


def test_claims_that_take_more_episodes_are_refused_at_once_with_their_number(bundle: Path, new: Path) -> None:
    said = cvpo("calibrate", bundle, "--out", new, "--confidence", "0.95", *SHORT).usage_error
    assert "--confidence 0.95 needs 38 episodes or more to be claimed, not 12; give --episodes 38." in said
    said = cvpo("calibrate", bundle, "--out", new, "--miss-rate", "0.25", *SHORT).usage_error
    assert "--miss-rate 0.25 needs 13 episodes or more to be claimed, not 12; give --episodes 13." in said


def test_the_modes_it_is_calibrated_for_are_measured_again_with_those_asked_for(again: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "drift" / "3", tmp_path / "drift" / "4"
    succeed("calibrate", again, "--out", first, "--calibrate-mode", "shielded:3", *SHORT)
    said = succeed("calibrate", first, "--out", second, "--calibrate-mode", "sampled", *SHORT).err.splitlines()
    assert [line for line in said if line.startswith("rollout")] == [
        "rollout 12 episodes to calibrate and 3 to evaluate",
        "rollout 12 episodes, sampled",
        "rollout 12 episodes, shielded of 3",
    ]
    calibration = read_bundle(second).manifest.calibration
    assert calibration is not None
    assert [str(mode) for mode in calibration.modes] == ["deterministic", "sampled", "shielded of 3"]


def test_a_bundle_is_signed_as_it_is_calibrated_again_and_the_one_before_must_be_where_asked(
    bundle: Path, again: Path, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path / "release")
    out = tmp_path / "drift" / "3"
    refused = cvpo("calibrate", bundle, "--out", out, "--trusted-key", public)
    assert "is not signed" in refused.sentence
    succeed("calibrate", again, "--out", out, "--sign-key", private, *SHORT)
    assert "with the key of" in succeed("verify", out, "--trusted-key", public).out
    succeed("calibrate", out, "--out", tmp_path / "drift" / "4", "--trusted-key", public, *SHORT)


def test_what_cannot_be_calibrated_again_is_refused_at_once(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    assert "it has no manifest.json" in cvpo("calibrate", tmp_path, "--out", out).sentence
    assert "already exists, and bundles are immutable" in cvpo("calibrate", bundle, "--out", bundle).sentence
    assert "is no name for a policy" in cvpo("calibrate", bundle, "--out", tmp_path / "my policy").sentence
    by_hand = bundles.write(tmp_path / "goal" / "1")
    assert "policy.onnx does not say what of it the networks are" in cvpo("calibrate", by_hand, "--out", out).sentence
    alter_copy = tmp_path / "altered"
    alter_copy.mkdir()
    for file in bundle.iterdir():
        (alter_copy / file.name).write_bytes(file.read_bytes())
    alter(alter_copy / POLICY_GRAPH, "altered")
    assert "does not match its SHA-256" in cvpo("calibrate", alter_copy, "--out", out).sentence
    for option in (("--episodes", "7"), ("--confidence", "1"), ("--miss-rate", "0"), ("--seed", "-1")):
        assert option[0] in cvpo("calibrate", bundle, "--out", out, *option).usage_error
    assert not out.exists()


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (
            "Pendulum-v1",
            "Pendulum-v1 has 3 values observed and actions from [-2.0] to [2.0]; drift is made for 2 values observed "
            "and actions from [-1.0, -2.0] to [1.0, 2.0]. Name an environment with the same spaces.",
        ),
        ("tests.envs.toys:NoCost", 'info has no cost "cost" (it has cost_fuel, costs)'),
        ("nowhere:make", "there is no module nowhere"),
    ],
)
def test_an_environment_that_does_not_suit_is_refused(env: str, reason: str, bundle: Path, new: Path) -> None:
    said = cvpo("calibrate", bundle, "--out", new, "--env", env, *SHORT)
    assert said.code == 1
    assert reason in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert not new.exists()
