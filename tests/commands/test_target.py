"""Evaluating what a user names, here a run; bundles and services are in test_end_to_end."""

from pathlib import Path

import numpy as np
import pytest

from cvpo.bundle import Mode
from cvpo.commands.target import EvaluatedMode, evaluate_target, open_target
from cvpo.errors import CheckpointError, ConfigError, ServiceError
from cvpo.evaluate import conditional_value_at_risk
from cvpo.learning.config import parse_config
from cvpo.training.trainer import train
from tests.budget import STEPS, Reports, never, small_config
from tests.serve import bundles


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "run"
    train(small_config(steps=400), path, Reports(), never)
    return path


def evaluated(run: Path, *modes: Mode, steps: int | None = None, seed: int = 0) -> list[EvaluatedMode]:
    target = open_target(str(run), steps=steps, seed=seed)
    return evaluate_target(target, modes, 12, seed=seed, workers=0)


def test_a_run_is_evaluated_on_fresh_episodes_against_its_limit(run: Path) -> None:
    target = open_target(str(run))
    assert (target.env_id, target.cost_names, target.cost_limits) == ("tests.budget:make", ("cost",), (20.0,))
    (found,) = evaluated(run, "deterministic")
    assert (found.evaluation.episodes, found.evaluation.mode) == (12, "deterministic")
    assert evaluated(run, "deterministic", steps=400)[0].document() == found.document()
    assert evaluated(run, "deterministic", seed=1)[0].document() != found.document()
    (earlier,) = evaluated(run, "deterministic", steps=200)
    assert earlier.evaluation.episode_return != found.evaluation.episode_return


def test_every_episode_is_kept_and_they_add_up_to_the_evaluation(run: Path) -> None:
    (found,) = evaluated(run, "sampled")
    assert (found.returns.shape, found.costs.shape) == ((12,), (12, 1))
    assert found.evaluation.episode_return.mean == found.returns.mean()
    assert found.evaluation.episode_cost[0].mean == pytest.approx(found.costs.mean())
    assert found.evaluation.cost_cvar90 == (conditional_value_at_risk(found.costs[:, 0], 0.9),)
    assert found.document()["returns"] == found.returns.tolist()


def test_each_mode_meets_the_same_episodes(run: Path) -> None:
    both = evaluated(run, "deterministic", "sampled")
    assert [one.evaluation.mode for one in both] == ["deterministic", "sampled"]
    apart = [evaluated(run, "deterministic")[0], evaluated(run, "sampled")[0]]
    assert [one.document() for one in both] == [one.document() for one in apart]
    assert (both[0].costs != both[1].costs).any()


def test_each_mode_meets_the_same_episodes_of_a_simulator_that_cannot_be_pickled(tmp_path: Path) -> None:
    environment = {"env_id": "tests.envs.toys:KeptHandle", "max_episode_steps": 30}
    train(small_config(environment=environment), tmp_path / "run", Reports(), never)
    both = evaluated(tmp_path / "run", "sampled", "deterministic")
    assert both[1].document() == evaluated(tmp_path / "run", "deterministic")[0].document()


def test_progress_tells_of_episodes_that_are_done_and_of_steps(run: Path) -> None:
    told: list[tuple[int, int, float]] = []
    evaluate_target(
        open_target(str(run)),
        ["deterministic"],
        12,
        workers=0,
        progress=lambda mode, done, episodes, share: told.append((done, episodes, share)),
    )
    rounds = 2  # 12 episodes in 10 environments
    assert told == [
        (0 if step < STEPS else 10 if step < 2 * STEPS else 12, 12, step / (rounds * STEPS))
        for step in range(1, rounds * STEPS + 1)
    ]


def test_a_checkpoint_that_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at 7 steps"):
        open_target(str(run), steps=7)


def test_a_run_cannot_be_shielded_and_says_so_before_anything_is_run(run: Path) -> None:
    told: list[str] = []
    with pytest.raises(ConfigError, match="export"):
        evaluate_target(
            open_target(str(run)),
            ["sampled", "shielded"],
            2,
            workers=0,
            progress=lambda mode, done, episodes, share: told.append(mode),
        )
    assert told == []


def test_options_of_another_kind_of_target_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a run, which has one policy; leave out --policy"):
        open_target(str(run), policy="goal")
    with pytest.raises(ConfigError, match=r"is not a run, and only a run has checkpoints; leave out --step"):
        open_target(str(tmp_path), steps=400)


def test_a_target_that_is_nothing_known_is_named() -> None:
    with pytest.raises(ConfigError, match="nowhere is neither a run nor a bundle"):
        open_target("nowhere")


def test_a_folder_of_several_policies_names_them_and_says_how_to_choose(tmp_path: Path) -> None:
    for name in ("goal", "circle"):
        bundles.write(tmp_path / name, bundles.manifest(name))
    with pytest.raises(ServiceError, match=r"this server has circle, goal\. Say which with --policy\."):
        open_target(str(tmp_path))
    assert open_target(str(tmp_path), policy="circle").cost_names
    with pytest.raises(ServiceError, match=r"no policy 'push'; this server has circle, goal\.$"):
        open_target(str(tmp_path), policy="push")


def test_costs_of_an_environment_are_kept_apart(tmp_path: Path) -> None:
    environment = {"env_id": "tests.envs.toys:drift", "cost_names": ("cost", "cost_fuel")}
    groups = small_config(environment={"env_id": "tests.envs.toys:drift"}).model_dump()
    groups["environment"] |= environment
    train(parse_config(groups | {"cost_limits": [18.0, float("inf")]}), tmp_path / "run", Reports(), never)
    (found,) = evaluated(tmp_path / "run", "deterministic")
    assert found.costs.shape == (12, 2)
    np.testing.assert_allclose([cost.mean for cost in found.evaluation.episode_cost], found.costs.mean(0))
    assert open_target(str(tmp_path / "run")).cost_limits == (18.0, float("inf"))
