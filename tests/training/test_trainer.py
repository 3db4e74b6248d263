"""Whole runs: the same seed the same run, stopped and resumed to the bit, and what is refused."""

import csv
import errno
import io
import json
import multiprocessing
import operator
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cvpo.envs import VectorEnv, VectorStep
from cvpo.errors import CheckpointError, ConfigError, EnvError, NonFiniteError, WorkerError
from cvpo.files import read_verified, write_verified
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.learning.learner import LearnerState, UpdateMetrics
from cvpo.learning.replay import FIELDS, Replay
from cvpo.training import trainer
from cvpo.training.checkpoint import CONFIG, checkpoint_steps, load_policy, read_config, to_bytes
from cvpo.training.metrics import METRICS, read_evaluations, read_metrics
from cvpo.training.progress import Progress
from cvpo.training.trainer import constraints_of, resume, train
from tests.budget import STEPS, Reports, never, small_config
from tests.runs import assert_same, assert_same_run, saved
from tests.small_policies import spec

# 400 steps of 4 environments, 160 of them warm-up; checkpoints at 200 and 400.
TOTAL = 400


def start(run: Path, config: TrainConfig | None = None, stop_at: int | None = None) -> Reports:
    reports = Reports()
    train(config or small_config(steps=TOTAL), run, reports, never if stop_at is None else reports.stop_at(stop_at))
    return reports


def go_on(run: Path, steps: int | None = None, stop_at: int | None = None) -> Reports:
    reports = Reports()
    resume(run, reports, never if stop_at is None else reports.stop_at(stop_at), steps)
    return reports


def transitions(run: Path) -> dict[str, NDArray[np.float32]]:
    """What the replay of that point holds, fewer than its capacity."""
    point = saved(run)
    spec = point.spec
    replay = Replay(1_000, spec["observation_size"], len(spec["action_low"]), len(spec["cost_names"]))
    point.restore_replay(replay)
    return {name: getattr(replay, name)[: replay.size] for name in FIELDS}


