"""What a run's loop takes in of a step, and what it forgets when environments begin anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cvpo.envs import VectorEnv
from cvpo.training import trainer
from tests.budget import STEPS, small_config


@contextmanager
def a_loop(**limit: Any) -> Iterator[trainer._Loop]:
    """Of four environments, of which the first two act as the served policy will, if `limit` does not say otherwise."""
    config = small_config(limit=limit)
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        yield trainer._Loop(config, trainer.constraints_of(config, env.spec), env)


def take_in(loop: trainer._Loop, observation: NDArray[np.float32], *efforts: float) -> NDArray[np.float32]:
    """One step of the problem, in which an effort is what a step costs."""
    action = np.array(efforts)[:, None]
    loop.env.step_async(action)
    return loop._take_in(observation, 2 * action - 1)


def test_what_an_episode_costs_at_most_is_told_by_a_full_window_and_not_before() -> None:
    with a_loop(window_episodes=4 / STEPS) as loop:
        observation, told = loop.env.reset(), []
        for _ in range(5):
            observation = take_in(loop, observation, 1.0, 1.0, 1.0, 1.0)
            told.append(loop.learner.controller.episode_cost.tolist())
    assert told == [[np.inf]] * 3 + [[STEPS]] * 2  # a cost of 1 at each of its 40 steps


def test_costs_of_explorers_are_no_part_of_what_a_step_of_the_served_policy_costs() -> None:
    with a_loop() as loop:
        observation = loop.env.reset()
        for _ in range(3):
            observation = take_in(loop, observation, 0.25, 0.25, 1.0, 1.0)
    assert loop.learner.controller.step_cost == pytest.approx([0.25])
    assert loop.learner.controller.costly_steps.tolist() == [6]


@pytest.mark.parametrize("held", [False, True])
def test_where_none_acts_as_the_served_policy_will_all_come_to_the_level_as_they_explore(held: bool) -> None:
    with a_loop(deterministic_envs=0) as loop:
        loop.learner.updates, loop.proof.held, loop.proof.first_step = 1, held, 0.0
        take_in(loop, loop.env.reset(), 0.0, 0.0, 0.0, 0.0)
    assert [len(steps) for steps in loop.level.steps] == [1] * 4


def test_of_environments_that_begin_anew_the_episode_under_way_is_forgotten() -> None:
    with a_loop() as loop:
        loop.learner.updates = 1  # from then on the level of the critics is measured
        observation = loop.env.reset()
        for _ in range(2):
            observation = take_in(loop, observation, 1.0, 1.0, 1.0, 1.0)
    before = loop.running_return.copy()
    assert (before >= 2).all()  # each step is worth 1 or 3
    assert [len(steps) for steps in loop.level.steps] == [2, 2, 0, 0]  # the last two explore
    loop.begin_anew(np.array([True, False, True, False]))
    assert loop.running_return.tolist() == [0, before[1], 0, before[3]]
    assert [len(steps) for steps in loop.level.steps] == [0, 2, 0, 0]
    assert [len(steps) for steps in loop.collector.pending] == [0, 2, 0, 2]


@pytest.mark.parametrize("held", [False, True])
def test_a_policy_that_settles_or_is_held_sees_its_observations_as_it_did(held: bool) -> None:
    with a_loop() as loop:
        observation, normalizer = loop.env.reset(), loop.learner.model.normalizer
        observation = take_in(loop, observation, 0.5, 0.5, 0.5, 0.5)
        assert normalizer.count == 4
        loop.proof.held = held
        loop.steps = 200 if held else loop.config.schedule.steps - 4  # in the part that settles
        before = normalizer.mean.clone(), normalizer.variance.clone()
        normalizer.high.fill_(0.0)
        take_in(loop, observation, 0.5, 0.5, 0.5, 0.5)
    assert normalizer.count == 4
    assert (normalizer.mean, normalizer.variance) == before
    assert normalizer.high > 0  # how far observations went is told all the same


@pytest.mark.parametrize("held", [False, True])
def test_nothing_more_is_asked_for_while_the_policy_is_held(held: bool) -> None:
    with a_loop() as loop:
        loop.learner.updates, loop.proof.held = 1, held
        take_in(loop, loop.env.reset(), 1.0, 1.0, 1.0, 1.0)  # twice the limit
    assert (loop.learner.controller.integral > 0).all() != held
    assert (loop.watch.meter.measured(STEPS) == STEPS).all()  # but it is measured


def test_what_a_held_policy_costs_is_measured_in_all_environments() -> None:
    with a_loop() as loop:
        loop.proof.held, loop.proof.first_step = True, 0.0
        take_in(loop, loop.env.reset(), 0.0, 0.0, 1.0, 0.0)
    assert (loop.proof.cost.tolist(), loop.proof.steps) == ([1.0], 4)


def test_explorers_come_to_the_level_when_the_policy_is_held_and_all_that_was_before_is_one_episode() -> None:
    with a_loop(window_episodes=1.0) as loop:
        loop.learner.updates = 1
        observation = take_in(loop, loop.env.reset(), 0.0, 0.0, 0.0, 0.0)
        assert [len(steps) for steps in loop.level.steps] == [1, 1, 0, 0]
        loop.level.meter = replace(loop.level.meter, episodes=np.array([9.0]))
        loop.steps, loop.proof.steps = loop.config.schedule.steps - 8, loop.config.schedule.steps - 8
        observation = take_in(loop, observation, 0.0, 0.0, 0.0, 0.0)
        assert loop.proof.held
        assert [len(steps) for steps in loop.level.steps] == [0] * 4
        assert loop.level.meter.episodes.tolist() == [1.0]
        take_in(loop, observation, 0.0, 0.0, 0.0, 0.0)
    assert [len(steps) for steps in loop.level.steps] == [1] * 4
