"""Which checkpoint is exported, under which name, and what is refused before minutes are spent on it."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cvpo.bundle import CalibratedMode, make_keys, read_bundle, read_private_key, read_trusted_keys
from cvpo.calibration.frozen import MARGIN
from cvpo.errors import BundleError, CheckpointError, ConfigError
from cvpo.exporting.measure import Plan
from cvpo.exporting.release import choose_checkpoint, identity, release
from cvpo.training.checkpoint import checkpoint_steps, load_policy
from cvpo.training.metrics import read_evaluations
from tests.command import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two costs, of which the second has no limit."""
    run = tmp_path_factory.mktemp("runs") / "drift"
    train(run, "--cost", "cost", "--cost", "cost_fuel", "--cost-limit", "10", "--cost-limit", "inf")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy whose evaluations a test may rewrite."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def evaluated(run: Path, *figures: tuple[float, float, float], second: tuple[float, float, float] = (99,) * 3) -> None:
    """Pretend that the checkpoints of a run had these returns, costs and upper ends of their cost's interval.

    The second cost has its upper end 1 above its mean.
    """
    records = [
        {
            "steps": steps,
            "evaluation": {
                "mode": "deterministic",
                "episodes": 10,
                "episode_return": {"mean": gain, "low": gain, "high": gain},
                "episode_cost": [{"mean": cost, "low": 0, "high": high}, {"mean": fuel, "low": 0, "high": fuel + 1}],
                "cost_cvar90": [high, fuel + 1],
                "over_limit_share": [0.5, 0],
            },
        }
        for steps, (gain, cost, high), fuel in zip(checkpoint_steps(run), figures, second, strict=True)
    ]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_best_of_those_safely_under_the_limit_is_chosen(run: Path) -> None:
    evaluated(run, (5, 4, 8), (9, 9, 12), (7, 6, 10))  # the second has the most, and might be over; the third just not
    steps, why = choose_checkpoint(run)
    assert steps == checkpoint_steps(run)[2]
    assert why == (
        "the one with the highest return of 2 checkpoints under the limit by the upper end of its cost's interval, "
        "of 3 evaluated on 10 episodes each"
    )


def test_of_equals_the_newest_is_chosen_since_its_critics_have_learned_the_most(run: Path) -> None:
    evaluated(run, (5, 4, 8), (7, 6, 10), (7, 6, 10))
    assert choose_checkpoint(run)[0] == checkpoint_steps(run)[2]


def test_where_none_is_safely_under_the_limit_the_mean_decides(run: Path) -> None:
    evaluated(run, (5, 9, 12), (9, 11, 15), (7, 10, 13))
    steps, why = choose_checkpoint(run)
    assert steps == checkpoint_steps(run)[2]
    assert "2 checkpoints under the limit by its mean cost" in why


def test_where_none_is_under_the_limit_the_nearest_is_told(run: Path) -> None:
    evaluated(run, (5, 30, 40), (9, 11.5, 15), (7, 20, 30))
    with pytest.raises(CheckpointError, match=r"nearest has cost / limit 11\.5 / 10, 99\.0 / inf\)\. Train longer"):
        choose_checkpoint(run)


def test_every_limit_counts_for_the_choice_and_for_what_is_nearest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(run, checkpoint_steps(run)[-1])
    config = policy.config.model_copy(update={"cost_limits": (10.0, 50.0)})
    monkeypatch.setattr("cvpo.exporting.release.load_policy", lambda run, steps: replace(policy, config=config))
    evaluated(run, (9, 4, 8), (7, 4, 8), (5, 4, 8), second=(50, 49, 20))  # the first is not safely under its second
    assert choose_checkpoint(run)[0] == checkpoint_steps(run)[1]
    # Over the limits by 20 and 0, by 5 and 14, and by 16 and 0, and further below the other.
    evaluated(run, (9, 30, 40), (7, 15, 20), (5, 26, 40), second=(0, 64, 0))
    with pytest.raises(CheckpointError, match=r"nearest has cost / limit 15\.0 / 10, 64\.0 / 50\)"):
        choose_checkpoint(run)


