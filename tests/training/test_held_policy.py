"""When a run goes back to the last policy that held its limits, and when it goes on."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cvpo.envs import VectorEnv
from cvpo.training import trainer
from tests.budget import STEPS, small_config
from tests.training.test_loop import take_in

WINDOW = 4  # steps of each environment


class Run:
    """A run's loop, of which the policies are the test's."""

    def __init__(self, loop: trainer._Loop) -> None:
        self.loop = loop
        self.observation = loop.env.reset()
        loop.learner.updates = 1  # actions are the policy's from then on

    def set_policy(self, value: float) -> None:
        for network in (self.loop.learner.model.policy, self.loop.learner.behavior_policy):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.fill_(value)

    def policies(self) -> list[set[float]]:
        """Of the one that learns and the one that acts, what their parameters are."""
        networks = (self.loop.learner.model.policy, self.loop.learner.behavior_policy)
        return [{value for each in network.parameters() for value in each.flatten().tolist()} for network in networks]

    def pass_windows(self, count: int, cost: float, *, exhausted: bool = False) -> list[str]:
        """So many windows, each step of which costs so much; return what is said."""
        said = []
        for _ in range(count * WINDOW):
            self.observation = take_in(self.loop, self.observation, *[cost] * 4)
            if exhausted:
                controller = self.loop.learner.controller
                controller.integral[:] = self.loop.config.limit.integral_high
            if sentence := self.loop.held.take_in(self.loop.learner, self.loop.steps):
                said.append(sentence)
        return said


def run_of(**settings: dict[str, Any]) -> Iterator[Run]:
    config = small_config(**{"limit": {"window_episodes": WINDOW / STEPS}} | settings)
    with VectorEnv("tests.budget:make", num_envs=4, workers=0, seed=0) as env:
        yield Run(trainer._Loop(config, trainer.constraints_of(config, env.spec), env))


@pytest.fixture
def run() -> Iterator[Run]:
    yield from run_of()


def hold_and_lose(run: Run) -> list[str]:
    run.set_policy(0.25)
    run.pass_windows(2, 0.0)  # the second window begins with it, too
    run.set_policy(0.5)
    return run.pass_windows(5, 1.0, exhausted=True)


def test_a_limit_that_is_lost_puts_the_policy_back_and_says_so(run: Run) -> None:
    (said,) = hold_and_lose(run)
    assert "cost is 40 an episode, over its limit of" in said
    assert "put back to that of step" in said
    assert run.policies() == [{0.25}, {0.25}]
    state = run.loop.learner.optimizer.state
    assert not any(parameter in state for parameter in run.loop.learner.model.policy.parameters())


def test_a_limit_that_was_never_held_leaves_the_policy(run: Run) -> None:
    run.set_policy(0.5)
    assert run.pass_windows(10, 1.0, exhausted=True) == []
    assert run.policies() == [{0.5}, {0.5}]


def test_as_long_as_more_can_be_asked_for_the_policy_stays(run: Run) -> None:
    run.set_policy(0.25)
    run.pass_windows(2, 0.0)
    run.set_policy(0.5)
    assert run.pass_windows(2, 1.0, exhausted=True) == []
    run.loop.learner.controller.integral[:] = 0.0
    assert run.policies() == [{0.5}, {0.5}]


def test_a_policy_that_held_a_higher_limit_is_none_to_go_back_to(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.set_policy(0.25)
    run.pass_windows(2, 0.1)  # 4 an episode
    monkeypatch.setattr("cvpo.training.held_policy.limit_at", lambda config, steps: np.array([3.0]))
    run.set_policy(0.5)
    assert run.pass_windows(5, 1.0, exhausted=True) == []


def test_the_papers_own_constraint_is_left_as_it_is() -> None:
    for run in run_of(estep={"constraint": "critic"}):
        assert hold_and_lose(run) == []


def test_what_is_kept_is_restored(run: Run) -> None:
    run.set_policy(0.25)
    run.pass_windows(2, 0.0)
    state = copy.deepcopy(run.loop.held.state())
    for other in run_of():
        other.loop.held.restore(state)
        other.loop.steps = run.loop.steps
        other.set_policy(0.5)
        assert len(other.pass_windows(5, 1.0, exhausted=True)) == 1
        assert other.policies() == [{0.25}, {0.25}]


def test_what_the_policy_saw_observations_by_comes_back_with_it(run: Run) -> None:
    run.pass_windows(2, 0.0)
    normalizer = run.loop.learner.model.normalizer
    normalizer.count.fill_(1e6)
    assert run.pass_windows(5, 1.0, exhausted=True)
    assert normalizer.count < 1e6
