"""What is measured against limits, of each cost by itself: what is out of reach for long, and what is said of it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cvpo.learning.learner import LearnerState, UpdateMetrics
from cvpo.training.limit_watch import LimitWatch
from tests import small_learners
from tests.small_policies import spec

EPISODE = 5  # steps
ENVS, MEASURED = 4, 2


def begin(limits: tuple[float, ...], **settings: dict[str, Any]) -> tuple[LimitWatch, LearnerState]:
    """Of 4 environments of which two are measured, over windows of 2 episodes of 5 steps; a run that has learned."""
    limit = {"window_episodes": 2, "integral_steps": 20} | settings.pop("limit", {})
    config = small_learners.config(limits, limit=limit, **settings)
    state = small_learners.create(config)
    state.updates = 1
    return LimitWatch(config, replace(spec(len(limits)), max_episode_steps=EPISODE), ENVS, MEASURED), state


def take_in(watch: LimitWatch, state: LearnerState, *cost: float, steps: int = 0, held: bool = False) -> None:
    """A step of the environments that are measured, each of which costs as much."""
    watch.take_in(state, np.tile(np.array(cost), (MEASURED, 1)), steps, held=held)


def update(*infeasibility: float) -> UpdateMetrics:
    """One whose thresholds were exceeded by as much where no q met all of them."""
    nothing = np.zeros(len(infeasibility))
    return UpdateMetrics(
        critic_loss=0.0,
        temperature=1.0,
        cost_multiplier=nothing,
        kl_residual=0.0,
        cost_residual=nothing,
        infeasibility=np.array(infeasibility),
        feasible=not any(infeasibility),
        share=None,
        cost_value=nothing,
        standard_deviation=1.0,
    )


def test_of_several_costs_those_that_are_out_of_reach_are_named_with_their_own_limit() -> None:
    # The first is within its limit, and the last has none. All that can be asked for is asked soon.
    watch, state = begin((10.0, 2.0, 0.5, np.inf), limit={"integral_gain": 100.0})
    said: list[str] = []
    for step in range(1, 11):
        take_in(watch, state, 1.0, 1.0, 2.0, 9.0, steps=ENVS * step)
        said += watch.newly_unmet(ENVS * step)
    assert said == [
        f"limit   {cost} an episode, over its limit of {limit}, and for 20 steps no more could be asked of an update. "
        "Perhaps no policy can meet this limit. Training goes on towards less cost."
        for cost, limit in (("cost_1 is 5", 2), ("cost_2 is 10", 0.5))
    ]
    assert watch.unmet_steps.tolist() == [0, 40, 40, 0]


def test_steps_over_a_limit_count_in_a_row_and_not_while_more_can_be_asked_for() -> None:
    watch, state = begin((2.0,), limit={"integral_gain": 100.0, "window_episodes": 0.2})
    for _ in range(3):
        take_in(watch, state, 1.0)
    assert watch.unmet_steps.tolist() == [12]
    take_in(watch, state, 0.4)  # 2 an episode, which is what it may be
    assert watch.unmet_steps.tolist() == [0]
    slow, state = begin((2.0,), limit={"integral_gain": 0.1, "gain_above": 0.1})
    for _ in range(3):
        take_in(slow, state, 1.0)
    assert slow.unmet_steps.tolist() == [0]


def test_under_the_critics_thresholds_one_update_that_meets_a_costs_own_is_enough() -> None:
    watch, state = begin((1.0, 1.0), estep={"constraint": "critic"})
    watch.see(update(0.0, 3.0))
    watch.see(update(2.0, 3.0))
    take_in(watch, state, 1.0, 1.0)
    assert watch.unmet_steps.tolist() == [0, 4]
    take_in(watch, state, 1.0, 1.0)  # no update says otherwise
    assert watch.unmet_steps.tolist() == [0, 8]
    watch.see(update(2.0, 0.0))
    take_in(watch, state, 1.0, 1.0)
    assert watch.unmet_steps.tolist() == [4, 0]


def test_a_cost_at_its_limit_or_between_that_and_what_it_is_held_at_is_not_over_it() -> None:
    watch, state = begin((10.0, 10.0, 1.0), limit={"aim": 0.5}, estep={"constraint": "critic"})
    watch.see(update(1.0, 1.0, 1.0))
    take_in(watch, state, 2.0, 1.6, 1.0)
    assert watch.unmet_steps.tolist() == [0, 0, 4]


def test_a_limit_that_changes_counts_as_it_is_at_the_step() -> None:
    points = [{"steps": 100, "cost_limits": [20.0]}, {"steps": 200, "cost_limits": [1.0]}]
    watch, state = begin((1.0,), limit={"integral_gain": 100.0, "schedule": points})
    take_in(watch, state, 2.0, steps=100)
    assert watch.unmet_steps.tolist() == [0]
    for _ in range(5):
        take_in(watch, state, 4.0, steps=150)
    assert watch.unmet_steps.tolist() == [20]
    (said,) = watch.newly_unmet(150)
    assert "over its limit of 10.5," in said


def test_the_controller_goes_by_what_the_cost_is_held_at_and_stays_while_the_policy_does() -> None:
    # 8 an episode, of a limit of 10: over the 5 that it is held at, so more is asked for; it is not over its limit.
    watch, state = begin((10.0,), limit={"aim": 0.5})
    for _ in range(3):
        take_in(watch, state, 1.6)
    assert state.controller.integral > 0
    assert watch.unmet_steps.tolist() == [0]
    before = state.controller.integral
    take_in(watch, state, 9.0, held=True)
    assert state.controller.integral == before
    assert watch.measured() == pytest.approx((3 * 1.6 + 9.0) / 4 * EPISODE)


def test_before_the_first_update_and_a_whole_window_nothing_is_asked_or_judged() -> None:
    watch, state = begin((1.0,))
    state.updates = 0
    for step in range(1, 11):
        take_in(watch, state, 2.0)
        assert np.isinf(state.controller.episode_cost).all() == (step < 10)
    assert (state.controller.integral.tolist(), watch.unmet_steps.tolist()) == ([0], [0])
    assert state.controller.episode_cost.tolist() == [10]


def test_what_was_measured_is_put_back() -> None:
    watch, state = begin((2.0, 10.0), limit={"integral_gain": 100.0})
    for _ in range(5):
        take_in(watch, state, 1.0, 1.5)
    again, _ = begin((2.0, 10.0))
    saved = watch.state()
    window: torch.Tensor = saved.pop("cost_window")
    again.restore({"cost_window": window, **json.loads(json.dumps(saved))})
    assert again.measured().tolist() == [5, 7.5]
    assert again.unmet_steps.tolist() == watch.unmet_steps.tolist() == [20, 0]
