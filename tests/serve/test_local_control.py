"""Control sessions in this process."""

from pathlib import Path

import pytest

from serve.client import conversation
from serve.client.answer import Source
from serve.control_values import ConstantAction, Fallback, FallbackReason, Horizon
from serve.errors import HorizonError, InvalidRequestError, NotFoundError
from serve.local import LocalPolicy

OBSERVATION = [1, 2, -1]


@pytest.fixture(scope="module")
def policy(repository: Path) -> LocalPolicy:
    return LocalPolicy.load(repository, "goal")


def test_a_session_spends_its_budget_and_then_its_fallback_acts(policy: LocalPolicy) -> None:
    fallback = Fallback(
        ConstantAction((0.5, 0.5)), reasons=frozenset({FallbackReason.BUDGET_EXHAUSTED}), recovery_steps=1
    )
    with policy.control(cost_budget=[1, 9], extent=Horizon(3), fallback=fallback) as session:
        assert session.opened.cost_budget == (1.0, 9.0)
        first = session.step(OBSERVATION, cost=[0.5, 0])
        assert (first.source, first.step, first.cost_left.tolist()) == (Source.POLICY, 0, [0.5, 9.0])
        assert first.action.tolist() == [0.25, -2.0]
        second = session.step(OBSERVATION, cost=[0.5, 0])
        assert second.source is Source.FALLBACK
        assert second.fallback is not None
        assert second.fallback.reason is FallbackReason.BUDGET_EXHAUSTED
        assert second.action.tolist() == [0.5, 0.5]
        with pytest.raises(InvalidRequestError, match=r"step\.observation: has 2 values"):
            session.step([1, 2], cost=[0, 0])
        assert session.step(OBSERVATION, cost=[0, 0]).step == 2
        with pytest.raises(HorizonError):
            session.step(OBSERVATION, cost=[0, 0])


def test_the_cost_of_a_step_whose_observation_is_no_vector_counts(policy: LocalPolicy) -> None:
    with policy.control(cost_budget=[9, 9]) as session:
        with pytest.raises(InvalidRequestError, match="observation"):
            session.step([OBSERVATION], cost=[0.5, 0])
        assert session.step(OBSERVATION, cost=[0.25, 0]).cost_spent.tolist() == [0.75, 0]


def test_a_step_that_is_interrupted_does_not_hold_up_the_next(
    policy: LocalPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with policy.control() as session:
        with monkeypatch.context() as patch:
            patch.setattr(conversation, "decode_result", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.step(OBSERVATION, cost=[0.5, 0])
        assert session.step(OBSERVATION, cost=[0.25, 0]).cost_spent.tolist() == [0.75, 0]


def test_it_is_opened_and_closed_as_a_client_is(repository: Path) -> None:
    with LocalPolicy.load(str(repository), "goal") as policy, policy.control() as session:
        assert session.step(OBSERVATION, cost=[0, 0]).source is Source.POLICY


def test_an_opening_that_cannot_be_met_is_refused_as_by_a_server(policy: LocalPolicy, repository: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"open\.cost_budget\[1\]"):
        policy.control(cost_budget=[1, -1])
    with pytest.raises(NotFoundError):
        LocalPolicy.load(repository, "missing").control()