def test_without_an_evaluation_there_is_nothing_to_choose_from(run: Path) -> None:
    (run / "evaluations.jsonl").unlink()
    with pytest.raises(CheckpointError, match="no evaluated checkpoint to choose from; export without --select"):
        choose_checkpoint(run)


def test_only_checkpoints_that_are_there_are_chosen(run: Path) -> None:
    evaluated(run, (9, 1, 2), (5, 1, 2), (7, 1, 2))
    best, _, second = checkpoint_steps(run)
    assert choose_checkpoint(run)[0] == best
    shutil.rmtree(run / "checkpoints" / f"{best:010d}")
    assert choose_checkpoint(run)[0] == second


@pytest.mark.parametrize(
    ("path", "name", "version"),
    [
        ("bundles/circle/3", "circle", 3),
        ("bundles/circle", "circle", 1),
        ("circle", "circle", 1),
        ("bundles/circle/0", "0", 1),
        ("bundles/circle/v2", "v2", 1),
    ],
)
def test_name_and_version_are_read_from_the_folder(path: str, name: str, version: int) -> None:
    assert identity(Path(path)) == (name, version)


def test_a_relative_version_belongs_to_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circle").mkdir()
    monkeypatch.chdir(tmp_path / "circle")
    assert identity(Path("2")) == ("circle", 2)


def test_the_bundle_says_where_it_comes_from_and_what_was_asked_for(run: Path, tmp_path: Path) -> None:
    steps = checkpoint_steps(run)[0]
    told: list[str] = []
    done = release(run, tmp_path / "drift", steps=steps, plan=Plan(0, 3), workers=0, say=told.append)
    assert done.manifest == read_bundle(tmp_path / "drift").manifest
    origin = done.manifest.provenance
    assert origin.selection == f"the checkpoint asked for, at {steps} steps"
    assert (origin.steps, origin.seed, origin.environment) == (steps, 0, "tests.envs.toys:drift")
    assert {"torch", "numpy", "onnxruntime", "mujoco"} <= origin.packages.keys()
    assert origin.config["cost_limits"] == [10.0, "Infinity"]
    assert [point.steps for point in origin.learning_curve] == [steps]  # of three, the first was asked for
    assert told[0] == f"export  the policy at {steps} steps: the checkpoint asked for"


def test_every_mode_that_is_asked_for_is_calibrated_by_its_own_episodes(run: Path, tmp_path: Path) -> None:
    told: list[str] = []
    shielded, sampled = CalibratedMode(mode="shielded", candidates=4), CalibratedMode(mode="sampled")
    done = release(
        run,
        tmp_path / "drift",
        plan=Plan(20, 1, modes=(shielded, sampled)),
        workers=0,
        say=told.append,
    )
    calibration = done.manifest.calibration
    assert calibration is not None
    assert calibration.modes == (CalibratedMode(mode="deterministic"), sampled, shielded)
    assert [other.episodes for other in calibration.other_modes] == [
        {"calibrate": 10, "alarm": 5, "test": 5},
        {"calibrate": 10, "test": 10},
    ]
    assert all(result.example is None for other in calibration.other_modes for result in other.results)
    assert [line for line in told if line.startswith("rollout 20 episodes, ")] == [
        "rollout 20 episodes, sampled",
        "rollout 20 episodes, shielded of 4",
    ]
    card = read_bundle(tmp_path / "drift").model_card
    assert "It holds in these modes: deterministic, sampled, shielded of 4." in card
    assert "On 10 test episodes, shielded of 4, each with the limit for its budget:" in card


def test_the_bundle_keeps_the_runs_evaluations_and_what_single_episodes_cost(run: Path, tmp_path: Path) -> None:
    done = release(run, tmp_path / "drift", plan=Plan(12, 3), workers=0, say=lambda text: None)
    evaluations = read_evaluations(run)
    curve = done.manifest.provenance.learning_curve
    assert [point.steps for point in curve] == sorted(evaluations) == checkpoint_steps(run)
    for point in curve:
        assert point.episode_return == evaluations[point.steps].episode_return
        assert point.episode_cost == evaluations[point.steps].episode_cost
    (evaluation,) = done.manifest.evaluations
    assert len(evaluation.costs) == 3
    means = [cost.mean for cost in evaluation.episode_cost]
    assert np.mean(evaluation.costs, axis=0) == pytest.approx(means)
    assert done.manifest.calibration is not None
    limited, free = done.manifest.calibration.results
    assert limited.example is not None
    assert limited.example.budget == 10
    assert free.example is None  # no limit, no flags


