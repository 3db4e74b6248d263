"""The end of a run: when the policy is held as it is, what that changes, and when it learns again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cvpo.envs import VectorEnv
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig
from cvpo.training import trainer
from cvpo.training.checkpoint import checkpoint_steps, load_policy
from cvpo.training.proof import Proof
from cvpo.training.trainer import resume, train
from tests.budget import Reports, never, small_config
from tests.small_policies import spec

EPISODE = 10


def proof(limits: tuple[float, ...] = (5.0,), aim: float = 1.0, **settle: float) -> Proof:
    """Of 1,000 steps of 4 environments, whose episodes have 10, and after some of them that cost much."""
    config = small_config(steps=1_000, settle=settle, limit={"aim": aim})
    environment = replace(spec(len(limits)), max_episode_steps=EPISODE)
    begun = Proof(config.model_copy(update={"cost_limits": limits}), environment)
    for step in range(EPISODE):
        begun.take_in(costs(*[99.0] * len(limits)), None, 4 * step)
    return begun


def costs(*each: float) -> NDArray[np.float64]:
    return np.tile(np.array(each), (4, 1))


def test_a_policy_within_its_limits_is_held_in_the_last_part_of_the_run_alone() -> None:
    held = proof(proof=0.2)
    for steps in (4, 796, 800):
        held.take_in(costs(0.0), np.array([5.0]), steps)
        assert held.held == held.begun == bool(held.news) == (steps == 800)
    assert "step 800 on the policy stays as it is" in held.news[0]
    held.take_in(costs(0.0), np.array([5.0]), 804)
    assert (held.held, held.begun, held.news) == (True, False, [])


@pytest.mark.parametrize(
    ("limits", "measured"),
    [((5.0,), [5.1]), ((5.0, 1.0), [0.0, 1.1]), ((5.0,), None), ((np.inf,), [0.0])],
)
def test_a_policy_over_a_limit_is_not_held_nor_one_that_was_not_measured_nor_one_without_a_limit(
    limits: tuple[float, ...], measured: list[float] | None
) -> None:
    held = proof(limits)
    held.take_in(costs(*[0.0] * len(limits)), None if measured is None else np.array(measured), 990)
    assert not held.held


def test_a_cost_without_a_limit_says_nothing_against_a_policy() -> None:
    held = proof((5.0, np.inf))
    held.take_in(costs(0.0, 99.0), np.array([5.0, 990.0]), 900)
    for step in range(1, EPISODE + 1):
        assert held.held
        held.take_in(costs(0.5, 99.0), np.array([5.0, 990.0]), 900 + 4 * step)
    assert held.held


@pytest.mark.parametrize(
    ("measured", "steps", "begins"),
    [(4.0, 900, True), (4.1, 900, False), (4.1, 960, False), (1.5, 900, True), (1.4, 948, False), (1.4, 952, True)],
)
def test_half_of_the_room_below_the_limit_is_left_and_far_below_it_a_policy_learns_for_half_the_time(
    measured: float, steps: int, begins: bool
) -> None:
    held = proof(aim=0.6)  # of 5
    held.take_in(costs(0.0), np.array([measured]), steps)
    assert held.held == begins


@pytest.mark.parametrize(("limits", "begins"), [((5.0, 5.0), True), ((5.0, np.inf), False), ((5.0, 0.0), True)])
def test_no_more_than_one_cost_need_come_near_its_limit(limits: tuple[float, ...], begins: bool) -> None:
    held = proof(limits, aim=0.6)
    held.take_in(costs(0.0, 0.0), np.array([0.0, 5.0 if limits[1] == np.inf else min(4.0, limits[1])]), 900)
    assert held.held == begins


@pytest.mark.parametrize(("end", "stays"), [(940, False), (960, True)])
def test_a_held_policy_that_turns_out_far_below_its_limit_learns_on_while_there_is_time(end: int, stays: bool) -> None:
    held = proof()
    held.take_in(costs(0.0), np.array([5.0]), end - 40)
    for step in range(1, EPISODE + 1):
        assert held.held
        held.take_in(costs(0.24), np.array([5.0]), end - 40 + 4 * step)
    assert held.held == stays


def test_without_a_part_for_it_no_policy_is_held() -> None:
    held = proof(proof=0.0)
    held.take_in(costs(0.0), np.array([0.0]), 1_000)
    assert not held.held


@pytest.mark.parametrize(("cost", "stays"), [(0.5, True), (0.51, False)])
def test_a_held_policy_that_costs_too_much_over_an_episode_learns_again(cost: float, stays: bool) -> None:
    held = proof(aim=0.6)  # which says when it is begun, but not how much it may cost from then on
    held.take_in(costs(99.0), np.array([4.0]), 900)  # what comes before it is held does not count
    for step in range(1, EPISODE + 1):
        assert held.held
        held.take_in(costs(cost), np.array([99.0]), 900 + 4 * step)
    assert held.held == stays
    assert held.news == (
        [] if stays else ["proof   From step 940 on the policy learns again: its episodes came to cost_0 5.1."]
    )


def test_it_is_held_again_when_it_has_learned_for_as_long_and_is_within_its_limits() -> None:
    held = proof()
    held.take_in(costs(0.0), np.array([5.0]), 800)
    assert not held.held
    held.take_in(costs(0.0), np.array([5.0]), 900)
    for step in range(1, EPISODE + 1):
        held.take_in(costs(1.0), np.array([5.0]), 900 + 4 * step)
    for step in range(1, EPISODE + 1):
        assert not held.held  # what is measured now is mostly of the policy that failed
        held.take_in(costs(1.0), np.array([4.0]), 940 + 4 * step)
    assert (held.held, held.steps) == (True, 0)


def test_a_run_that_is_made_longer_learns_again_until_its_new_end() -> None:
    held, longer = proof(), proof()
    held.take_in(costs(0.0), np.array([5.0]), 900)
    held.take_in(costs(0.5), np.array([5.0]), 904)
    longer.restore(json.loads(json.dumps(held.state())))
    assert (longer.held, longer.steps, longer.episode_cost().tolist()) == (True, 4, [5.0])
    longer.first_step = 1_800.0
    longer.take_in(costs(0.0), np.array([5.0]), 908)
    assert not longer.held
    assert longer.news == ["proof   From step 908 on the policy learns again: the run is longer now."]


def whole_run(run: Path, config: TrainConfig) -> Reports:
    reports = Reports()
    train(config, run, reports, never)
    return reports


def policies(run: Path) -> list[dict[str, torch.Tensor]]:
    return [load_policy(run, steps).model.policy.state_dict() for steps in checkpoint_steps(run)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_last_policy_of_a_run_is_the_one_that_was_held_and_its_critics_have_learned_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small_config(cost_limit=30.0, steps=800, settle={"proof": 0.6}, limit={"window_episodes": 1})
    reports = whole_run(run, config)
    assert [text for text in reports.said if text.startswith("proof")] == [
        "proof   From step 320 on the policy stays as it is: its cost is within its limit."
    ]
    first, *others = policies(run)
    assert not same(first, others[0])
    assert all(same(others[0], other) for other in others)
    critics = [load_policy(run, steps).model.critics.state_dict() for steps in checkpoint_steps(run)]
    assert not same(critics[-2], critics[-1])


def test_what_random_actions_cost_counts_for_no_proof(tmp_path: Path) -> None:
    # The window is of 320 steps, and the first 160 are the warm-up.
    reports = whole_run(tmp_path / "run", small_config(cost_limit=30.0, steps=600, settle={"proof": 0.9}))
    assert [text for text in reports.said if text.startswith("proof")] == [
        "proof   From step 480 on the policy stays as it is: its cost is within its limit."
    ]


def test_a_run_over_its_limit_learns_to_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    reports = whole_run(run, small_config(cost_limit=0.0, steps=800, settle={"proof": 0.6}))
    assert not [text for text in reports.said if text.startswith("proof")]
    assert not same(*policies(run)[-2:])


def test_a_run_that_is_stopped_while_its_policy_is_held_goes_on_with_the_proof(tmp_path: Path) -> None:
    config = small_config(cost_limit=30.0, steps=800, settle={"proof": 0.6})
    whole_run(tmp_path / "whole", config)
    train(config, tmp_path / "run", (reports := Reports()), reports.stop_at(500))
    resume(tmp_path / "run", Reports(), never)
    assert same(policies(tmp_path / "whole")[-1], policies(tmp_path / "run")[-1])


@pytest.mark.parametrize(("deterministic", "while_held"), [(2, 4), (0, 0)])
def test_while_the_policy_is_held_all_act_as_it_will_be_served_where_some_did(
    deterministic: int, while_held: int
) -> None:
    config = small_config(limit={"deterministic_envs": deterministic})
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        loop = trainer._Loop(config, trainer.constraints_of(config, env.spec), env)
        observation = env.reset()
        loop.steps, loop.proof.held = config.schedule.warmup_steps, True
        repeated = (loop._choose(observation) == loop._choose(observation)).all(1)
    assert repeated.tolist() == [True] * while_held + [False] * (4 - while_held)


def test_an_update_of_a_held_policy_moves_the_critics_alone() -> None:
    config = small_config(mstep={"period": 1})
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        loop = trainer._Loop(config, trainer.constraints_of(config, env.spec), env)
        observation = env.reset()
        for _ in range(20):
            env.step_async(np.full((4, 1), 0.5))
            observation = loop._take_in(observation, np.zeros((4, 1)))
    batch = loop.replay.sample(loop.generator, 64, loop.recent_size)
    with torch.no_grad():  # some updates into a period: what was learned in it is not yet what acts, nor shall it be
        loop.learner.model.policy.mean.bias.add_(0.1)
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts(loop).items()}
    learner.update(loop.learner, batch, np.array([1.0]), 400, config, held=True)
    moved = {name for name, part in parts(loop).items() if not same(before[name], part.state_dict())}
    assert moved == {"critics", "target_critics"}


def parts(loop: trainer._Loop) -> dict[str, torch.nn.Module]:
    state = loop.learner
    return {
        "policy": state.model.policy,
        "behavior_policy": state.behavior_policy,
        "critics": state.model.critics,
        "target_critics": state.target_critics,
    }
