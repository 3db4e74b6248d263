"""Checkpoints: back as they were, refused when a byte is missing or altered, and never half-written."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvpo.bundle import Constraint
from cvpo.envs import EnvSpec
from cvpo.errors import CheckpointError
from cvpo.learning.networks import build_model
from cvpo.training.checkpoint import (
    TrainedPolicy,
    begun,
    checkpoint_steps,
    load_policy,
    read_config,
    replace_config,
    save_policy,
)
from tests.budget import small_config

CONFIG = small_config(float("inf"))


def policy(steps: int = 100) -> TrainedPolicy:
    torch.manual_seed(steps)
    spec = EnvSpec(
        env_id="Env-v0",
        observation_size=3,
        action_low=np.array([-1.0, 0.1]),
        action_high=np.array([1.0, 1 / 3]),
        cost_names=("cost",),
        max_episode_steps=40,
        control_period_ms=None,
    )
    constraint = Constraint(name="cost", cost_limit=None, discount=0.8, horizon_steps=40, window_steps=5)
    model = build_model(CONFIG.network, 3, 2, 1)
    model.normalizer.update(torch.randn(50, 3))
    model.cost_factor.fill_(1.5)
    return TrainedPolicy(model, spec, CONFIG, (constraint,), 2.5, steps)


def begin(run: Path) -> None:
    with begun(run, CONFIG, pytest.fail):
        pass


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Back as they were.


def test_a_policy_comes_back_with_all_that_is_needed_to_run_it(tmp_path: Path) -> None:
    saved = policy()
    save_policy(tmp_path, saved)
    loaded = load_policy(tmp_path, 100)
    observation, action = torch.randn(4, 3), torch.rand(4, 5, 2)
    for one, other in zip(
        saved.model.values(observation, action), loaded.model.values(observation, action), strict=True
    ):
        assert torch.equal(one, other)
    for one, other in zip(saved.model.distribution(observation), loaded.model.distribution(observation), strict=True):
        assert torch.equal(one, other)
    assert (loaded.config, loaded.constraints, loaded.reward_scale, loaded.steps) == (
        CONFIG,
        saved.constraints,
        2.5,
        100,
    )
    for name, value in vars(saved.spec).items():
        np.testing.assert_array_equal(getattr(loaded.spec, name), value)


def test_a_checkpoint_from_before_the_cost_factor_has_its_critics_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = policy()
    before = {name: value for name, value in saved.model.state_dict().items() if name != "cost_factor"}
    monkeypatch.setattr(saved.model, "state_dict", lambda: before)
    save_policy(tmp_path, saved)
    assert load_policy(tmp_path, 100).model.cost_factor.tolist() == [1.0]


def test_a_loaded_model_does_not_learn(tmp_path: Path) -> None:
    save_policy(tmp_path, policy())
    assert not any(parameter.requires_grad for parameter in load_policy(tmp_path, 100).model.parameters())


def test_all_checkpoints_are_kept(tmp_path: Path) -> None:
    for steps in (900, 1000, 20_000):
        save_policy(tmp_path, policy(steps))
    assert checkpoint_steps(tmp_path) == [900, 1000, 20_000]


def test_a_resumed_run_that_comes_by_again_leaves_a_checkpoint_as_it_is(tmp_path: Path) -> None:
    save_policy(tmp_path, policy())
    path = tmp_path / "checkpoints" / "0000000100" / "policy.pt"
    written = path.stat().st_ino
    save_policy(tmp_path, policy())
    assert path.stat().st_ino == written


def test_a_checkpoint_is_replaced_by_one_that_is_not_the_same(tmp_path: Path) -> None:
    # After a resume that could not be to the bit, and of one that was damaged.
    save_policy(tmp_path, policy())
    other = dataclasses.replace(policy(), reward_scale=3.5)
    save_policy(tmp_path, other)
    assert load_policy(tmp_path, 100).reward_scale == 3.5
    harm(tmp_path / "checkpoints" / "0000000100" / "policy.pt", "cut")
    save_policy(tmp_path, other)
    assert load_policy(tmp_path, 100).reward_scale == 3.5
    assert files(tmp_path) == ["checkpoints/0000000100/policy.pt", "checkpoints/0000000100/sha256.json"]


# Damaged.


@pytest.mark.parametrize("name", ["checkpoints/0000000100/policy.pt", "checkpoints/0000000100/sha256.json"])
@pytest.mark.parametrize("damage", ["altered", "cut", "emptied", "removed"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    save_policy(tmp_path, policy())
    harm(tmp_path / name, damage)
    with pytest.raises(CheckpointError, match=r"checkpoints/0000000100 was cut short or altered"):
        load_policy(tmp_path, 100)


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


def test_checksums_cannot_be_made_to_cover_less(tmp_path: Path) -> None:
    save_policy(tmp_path, policy())
    (tmp_path / "checkpoints" / "0000000100" / "sha256.json").write_text("{}")
    with pytest.raises(CheckpointError, match="altered"):
        load_policy(tmp_path, 100)


def test_a_missing_checkpoint_is_answered_with_those_there_are(tmp_path: Path) -> None:
    for steps in (100, 200):
        save_policy(tmp_path, policy(steps))
    with pytest.raises(CheckpointError, match=r"no checkpoint at 150 steps \(there are: 100, 200\)"):
        load_policy(tmp_path, 150)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        checkpoint_steps(tmp_path / "run")


def test_a_folder_that_is_no_run_has_no_checkpoints_to_wait_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="typo is not a run"):
        checkpoint_steps(tmp_path / "typo")


# Disks.


def fail(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_older_checkpoints_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tmp_path, policy(100))
    before = files(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"checkpoints/0000000200: No space left on device"):
        save_policy(tmp_path, policy(200))
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert checkpoint_steps(tmp_path) == [100]
    assert load_policy(tmp_path, 100).steps == 100


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"Cannot write .*checkpoints/0000000100: File exists"):
        save_policy(tmp_path, policy())


def test_what_a_crash_left_half_written_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save_policy(tmp_path, policy(100))
    half = tmp_path / "checkpoints" / ".0000000200.abcdef"
    half.mkdir()
    (half / "policy.pt").write_bytes(b"half")
    assert checkpoint_steps(tmp_path) == [100]
    save_policy(tmp_path, policy(200))
    assert load_policy(tmp_path, 200).steps == 200


# The config of a run.


def test_a_config_is_read_as_it_was_written(tmp_path: Path) -> None:
    begin(tmp_path / "new" / "run")
    assert read_config(tmp_path / "new" / "run") == CONFIG
    assert files(tmp_path) == ["new/run/config.json", "new/run/lock"]


def test_a_folder_in_use_is_not_taken_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"not empty.*remove it first"):
        begin(tmp_path)
    assert files(tmp_path) == ["notes.txt"]
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"not empty.*--resume"):
        begin(tmp_path)


def test_a_start_that_was_cut_off_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".config.json").write_text("{")
    begin(tmp_path)
    assert read_config(tmp_path) == CONFIG


def test_a_run_that_saved_nothing_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    begin(tmp_path)
    for name in ("checkpoints/.0000000200.x", "resume", "replay", "tensorboard"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("metrics.jsonl", "residuals.csv", "replay/000000000000.rows"):
        (tmp_path / name).touch()
    said: list[str] = []
    with begun(tmp_path, small_config(7.0), said.append):
        assert read_config(tmp_path).cost_limits == (7.0,)
    assert said == [f"{tmp_path} has a run that saved nothing; this one begins in its place"]


@pytest.mark.parametrize("kept", ["checkpoints/0000000200", "resume/0000000200", "notes", "curves.png"])
def test_a_run_that_saved_anything_or_was_given_a_file_is_in_the_way(tmp_path: Path, kept: str) -> None:
    begin(tmp_path)
    (tmp_path / kept).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"not empty.*--resume"):
        begin(tmp_path)


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_run_cannot_be_where_a_file_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"Cannot write .*Not a directory"):
        begin(tmp_path / name)


def test_a_config_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path)
    monkeypatch.setattr(Path, "replace", fail)  # what puts the new one in its place
    with pytest.raises(CheckpointError, match="No space left"):
        replace_config(tmp_path, small_config(5.0))
    assert read_config(tmp_path) == CONFIG
    assert files(tmp_path) == ["config.json", "lock"]


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run"):
        read_config(tmp_path)


def test_a_config_cut_short_is_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_config(tmp_path)


def test_a_config_of_another_version_names_what_does_not_fit(tmp_path: Path) -> None:
    begin(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"flavour": "sweet"}))
    with pytest.raises(CheckpointError, match=r"settings that cvpo .*flavour.*Use the release that trained it"):
        read_config(tmp_path)


def test_a_checkpoint_of_another_version_names_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CONFIG.model_dump_json().replace('"aim"', '"flavour"')
    monkeypatch.setattr(type(CONFIG), "model_dump_json", lambda config: other)
    save_policy(tmp_path, policy())
    with pytest.raises(CheckpointError, match=r"settings that cvpo .*flavour.*Use the release that trained it"):
        load_policy(tmp_path, 100)