def test_what_too_few_episodes_cannot_promise_is_told(run: Path, tmp_path: Path) -> None:
    told: list[str] = []
    done = release(run, tmp_path / "drift", plan=Plan(8, 1), workers=0, say=told.append)
    assert done.manifest.calibration is not None
    assert done.manifest.calibration.not_claimed  # 4 of 8 calibrate, a bound of confidence 0.9 needs 9
    for sentence in done.manifest.calibration.not_claimed:
        assert any(line.startswith(f"warning {sentence}") for line in told)


def test_the_bundle_says_what_share_of_false_alarms_its_episodes_support(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "drift"
    done = release(run, path, plan=Plan(9, 1), workers=0, say=lambda text: None)
    statistics = done.manifest.observation_statistics
    assert statistics.shift_episodes == 9  # none of the fresh ones
    assert statistics.shift_false_alarm_rate == pytest.approx((9 * 0.001 + 1) / 10)
    assert statistics.shift_threshold > 0
    card = read_bundle(path).model_card
    assert f"SHIFTED is reported where `shift_score` is over {statistics.shift_threshold:.3g}" in card
    assert "at most 0.101 of the steps are over it, in expectation. The threshold was set on 9 episodes" in card
    assert statistics.frozen_after_steps == (MARGIN, MARGIN)  # noise never repeats
    assert f"one of 2 values is frozen: exactly the same for more than {MARGIN} steps" in card


def test_without_calibration_nothing_is_claimed_of_false_alarms(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "drift"
    done = release(run, path, plan=Plan(0, 1), workers=0, say=lambda text: None)
    assert done.manifest.observation_statistics.shift_false_alarm_rate is None
    assert "nothing is claimed of how often that happens without a reason" in read_bundle(path).model_card


@pytest.mark.parametrize("where", ["there", "file/new"])
def test_a_folder_that_cannot_become_a_bundle_is_refused_at_once(where: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    told: list[str] = []
    with pytest.raises(BundleError, match="Choose another --out"):
        release(run, tmp_path / where, say=told.append)
    assert told == []


@pytest.mark.parametrize("name", ["my policy", "-circle", "²", "a" * 64, "circle\n"])
def test_a_name_that_a_bundle_cannot_have_is_refused_at_once(name: str, run: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(ConfigError, match=re.escape(f"{name!r} is no name for a policy")):
        release(run, tmp_path / name / "1", say=told.append)
    assert told == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_exported_again_is_the_same_to_the_byte(workers: int, run: Path, tmp_path: Path) -> None:
    contents = []
    for place in ("first", "second"):
        path = tmp_path / place / "drift"
        release(run, path, plan=Plan(12, 3), workers=workers, say=lambda text: None)
        contents.append({file.name: file.read_bytes() for file in path.iterdir()})
    assert contents[0] == contents[1]


def test_the_time_of_creation_is_the_checkpoints_or_what_the_environment_says(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def created(place: str) -> str:
        done = release(run, tmp_path / place, plan=Plan(0, 1), workers=0, say=lambda text: None)
        return done.manifest.provenance.created

    written = run / "checkpoints" / f"{checkpoint_steps(run)[-1]:010d}" / "policy.pt"
    os.utime(written, (0, 86_400))
    assert created("one") == "1970-01-02T00:00:00+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert created("two") == "2023-11-14T22:13:20+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        created("three")


def test_a_bundle_is_signed_as_it_is_exported_and_otherwise_the_same(run: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "release")
    paths = tmp_path / "signed" / "drift", tmp_path / "not" / "drift"
    for path, key in zip(paths, (read_private_key(private), None), strict=True):
        release(run, path, plan=Plan(0, 1), workers=0, key=key, say=lambda text: None)
    assert read_bundle(paths[0], read_trusted_keys([public])).signer == public
    assert read_bundle(paths[0]).manifest_data == read_bundle(paths[1]).manifest_data
