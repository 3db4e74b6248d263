"""Limits that no policy can meet, or that admit no cost at all, and tasks that can be left early."""

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cvpo.bundle import read_bundle
from cvpo.envs import VectorEnv
from cvpo.evaluate import Episode, TorchActor, run_episodes
from cvpo.training.checkpoint import checkpoint_steps, load_policy
from cvpo.training.metrics import read_metrics
from cvpo.training.progress import Progress
from cvpo.training.trainer import resume, train
from tests.budget import Reports, never, small_config
from tests.command import succeed
from tests.command import train as train_command

STEPS = 20  # of an episode that is not left


class Toll(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Each step earns 1 and costs 1, whatever is done; an action above 0.6 leaves, which ends the episode."""

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (1,), np.float64)
        self.action_space = Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.uniform(size=1), {}

    def step(self, action: NDArray[np.float64]) -> Any:
        return self.np_random.uniform(size=1), 1.0, float(action[0]) > 0.6, False, {"cost": 1.0}


class Errand(Toll):
    """The same, where effort decides what a step earns and costs: 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-1.0, 1.0, (2,), np.float64)

    def step(self, action: NDArray[np.float64]) -> Any:
        effort = (1 + float(action[1])) / 2
        observation, _, terminated, _, _ = super().step(action)
        return observation, effort, terminated, False, {"cost": effort}


TOLL: dict[str, Any] = {"env_id": "tests.training.test_extreme_limits:Toll", "max_episode_steps": STEPS}
FEW_UPDATES = {"updates_per_step": 0.1}  # where nothing is to be learned


def episodes(run: Path) -> list[Episode]:
    """Of the deterministic policy that a run ended with."""
    policy = load_policy(run, checkpoint_steps(run)[-1])
    spec = policy.spec
    with VectorEnv(spec.env_id, num_envs=4, workers=0, seed=7, max_episode_steps=spec.max_episode_steps) as env:
        return run_episodes(env, TorchActor(policy.model, spec), 8)


def test_leaving_early_is_no_way_to_be_safe(tmp_path: Path) -> None:
    # All that leaving does is that the cost goes on in another episode, and no more is earned in this one.
    environment = TOLL | {"env_id": "tests.training.test_extreme_limits:Errand"}
    train(small_config(8.0, 1_600, environment=environment), tmp_path, Reports(), never)
    seen = episodes(tmp_path)
    assert [len(episode.cost) for episode in seen] == [STEPS] * 8
    assert np.mean([episode.cost.sum() for episode in seen]) == pytest.approx(8, abs=2)


@pytest.mark.parametrize("constraint", ["measured", "critic"])
def test_a_limit_that_no_policy_can_meet_is_told_once_and_training_goes_on(constraint: str, tmp_path: Path) -> None:
    limit = {"integral_steps": 100}  # as many steps, with no more to ask for, count as long
    estep = {"constraint": constraint}
    config = small_config(0.5, 1_000, environment=TOLL, limit=limit, estep=estep, schedule=FEW_UPDATES)
    reports = Reports()
    train(config, tmp_path, reports, reports.stop_at(600))
    (told,) = [text for text in reports.said if text.startswith("limit")]
    assert told == (
        "limit   cost is 20 an episode, over its limit of 0.5, and for 100 steps no more could be asked of an update. "
        "Perhaps no policy can meet this limit. Training goes on towards less cost."
    )
    resumed = Reports()
    resume(tmp_path, resumed, never)
    assert not [text for text in resumed.said if text.startswith("limit")]  # it was said
    (row,) = read_metrics(tmp_path)
    assert 600 < row["limit/unmet_steps/cost"] < 1_000  # since before it was stopped
    assert all(math.isfinite(value) for value in row.values())
    assert row["mstep/standard_deviation"] < 2


def test_under_the_critics_threshold_a_limit_that_updates_can_meet_is_not_said_to_be_out_of_reach(
    tmp_path: Path,
) -> None:
    # The policy does not move, and costs 20 an episode. One action of less effort is 18 to the critics, so updates are
    # feasible once these have learned; the controller, which decides nothing here, would soon have no more to ask for.
    limit = {"integral_steps": 500, "integral_gain": 50.0}
    estep = {"constraint": "critic", "kl_bound": 2.0}
    config = small_config(18.0, 1_000, limit=limit, estep=estep, mstep={"learning_rate": 1e-9})
    reports = Reports()
    train(config, tmp_path, reports, never)
    (row,) = read_metrics(tmp_path)
    assert row["train/cost/cost"] == pytest.approx(20, abs=1)
    assert row["estep/infeasible_share"] < 0.5
    assert not [text for text in reports.said if text.startswith("limit")]
    assert row["limit/unmet_steps/cost"] < 500
    assert "estep/share/cost" not in row


def test_steps_without_an_update_say_no_more_of_a_limit_than_the_update_before(tmp_path: Path) -> None:
    # As above, where four steps of five are without one, and few updates are infeasible.
    limit = {"integral_steps": 500, "integral_gain": 50.0}
    estep = {"constraint": "critic", "kl_bound": 2.0}
    schedule = {"warmup_updates": 400, "updates_per_step": 0.05}
    config = small_config(19.5, 1_000, limit=limit, estep=estep, mstep={"learning_rate": 1e-9}, schedule=schedule)
    reports = Followed()
    train(config, tmp_path, reports, never)
    assert np.mean([unmet > 0 for step, unmet in reports.unmet if step > 600]) < 0.5


class Followed(Reports):
    """Keeps how long the limit was out of reach, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.unmet: list[tuple[int, float]] = []

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        self.unmet.append((progress.steps, float(progress.unmet_steps[0])))


def test_nothing_is_said_of_a_limit_that_is_met(tmp_path: Path) -> None:
    reports = Reports()
    config = small_config(20.0, 600, environment=TOLL, limit={"integral_steps": 100}, schedule=FEW_UPDATES)
    train(config, tmp_path, reports, never)
    assert not [text for text in reports.said if text.startswith("limit")]
    assert reports.last is not None
    assert reports.last.unmet_steps.tolist() == [0]


def test_a_limit_of_zero_drives_the_cost_to_zero(tmp_path: Path) -> None:
    # Random effort costs 20, and the most return takes 40.
    quick = small_config(0.0, 1_600, limit={"integral_steps": 200}, estep={"kl_bound": 0.3})
    with np.errstate(all="raise", under="ignore"):  # nothing is divided by the limit
        train(quick, tmp_path, Reports(), never)
    assert np.mean([episode.cost.sum() for episode in episodes(tmp_path)]) < 0.5
    assert all(math.isfinite(value) for row in read_metrics(tmp_path) for value in row.values())


def test_a_limit_of_zero_goes_all_the_way(tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundles" / "zero" / "1"
    with np.errstate(divide="raise", invalid="raise"):
        said = train_command(run, "--cost-limit", "0").err
        assert "/ 0 over" in said
        shown = succeed("export", run, "--out", bundle, "--calibration-episodes", "20", "--workers", "0").out
        assert "OVER the limit of 0" in shown
        succeed("plot", run)
    assert "**over** the limit of 0" in read_bundle(bundle).model_card
