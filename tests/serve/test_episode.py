"""Episodes through a session: what is sent, and what they add up to."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from serve.client import PolicyClient
from serve.client.answer import Source
from serve.client.episode import Env, episode_steps, run_episode
from serve.client.watchdog import Watchdog
from serve.control_values import ConstantAction, Fallback, FallbackReason, Horizon, RollingWindow
from serve.errors import HorizonError, InvalidRequestError
from serve.local import LocalPolicy
from tests.serve.conftest import PATIENCE_SECONDS
from tests.serve.faulty import FaultyServer, Stall


class Walk:
    """Always at (1, 2, -1); the reward is the first action; each step costs (1, 0.5)."""

    def __init__(self, steps: int = 4, ends: str = "truncated") -> None:
        self.steps, self.ends = steps, ends
        self.seed: int | None = None

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        self.seed, self.step_number = seed, 0
        return np.array([1.0, 2.0, -1.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        ended = self.step_number == self.steps
        info = {"cost": [1.0, 0.5], "damage": [2.0, 0.0]}
        return (
            np.array([1.0, 2.0, -1.0]),
            float(action[0]),
            ended and self.ends == "terminated",
            ended and self.ends == "truncated",
            info,
        )


@pytest.fixture(scope="module")
def policy(repository: Path) -> LocalPolicy:
    return LocalPolicy.load(repository, "goal", version=1)


def test_an_episode_adds_up_return_cost_and_who_acted(policy: LocalPolicy) -> None:
    fallback = Fallback(ConstantAction((1.0, 0.0)), reasons=frozenset({FallbackReason.BUDGET_EXHAUSTED}))
    env = Walk(ends="terminated")
    with policy.control(cost_budget=[2, 9], extent=Horizon(4), fallback=fallback) as session:
        result = run_episode(env, session, seed=7)
    assert env.seed == 7
    # The budget of 2 is spent when the third step is asked for: 0.25 + 0.25 by the policy, 1 + 1 by the fallback.
    assert (result.steps, result.fallbacks, result.watchdog_actions, result.terminated) == (4, 2, 0, True)
    assert result.episode_return == 2.5
    assert result.cost.tolist() == [4.0, 2.0]


def test_each_step_is_told_with_what_came_of_it(policy: LocalPolicy) -> None:
    with policy.control(cost_budget=[9, 9]) as session:
        steps = list(episode_steps(Walk(3), session, cost=lambda info: info["damage"]))
    assert [step.answer.cost_spent.tolist() for step in steps] == [[0, 0], [2, 0], [4, 0]]
    assert [step.truncated for step in steps] == [False, False, True]
    assert [step.terminated for step in steps] == [False, False, False]
    assert steps[0].answer.source is Source.POLICY


def test_the_cost_of_a_last_action_counts_for_the_next_episode(policy: LocalPolicy) -> None:
    with policy.control(cost_budget=[99, 99], extent=RollingWindow(100)) as session:
        first, second = (list(episode_steps(Walk(2), session)) for _ in range(2))
        next(episode_steps(Walk(2), session))  # left after one action
        last = session.step([1, 2, -1], cost=[0, 0])
    assert [step.answer.cost_spent.tolist() for step in first + second] == [[0, 0], [1, 0.5], [2, 1], [3, 1.5]]
    assert last.cost_spent.tolist() == [5, 2.5]


def test_costs_are_those_of_the_constraints_names_where_the_info_has_them(policy: LocalPolicy) -> None:
    class Named(Walk):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            *outcome, _ = super().step(action)
            return *outcome, {"cost": 7.0, "heat": 2.0, "wear": np.array([0.5])}

    with policy.control(cost_budget=[99, 99]) as session:
        assert [constraint.name for constraint in session.description.constraints] == ["heat", "wear"]
        assert run_episode(Named(4), session).cost.tolist() == [8.0, 2.0]


def test_the_cost_is_taken_where_the_info_has_not_all_of_the_constraints_names(policy: LocalPolicy) -> None:
    class Warm(Walk):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            *outcome, info = super().step(action)
            return *outcome, {**info, "heat": 36.6}

    with policy.control(cost_budget=[99, 99]) as session:
        assert run_episode(Warm(4), session).cost.tolist() == [4.0, 2.0]


def test_an_environment_may_use_its_cost_array_again(policy: LocalPolicy) -> None:
    class Frugal(Walk):
        cost = np.zeros(2)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            *outcome, _ = super().step(action)
            self.cost[:] = self.step_number, 0
            return *outcome, {"cost": self.cost}

    with policy.control(cost_budget=[99, 99]) as session:
        assert run_episode(Frugal(4), session).cost.tolist() == [1 + 2 + 3 + 4, 0]


def test_a_cost_that_does_not_fit_the_policy_is_refused(policy: LocalPolicy) -> None:
    with policy.control() as session, pytest.raises(InvalidRequestError, match="cost: has shape"):
        run_episode(Walk(), session, cost=lambda info: 1.0)


def test_an_environment_that_tells_no_cost_is_told_how_to(policy: LocalPolicy) -> None:
    class Silent(Walk):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return *super().step(action)[:4], {"damage": [2.0, 0.0]}

    with (
        policy.control() as session,
        pytest.raises(InvalidRequestError, match=r"^cost: is not in .* has \['damage'\]; give cost=, a function"),
    ):
        run_episode(Silent(), session)


def test_an_episode_longer_than_the_session_says_so(policy: LocalPolicy) -> None:
    with policy.control(extent=Horizon(2)) as session, pytest.raises(HorizonError):
        run_episode(Walk(), session)


def test_watchdog_actions_are_counted(repository: Path) -> None:
    server, stall = FaultyServer(repository), Stall()
    try:
        with (
            PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
            client.control(watchdog=Watchdog(timeout_seconds=0.2)) as session,
        ):
            server.behave = [stall]
            assert run_episode(Walk(), session).watchdog_actions == 4
    finally:
        stall.release.set()
        server.stop()


def test_a_gymnasium_environment_is_one() -> None:
    env: Env = gymnasium.make("Pendulum-v1")
    env.reset(seed=0)