def test_what_an_environment_says_of_closeness_reaches_the_policy_and_stays_with_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, small_config(steps=TOTAL, environment={"env_id": "tests.envs.toys:NearWalls", "max_episode_steps": 20}))
    policy = load_policy(run, checkpoint_steps(run)[-1])
    assert policy.spec.closeness == policy.model.normalizer.closeness == (0, 1)
    assert policy.model.policy.first.in_features == 4
    go_on(run, steps=2 * TOTAL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    start(run)
    return run


# The same seed, the same run.


def test_the_same_seed_gives_the_same_run(whole: Path, tmp_path: Path) -> None:
    start(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_another_seed_gives_another_run(whole: Path, tmp_path: Path) -> None:
    start(tmp_path / "run", small_config(steps=TOTAL).model_copy(update={"seed": 1}))
    assert (tmp_path / "run" / "residuals.csv").read_text() != (whole / "residuals.csv").read_text()


def test_a_simulator_process_changes_nothing(whole: Path, tmp_path: Path) -> None:
    start(tmp_path / "run", small_config(steps=TOTAL, environment={"workers": 1}))
    one, other = saved(whole), saved(tmp_path / "run")
    for state in (one.state, other.state):
        state.pop("config")
    assert_same(one.state, other.state)
    assert one.row_files == other.row_files


def test_a_run_leaves_config_metrics_residuals_events_and_evaluated_checkpoints(whole: Path) -> None:
    assert read_config(whole) == small_config(steps=TOTAL)
    assert checkpoint_steps(whole) == [200, 400]
    assert list(read_evaluations(whole)) == [200, 400]
    assert {path.name for path in whole.iterdir()} == {
        CONFIG,
        "checkpoints",
        "resume",
        "replay",
        "lock",
        "metrics.jsonl",
        "residuals.csv",
        "evaluations.jsonl",
        "tensorboard",
    }
    assert any((whole / "tensorboard").iterdir())


def test_updates_are_made_at_the_planned_rate(whole: Path) -> None:
    # 20 at once after the warm-up, and half a one each of the 236 steps from 160 to before the last four.
    with (whole / "residuals.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 + 236 // 2 + 1


def test_reports_tell_how_far_the_run_is(tmp_path: Path) -> None:
    reports = start(tmp_path / "run")
    assert [report.steps for report in reports.checkpoints] == [200, 400]
    last = reports.last
    assert last is not None
    assert (last.steps, last.total_steps) == (400, 400)
    assert last.train_return is not None
    assert 0 < last.train_return < 3 * STEPS
    assert 0 < last.train_cost[0] < STEPS
    assert last.temperature is not None
    assert last.temperature > 0


def test_the_updates_at_the_end_of_the_warm_up_are_told_while_they_are_made(tmp_path: Path) -> None:
    # 60 and the one of the step, at once; from then on two a step.
    due: list[int] = []

    class Watch(Reports):
        def progress(self, progress: Progress) -> None:
            due.append(progress.updates_due)

    schedule = {"warmup_updates": 60}
    train(small_config(steps=200, schedule=schedule), tmp_path / "run", Watch(), never)
    assert [updates for updates in due if updates] == [60, 40, 20]


def test_rows_of_metrics_have_only_names_with_a_meaning(tmp_path: Path) -> None:
    schedule = {"warmup_steps": 800, "checkpoint_every": 1_000, "updates_per_step": 0.3}
    start(tmp_path / "run", small_config(steps=2_000, schedule=schedule))
    rows = read_metrics(tmp_path / "run")
    assert [row["steps"] for row in rows] == [1000, 2000]
    names = {name.removesuffix("cost") + "NAME" if name.endswith("/cost") else name for name in rows[-1]}
    assert names <= METRICS.keys()
    assert {
        "train/return",
        "train/cost/NAME",
        "train/cost_limit/NAME",
        "estep/cost_residual_max/NAME",
        "mstep/kl_mean",
    } <= names
    assert {"estep/infeasibility/NAME", "mstep/gap/NAME"} <= names  # terms of the bound on the cost
    assert rows[-1]["estep/kl_residual_max"] <= 1e-6
    assert rows[-1]["estep/cost_residual_max/cost"] <= 1e-6


# Stopped and resumed.


@pytest.mark.parametrize("stop_at", [200, 100, 276])
def test_a_run_stopped_and_resumed_equals_one_that_was_not(whole: Path, tmp_path: Path, stop_at: int) -> None:
    # At a checkpoint; in the warm-up; in the middle of episodes and of an M-step's period.
    run = tmp_path / "run"
    start(run, stop_at=stop_at)
    assert saved(run).steps == stop_at
    go_on(run)
    assert_same_run(whole, run)
    assert set(checkpoint_steps(whole)) <= set(checkpoint_steps(run))


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one(whole: Path, tmp_path: Path) -> None:
    # Killed without a word at 300: what was written since the checkpoint at 200 is made again.
    run = tmp_path / "run"
    reports = Reports()

    def killed() -> bool:
        if reports.last is not None and reports.last.steps >= 300:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(small_config(steps=TOTAL), run, reports, killed)
    assert saved(run).steps == 200
    go_on(run)
    assert_same_run(whole, run)
    assert list(read_evaluations(run)) == [200, 400]


def test_a_run_stopped_before_its_first_step_begins_when_it_is_resumed(whole: Path, tmp_path: Path) -> None:
    train(small_config(steps=TOTAL), tmp_path / "run", Reports(), lambda: True)
    go_on(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_run_killed_in_its_last_evaluation_makes_it_when_it_is_resumed(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text(lines[0] + lines[1][:50])
    with pytest.raises(ConfigError, match=r"has come to 400 steps\. Give --steps of at least that many"):
        go_on(run, steps=300)
    go_on(run)
    assert_same_run(whole, run)
    with pytest.raises(ConfigError, match="complete at 400 steps"):
        go_on(run)


def test_a_damaged_checkpoint_that_was_not_evaluated_is_passed_over(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "evaluations.jsonl").unlink()
    (run / "checkpoints" / "0000000200" / "policy.pt").write_bytes(b"")
    reports = go_on(run)
    assert [text for text in reports.said if "not evaluated" in text and "0000000200 was cut short" in text]
    assert list(read_evaluations(run)) == [400]


def test_stopping_leaves_a_checkpoint_that_can_be_used(tmp_path: Path) -> None:
    start(tmp_path / "run", stop_at=276)
    assert checkpoint_steps(tmp_path / "run")[-1] == 276
    policy = load_policy(tmp_path / "run", 276)
    action = policy.model.distribution(torch.tensor([[3.0]]))[0].tanh()
    assert torch.isfinite(action).all()


def test_a_stopped_run_keeps_the_dates_of_its_checkpoints(tmp_path: Path) -> None:
    start(tmp_path / "run", stop_at=276)
    go_on(tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [200, 276, 400]


def test_a_run_can_be_made_longer_and_then_go_on(tmp_path: Path) -> None:
    # Without settling, which begins where the planned steps say.
    run, straight = tmp_path / "run", tmp_path / "straight"
    start(run, small_config(steps=200, settle={"share": 0.0}))
    go_on(run, steps=400, stop_at=300)
    assert read_config(run).schedule.steps == 400
    go_on(run)  # and no one has to say 400 again
    start(straight, small_config(settle={"share": 0.0}))
    assert_same_run(straight, run)


def test_metrics_of_an_unconstrained_cost_are_json_too(tmp_path: Path) -> None:
    # It has no residual: -inf would be written as -Infinity, which JSON has no number for.
    start(tmp_path / "run", small_config(float("inf"), steps=1_000, schedule={"updates_per_step": 0.1}))
    (row,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "estep/temperature" in row
    assert "Infinity" not in row


def test_an_unconstrained_run_can_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, small_config(float("inf"), steps=TOTAL), stop_at=200)
    reports = go_on(run)
    assert reports.last is not None
    assert reports.last.cost_multiplier is not None
    np.testing.assert_array_equal(reports.last.cost_multiplier, [0.0])
    assert load_policy(run, 400).constraints[0].cost_limit is None


def test_a_run_with_a_scheduled_limit_can_be_resumed_and_is_judged_by_its_final_one(tmp_path: Path) -> None:
    # From 40, which no episode exceeds, at step 200 to 0, which every one does, at 360.
    config = small_config(0.0, steps=TOTAL, limit={"schedule": [(200, [40.0]), (360, [0.0])]})
    reports = start(tmp_path / "whole", config)
    assert [report.evaluation.over_limit_share for report in reports.checkpoints] == [(1.0,), (1.0,)]
    reports = start(tmp_path / "run", config, stop_at=280)
    assert reports.last is not None
    np.testing.assert_allclose(reports.last.cost_limit, [20.0])
    with pytest.raises(ConfigError, match=r"limit\.schedule ends at 360 steps, but the run at 320"):
        go_on(tmp_path / "run", steps=320)
    go_on(tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# What is refused.


def test_a_folder_in_use_is_refused(whole: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not empty.*--resume"):
        start(whole)
    assert checkpoint_steps(whole) == [200, 400]


def test_the_command_that_is_named_can_be_typed_where_a_path_has_spaces(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match=r"go on with it: cvpo train --resume '/.*/my run'"):
        start(run)


def test_a_finished_run_says_how_to_train_longer(whole: Path) -> None:
    with pytest.raises(ConfigError, match=r"complete at 400 steps.*--steps"):
        go_on(whole)


def test_a_config_edited_after_the_start_is_refused(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    document = json.loads((run / CONFIG).read_text())
    document["cost_limits"] = [5.0]
    (run / CONFIG).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="was changed since the run began"):
        go_on(run, steps=800)


def test_a_run_of_a_device_that_is_not_there_is_refused_and_stays(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    folder = run / "resume" / "0000000400"
    contents = read_verified(folder)
    assert contents is not None
    state = torch.load(io.BytesIO(contents["state.pt"]))
    on_cuda = state | {"config": state["config"].replace('"device":"cpu"', '"device":"cuda"')}
    assert on_cuda != state
    shutil.rmtree(folder)
    write_verified(folder, contents | {"state.pt": to_bytes(on_cuda)}, CheckpointError)
    with pytest.raises(CheckpointError, match="was changed since the run began"):  # it says cpu
        go_on(run, steps=800)
    (run / CONFIG).write_text(on_cuda["config"])
    with pytest.raises(ConfigError, match=r"compute\.device is cuda, but torch .* finds no CUDA device"):
        go_on(run, steps=800)
    assert saved(run).steps == 400


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run"):
        go_on(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_still_going_is_neither_resumed_nor_begun_again(tmp_path: Path) -> None:
    run, reports = tmp_path / "run", Reports()
    refused: list[object] = []

    def second() -> bool:
        if reports.last is not None and reports.last.steps == 240 and not refused:
            for attempt in (go_on, start):
                with pytest.raises(CheckpointError, match=rf"is being trained by process {os.getpid()} on") as caught:
                    attempt(run)
                refused.append(caught)
        return False

    train(small_config(steps=TOTAL), run, reports, second)
    assert len(refused) == 2
    assert saved(run).steps == TOTAL


def test_a_run_whose_resume_points_were_removed_is_not_begun_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "resume")
    with pytest.raises(CheckpointError, match="resume was removed"):
        go_on(tmp_path / "run")
    assert list(read_evaluations(tmp_path / "run")) == [200, 400]


def test_the_number_of_limits_is_that_of_the_costs(tmp_path: Path) -> None:
    config = small_config().model_copy(update={"cost_limits": (1.0, 2.0)})
    with pytest.raises(ConfigError, match=r"2 entries but tests.budget:make reports 1 \(cost\)"):
        start(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("group", "setting"),
    [
        ({"replay": {"capacity": 2**31 - 1}, "schedule": {"steps": 2**31 - 1}}, "replay.capacity"),
        ({"limit": {"window_episodes": 1e9}}, "environment.max_episode_steps"),  # 40 times as many steps
    ],
)
def test_what_memory_has_no_room_for_is_named(group: dict[str, Any], setting: str, tmp_path: Path) -> None:
    document = small_config(steps=TOTAL).model_dump()
    for name, changes in group.items():
        document[name] |= changes
    with pytest.raises(ConfigError, match=rf"no memory for .* Unable to allocate .* Give a smaller {setting}"):
        train(parse_config(document), tmp_path / "run", Reports(), never)
    assert not (tmp_path / "run").exists()


def test_a_run_stores_no_more_than_it_will_collect_and_can_be_made_longer(tmp_path: Path) -> None:
    # For 2**31 - 1 rows there is no memory; 406 steps end at 408, as 4 environments take them together.
    runs = [tmp_path / "run", tmp_path / "same"]
    for run, capacity in zip(runs, (2**31 - 1, 1_000), strict=True):
        start(run, small_config(steps=406, replay={"capacity": capacity}))
        go_on(run, steps=600)
    assert (runs[0] / "residuals.csv").read_text() == (runs[1] / "residuals.csv").read_text()
    assert read_evaluations(runs[0]) == read_evaluations(runs[1])


def test_an_unknown_environment_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(EnvError):
        start(tmp_path / "run", small_config(environment={"env_id": "tests.budget:nothing"}))
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_ends_the_run_with_a_sentence_and_its_last_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "0000000400" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"Cannot write .*0000000400: No space left on device"):
        start(run)
    monkeypatch.undo()
    assert checkpoint_steps(run) == [200]
    assert saved(run).steps == 200
    go_on(run)
    assert_same_run(whole, run)


def test_metrics_that_cannot_be_written_end_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cvpo.training.metrics.MetricsWriter.evaluation", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*--resume"):
        start(tmp_path / "run")


def test_a_folder_that_is_moved_in_mid_run_ends_it_with_what_to_do_and_it_goes_on_there(
    whole: Path, tmp_path: Path
) -> None:
    run, moved, reports = tmp_path / "run", tmp_path / "moved", Reports()

    def move() -> bool:
        if reports.last is not None and reports.last.steps == 300 and run.exists():
            run.rename(moved)
        return False

    with pytest.raises(CheckpointError, match=r"run was removed or moved while .*go on .*--resume.*begin again"):
        train(small_config(steps=TOTAL), run, reports, move)
    assert not run.exists()
    go_on(moved)
    assert_same_run(whole, moved)


def test_transitions_that_are_moved_in_mid_run_end_it_with_their_folder_and_it_goes_on_when_they_are_back(
    whole: Path, tmp_path: Path
) -> None:
    run, moved, reports = tmp_path / "run", tmp_path / "moved", Reports()

    def move() -> bool:
        if reports.last is not None and reports.last.steps == 300 and not moved.exists():
            (run / "replay").rename(moved)
        return False

    with pytest.raises(CheckpointError, match=r"run/replay, .* was removed or moved .*--resume.*begin again") as caught:
        train(small_config(steps=TOTAL), run, reports, move)
    assert "Free space" not in str(caught.value)
    moved.rename(run / "replay")
    go_on(run)
    assert_same_run(whole, run)


# What is stored.


class Corridor(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Shows the time; step t earns t and costs 2t. Every second episode terminates at 5, the others run on."""

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 100.0, (1,), np.float64)
        self.action_space = Box(-1.0, 1.0, (1,), np.float64)
        self.time, self.terminates = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time, self.terminates = 0, not self.terminates
        return np.zeros(1), {}

    def step(self, action: NDArray[np.float64]) -> Any:
        self.time += 1
        ends = self.terminates and self.time == 5
        return np.full(1, float(self.time)), float(self.time), ends, False, {"cost": 2.0 * self.time}


class Endless(Corridor):
    """No episode terminates."""

    def step(self, action: NDArray[np.float64]) -> Any:
        self.terminates = False
        return super().step(action)


def test_the_replay_holds_the_returns_worked_out_by_hand(tmp_path: Path) -> None:
    # gamma 0.8 and three steps, and a time limit of 8 where an episode does not terminate at 5. Each row: time, reward,
    # half the cost, factors of the reward and cost values that follow, and the time at which they are. Reward ends with
    # a termination; cost goes on with that of the next episode.
    following = [
        (0, 1 + 0.8 * 2 + 0.64 * 3, 0.512, 3),
        (1, 2 + 0.8 * 3 + 0.64 * 4, 0.512, 4),
        (2, 3 + 0.8 * 4 + 0.64 * 5, 0.512, 5),
        (3, 4 + 0.8 * 5 + 0.64 * 6, 0.512, 6),
        (4, 5 + 0.8 * 6 + 0.64 * 7, 0.512, 7),
        (5, 6 + 0.8 * 7 + 0.64 * 8, 0.512, 8),
        (6, 7 + 0.8 * 8, 0.64, 8),
        (7, 8, 0.8, 8),
    ]
    terminated = [
        (2, 3 + 0.8 * 4 + 0.64 * 5, 3 + 0.8 * 4 + 0.64 * 5, 0, 0.512, 0),
        (3, 4 + 0.8 * 5, 4 + 0.8 * 5 + 0.64 * 1, 0, 0.512, 1),
        (4, 5, 5 + 0.8 * 1 + 0.64 * 2, 0, 0.512, 2),
    ]
    expected = [(time, total, total, factor, factor, then) for time, total, factor, then in following] + terminated
    # The first environment, whose episodes are never cut short.
    environment = {"env_id": "tests.training.test_trainer:Corridor", "max_episode_steps": 8, "num_envs": 1}
    start(tmp_path / "run", small_config(steps=162, environment=environment))
    stored = {name: torch.tensor(array).double() for name, array in transitions(tmp_path / "run").items()}
    columns = (
        stored["observation"][:, 0],
        stored["reward"],
        stored["cost"][:, 0] / 2,
        stored["discount"],
        stored["cost_discount"][:, 0],
        stored["next_observation"][:, 0],
    )
    rows = {tuple(round(value, 4) for value in row) for row in torch.stack(columns, 1).tolist()}
    assert rows == {tuple(round(float(value), 4) for value in row) for row in expected}


def test_the_newest_transitions_are_of_all_of_an_episode(tmp_path: Path) -> None:
    # Two environments whose episodes all take 8 steps: the newest 8 transitions are of half as many steps of time.
    class_name = "tests.training.test_trainer:Endless"
    start(tmp_path / "run", small_config(steps=162, environment={"env_id": class_name, "max_episode_steps": 8}))
    times = transitions(tmp_path / "run")["observation"][-8:, 0]
    assert len(set(times.tolist())) >= 6


# Constraints.


def test_each_cost_becomes_a_constraint_with_its_discount_and_horizon(whole: Path) -> None:
    policy = load_policy(whole, 400)
    (constraint,) = constraints_of(policy.config, policy.spec)
    assert (constraint.name, constraint.cost_limit) == ("cost", 20.0)
    assert (constraint.discount, constraint.horizon_steps) == (0.8, STEPS)
    assert constraint.window_steps == 5  # 1/(1 − 0.8)
    assert policy.constraints == (constraint,)


def test_each_constraint_has_its_costs_discount_and_all_the_window_of_the_longest() -> None:
    two = small_config().model_dump() | {"cost_limits": [20.0, 1.0], "critic": {"cost_discounts": [0.5, 0.9]}}
    constraints = constraints_of(parse_config(two), replace(spec(2), max_episode_steps=STEPS))
    assert [constraint.discount for constraint in constraints] == [0.5, 0.9]
    assert [constraint.window_steps for constraint in constraints] == [10, 10]
    assert constraints[1].threshold() == pytest.approx((1 - 0.9**STEPS) / (0.1 * STEPS))


@pytest.mark.parametrize(("wanted", "deterministic", "measured"), [(2, 2, 2), (9, 3, 3), (0, 0, 4)])
def test_environments_that_act_as_the_served_policy_are_those_whose_cost_is_held(
    wanted: int, deterministic: int, measured: int
) -> None:
    settings = small_config(limit={"deterministic_envs": wanted})  # of 4 environments, one of which must explore
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        loop = trainer._Loop(settings, trainer.constraints_of(settings, env.spec), env)
        observation = env.reset()
        loop.steps = settings.schedule.warmup_steps
        same = (loop._choose(observation) == loop._choose(observation)).all(1)
    assert same.tolist() == [True] * deterministic + [False] * (4 - deterministic)
    assert loop.watch.meter.window.shape == (2 * STEPS, measured, 1)


@pytest.mark.parametrize(("limit", "effort", "falls"), [(0.0, 0.0, True), (0.0, 0.1, False), (20.0, 20 / STEPS, False)])
def test_what_was_asked_for_is_taken_back_where_nothing_may_cost_and_nothing_does(
    limit: float, effort: float, falls: bool
) -> None:
    settings = small_config(limit, limit={"aim": 1.0})
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        loop = trainer._Loop(settings, trainer.constraints_of(settings, env.spec), env)
        loop.learner.updates, loop.learner.controller = 1, replace(loop.learner.controller, integral=np.array([0.5]))
        observation = env.reset()
        for _ in range(3):
            env.step_async(np.full((4, 1), effort))
            observation = loop._take_in(observation, np.full((4, 1), 2 * effort - 1))
    assert (loop.learner.controller.integral[0] < 0.5) == falls


@pytest.mark.parametrize(("what", "follows"), [("state", 0.25), ("next_episode", -0.5)])
def test_what_follows_the_time_limit_is_as_the_run_is_told(what: str, follows: float) -> None:
    settings = small_config(critic={"after_time_limit": what})
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        loop = trainer._Loop(settings, trainer.constraints_of(settings, env.spec), env)
        before, reached, first = (np.full((4, 1), x, np.float32) for x in (0.0, 0.25, -0.5))
        none = np.zeros(4, bool)
        loop.collector.add(before, before, VectorStep(first, reached, np.zeros(4), np.zeros((4, 1)), none, ~none))
    assert loop.replay.next_observation[:4, 0].tolist() == [follows] * 4


@pytest.mark.parametrize("constraint", ["measured", "critic"])
def test_checkpoints_have_their_critics_at_the_level_of_the_measured_episodes(tmp_path: Path, constraint: str) -> None:
    """They say a tenth of what comes of the served policy, and less of what comes of the explorers."""
    settings = small_config(estep={"constraint": constraint})
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        loop = trainer._Loop(settings, trainer.constraints_of(settings, env.spec), env)
        loop.learner.updates = 1
        observation, action, discount = np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32), 0.8
        said = learner.cost_values(loop.learner, observation[:1], action[:1])[0]
        for t in range(10 * STEPS):
            ends = np.full(4, t % STEPS == STEPS - 1)
            cost = np.array([[1.0], [1.0], [99.0], [99.0]]) * 10 * (1 - discount) * said  # the last two explore
            step = VectorStep(observation, observation, np.zeros(4), cost, np.zeros(4, bool), ends)
            loop.level.take_in(loop.learner, observation, action, step, measured=2)
        factor = loop._model().cost_factor.tolist()
    assert factor == ([1.0] if constraint == "critic" else [pytest.approx(5.0)])  # the bound of it


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        (
            "LateRaise",
            EnvError,
            r":LateRaise, at step \d of .*the gripper is stuck \(toys\.py, line \d+\)\. Mend the environment, then",
        ),
        ("LateShape", EnvError, r":LateShape, at step \d of .*3 values instead of 2\. Mend the environment, then"),
        ("LateNan", EnvError, r":LateNan, at step \d of .*observation\[0\] is nan, .* Mend the environment, then"),
        (
            "LateDeath",
            WorkerError,
            r"At step 396, update \d+: .*process \d+ \(environments 0 to 3 of .*:LateDeath\) ended by SIGKILL.*, then",
        ),
        (
            "LateHang",
            WorkerError,
            r"At step 396, .* process \d+ \(.*:LateHang\) has not answered for 0\.5 seconds.*, then",
        ),
    ],
)
def test_a_simulator_that_fails_ends_the_run_with_a_sentence_and_nothing_is_lost(
    name: str, kind: type[Exception], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "env_id": f"tests.envs.toys:{name}",
        "max_episode_steps": 8,
        "workers": 1,
        "step_timeout_seconds": 0.5,
    }
    config = small_config(steps=TOTAL, environment=environment)
    with pytest.raises(kind, match=rf"{sentence} go on from the newest checkpoint: cvpo train --resume"):
        start(tmp_path / "run", config)
    assert not multiprocessing.active_children()
    assert saved(tmp_path / "run").steps == 200
    Path("mended").touch()
    go_on(tmp_path / "run")
    start(tmp_path / "straight", config)
    points = saved(tmp_path / "run"), saved(tmp_path / "straight")
    assert_same(points[0].state, points[1].state)
    assert points[0].row_files == points[1].row_files


@pytest.mark.parametrize(
    ("network", "update", "sentence"),
    [
        ("behavior_policy.mean.bias", 61, r"The action of the policy is nan for the observation \[[13]\.\]\."),
        ("target_critics.output_bias", 61, r"The reward_value of the target critics is nan for the observation \["),
        ("model.critics.output_bias", 61, r"The loss of the critics is nan\."),
        ("model.policy.mean.bias", 61, r"The loss of the policy is nan\."),
        ("model.policy.mean.bias", 139, r"policy\.mean\.bias has a NaN or infinite entry\."),  # before a checkpoint
    ],
)
def test_a_network_that_diverges_ends_the_run_and_leaves_the_checkpoints_before(
    network: str, update: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Callable[..., UpdateMetrics] = learner.update

    def poisoned(state: LearnerState, *arguments: Any, held: bool) -> UpdateMetrics:
        metrics = plain(state, *arguments, held=held)
        if state.updates == update:
            with torch.no_grad():
                operator.attrgetter(network)(state).fill_(float("nan"))
        return metrics

    monkeypatch.setattr(learner, "update", poisoned)
    run = tmp_path / "run"
    told = (
        rf"At step \d+, update {update}: {sentence}.* The checkpoints in .*run are from before that, and stay\. Start"
    )
    with pytest.raises(NonFiniteError, match=told):
        start(run)
    assert checkpoint_steps(run) == [200]
    assert saved(run).steps == 200


def test_what_does_not_change_the_learning_may_change_when_a_run_goes_on(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, stop_at=200)
    document = json.loads((run / CONFIG).read_text())
    document["environment"] |= {"workers": 1, "step_timeout_seconds": 7.0}
    (run / CONFIG).write_text(json.dumps(document))
    go_on(run)
    assert saved(run).row_files == saved(whole).row_files


class Locked(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Shows the number of its episode at every step; holds a lock, so that it cannot be pickled."""

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (1,), np.float64)
        self.action_space = Box(-1.0, 1.0, (1,), np.float64)
        self.lock = threading.Lock()
        self.episode = np.zeros(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode = self.np_random.uniform(size=1)
        return self.episode, {}

    def step(self, action: NDArray[np.float64]) -> Any:
        return self.episode, 1.0, False, False, {"cost": 0.0}


def test_no_return_crosses_into_the_episode_that_a_resumed_run_begins_anew(tmp_path: Path) -> None:
    settings = small_config(
        steps=TOTAL, environment={"env_id": "tests.training.test_trainer:Locked", "max_episode_steps": 30}
    )
    start(tmp_path / "run", settings, stop_at=220)  # in the middle of an episode
    (said,) = [text for text in go_on(tmp_path / "run").said if "to the bit" in text]
    assert "4 of 4 environments could not be kept" in said
    replay = transitions(tmp_path / "run")
    np.testing.assert_array_equal(replay["observation"], replay["next_observation"])


@pytest.mark.parametrize("name", ["Handle", "KeptHandle"])
def test_an_environment_whose_state_is_outside_of_it_is_trained_evaluated_and_resumed(
    name: str, tmp_path: Path
) -> None:
    """Evaluated as Drift itself is, which is the same but for where its state is."""
    runs = [tmp_path / "drift", tmp_path / "run"]
    for run, toy in zip(runs, ("Drift", name), strict=True):
        environment = {"env_id": f"tests.envs.toys:{toy}", "max_episode_steps": 30}
        start(run, small_config(steps=TOTAL, environment=environment), stop_at=320)
    evaluated = [read_evaluations(run) for run in runs]
    assert len(evaluated[0]) > 0
    assert evaluated[1] == evaluated[0]
    (said,) = [text for text in go_on(runs[1]).said if "to the bit" in text]
    assert "4 of 4 environments could not be kept" in said
    assert TOTAL in read_evaluations(runs[1])
