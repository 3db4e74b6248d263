"""Control sessions of both clients against servers that stall, break off, refuse, stop, and come back."""

import asyncio
import dataclasses
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import ArrayLike

from serve.client import PolicyClient
from serve.client.aio import AsyncPolicyClient
from serve.client.answer import ControlAnswer, Source
from serve.client.control_aio import AsyncControlSession, _Stream
from serve.client.control_client import ControlSession, RemoteControlSession
from serve.client.watchdog import Watchdog, WatchdogReason
from serve.control_codec import encode_step_error
from serve.control_values import (
    BackupPolicy,
    ConstantAction,
    Fallback,
    FallbackReason,
    HoldLastAction,
    Horizon,
    LeastUnsafeAction,
    RollingWindow,
    SessionOpened,
)
from serve.errors import (
    FingerprintError,
    HorizonError,
    InvalidRequestError,
    PolicyServiceError,
    ResourceExhaustedError,
    SupersededError,
    UnavailableError,
)
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.server.session import Session
from serve.server.status import status_of
from serve.values import Sampled
from tests.serve.conftest import PATIENCE_SECONDS
from tests.serve.faulty import Answers, FaultyServer, Stall, answer
from tests.serve.proxy import Proxy
from tests.serve.running import LoopThread

OBSERVATION = [1, 2, -1]
ACTION = [0.25, -2.0]
OTHER = [0.5, 0, 0]
OTHER_ACTION = [0.25, 0.0]
SAFE = [0.0, 0.0]
TOO_LARGE = [1, 1e39, 0]  # for float32: the server finds an infinity
PATIENT = Watchdog(timeout_seconds=PATIENCE_SECONDS)
HASTY = Watchdog(timeout_seconds=0.05)


Open = Callable[..., ControlSession]


class OnLoop(ControlSession):
    """An asyncio session that is driven from a thread."""

    def __init__(self, loop: LoopThread, session: AsyncControlSession) -> None:
        super().__init__(session.description)
        self._loop = loop
        self._session = session

    @property
    def opened(self) -> SessionOpened:
        return self._session.opened

    def step(
        self, observation: ArrayLike, *, cost: ArrayLike | None = None, cost_total: ArrayLike | None = None
    ) -> ControlAnswer:
        return self._loop.run(self._session.step(observation, cost=cost, cost_total=cost_total))

    def count_cost(self, cost: ArrayLike) -> None:
        self._session.count_cost(cost)

    def close(self) -> None:
        self._loop.run(self._session.close())


@pytest.fixture(params=["threads", "asyncio"])
def control(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open sessions with a client of either kind; they are closed at the end."""
    sessions: list[ControlSession] = []
    loop = LoopThread()

    def open_session(addresses: list[str], timeout_seconds: float = PATIENCE_SECONDS, **options: Any) -> ControlSession:
        asked = {name: options.pop(name) for name in ("version", "fingerprint") if name in options}
        session: ControlSession
        if request.param == "threads":
            with PolicyClient(addresses, "goal", timeout_seconds=timeout_seconds, **asked) as client:
                session = client.control(**options)
        else:

            async def run() -> AsyncControlSession:
                async with AsyncPolicyClient(addresses, "goal", timeout_seconds=timeout_seconds, **asked) as client:
                    return await client.control(**options)

            session = OnLoop(loop, loop.run(run()))
        sessions.append(session)
        return session

    yield open_session
    for session in sessions:
        session.close()
    loop.close()


@pytest.fixture
def faulty(repository: Path) -> Iterator[Callable[..., FaultyServer]]:
    """Start servers that misbehave on command."""
    servers: list[FaultyServer] = []

    def start(**options: Any) -> FaultyServer:
        servers.append(FaultyServer(repository, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(faulty: Callable[..., FaultyServer]) -> FaultyServer:
    return faulty()


Start = Callable[..., FaultyServer]


def break_off(session: Session, message: pb.ControlStep, context: grpc.ServicerContext) -> Answers:
    """End the stream instead of answering a step."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")
    yield


def answer_and_break_off(session: Session, message: pb.ControlStep, context: grpc.ServicerContext) -> Answers:
    yield from answer(session, message, context)
    context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")


def fail_with(error: PolicyServiceError) -> Callable[..., Answers]:
    """Answer a step with an error; it counts."""

    def behave(session: Session, message: pb.ControlStep, context: grpc.ServicerContext) -> Answers:
        list(answer(session, message, context))
        yield encode_step_error(message.step, status_of(error, "request"), session.next_step, session.state())

    return behave


def watchdogs(answers: list[ControlAnswer]) -> list[str]:
    return [a.watchdog.message for a in answers if a.watchdog is not None]


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_step_is_answered_with_the_action_and_the_budget(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[3, np.inf], extent=Horizon(50), watchdog=PATIENT)
    assert session.opened.cost_budget == (3.0, np.inf)
    assert session.opened.extent_steps == 50
    first = session.step(OBSERVATION, cost=[0, 0])
    assert (first.source, first.step, first.steps_left) == (Source.POLICY, 0, 50)
    assert first.action.tolist() == ACTION
    assert first.prediction is not None
    assert first.prediction.constraints == first.constraints == ("heat", "wear")
    assert first.prediction.cost_to_go.tolist() == [12.5, 50.0]  # 50 steps of |u| = (0.25, 1)
    second = session.step(OTHER, cost=[2, 0.5])
    assert second.action.tolist() == OTHER_ACTION
    assert second.cost_spent.tolist() == [2.0, 0.5]
    assert second.cost_left.tolist() == [1.0, np.inf]
    third = session.step(OTHER, cost=[1, 0])
    assert third.budget_exhausted.tolist() == [True, False]
    assert third.policy == session.opened.policy
    assert third.timing is not None
    assert third.timing.computed_seconds > 0
    assert third.seconds > third.timing.computed_seconds


def test_a_total_may_be_given_instead_of_each_cost(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[3, 3], watchdog=PATIENT)
    assert session.step(OBSERVATION, cost=[0.5, 0]).cost_left.tolist() == [2.5, 3.0]
    assert session.step(OBSERVATION, cost_total=[1, 1]).cost_left.tolist() == [2.0, 2.0]
    assert session.step(OBSERVATION, cost=[1, 0]).cost_left.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("observation", "costs", "field"),
    [
        ([1, 2], {"cost": [0, 0]}, "step.observation"),
        ([1, np.nan, 0], {"cost": [0, 0]}, "step.observation[1]"),
        ([[1, 2, 3]], {"cost": [0, 0]}, "observation"),
        (["x"], {"cost": [0, 0]}, "observation"),
        (OBSERVATION, {}, "step.cost_total"),
        (OBSERVATION, {"cost": [0]}, "cost"),
        (OBSERVATION, {"cost": [0, -1]}, "cost[1]"),
        (OBSERVATION, {"cost": [np.nan, 0]}, "cost[0]"),
        (OBSERVATION, {"cost": [0, 0], "cost_total": [0, 0]}, "cost"),
        (OBSERVATION, {"cost_total": [0.5, 1]}, "cost_total[0]"),
    ],
)
def test_a_bad_step_names_the_field_and_the_session_goes_on(
    control: Open, server: FaultyServer, observation: ArrayLike, costs: dict[str, ArrayLike], field: str
) -> None:
    session = control([server.address], cost_budget=[3, 3], watchdog=PATIENT)
    session.step(OBSERVATION, cost=[1, 0])
    with pytest.raises(InvalidRequestError) as caught:
        session.step(observation, **costs)
    assert caught.value.field == field
    good = session.step(OTHER, cost_total=[1.5, 1])
    assert (good.step, good.action.tolist()) == (1, OTHER_ACTION)
    assert good.cost_left.tolist() == [1.5, 2.0]


def test_a_session_without_a_budget_needs_no_cost(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[np.inf, np.inf], watchdog=PATIENT)
    assert session.step(OBSERVATION).source is Source.POLICY


def test_a_step_past_the_horizon_says_so(control: Open, server: FaultyServer) -> None:
    session = control([server.address], extent=Horizon(1), watchdog=PATIENT)
    session.step(OBSERVATION, cost=[0, 0])
    with pytest.raises(HorizonError, match="past the horizon of 1 steps"):
        session.step(OBSERVATION, cost=[0, 0])


# --- no answer in time ---------------------------------------------------------------------------------------------


def test_a_late_answer_is_replaced_by_the_safe_action_and_not_taken_for_the_next(
    control: Open, server: FaultyServer
) -> None:
    session = control([server.address], cost_budget=[9, 9], watchdog=HASTY)
    while session.step(OBSERVATION, cost=[0, 0]).watchdog is not None:
        """A busy machine."""
    stall = Stall()
    server.behave = [stall]
    late = session.step(OBSERVATION, cost=[1, 0])
    assert late.source is Source.WATCHDOG
    assert late.watchdog is not None
    assert (late.watchdog.reason, late.watchdog.held) == (WatchdogReason.LATE, False)
    assert late.action.tolist() == SAFE
    assert late.prediction is None
    assert stall.reached.wait(PATIENCE_SECONDS)
    stall.release.set()
    answers = [session.step(OTHER, cost=[1, 0])]
    while answers[-1].watchdog is not None:
        answers.append(session.step(OTHER, cost=[1, 0]))
    assert answers[-1].action.tolist() == OTHER_ACTION
    assert answers[-1].cost_spent.tolist() == [1.0 + len(answers), 0.0]


def test_the_last_action_is_held_for_as_many_steps_as_asked_for(control: Open, server: FaultyServer) -> None:
    watchdog = Watchdog(timeout_seconds=0.2, hold_steps=2, safe_action=(0.5, -1.5))
    session = control([server.address], watchdog=watchdog)
    while session.step(OBSERVATION, cost=[0, 0]).watchdog is not None:
        """A busy machine."""
    stall = Stall()
    server.behave = [stall]
    answers = [session.step(OTHER, cost=[0, 0]) for _ in range(3)]
    assert [a.action.tolist() for a in answers] == [ACTION, ACTION, [0.5, -1.5]]
    assert [(a.watchdog.steps, a.watchdog.held) for a in answers if a.watchdog] == [(1, True), (2, True), (3, False)]
    stall.release.set()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SupersededError("a newer one"), "a newer one"),
        (ResourceExhaustedError("too many wait", 0.1), "too many wait"),
        (PolicyServiceError("secret"), "could not compute"),
    ],
)
def test_a_step_that_the_server_does_not_answer_gets_the_safe_action_at_once(
    control: Open, server: FaultyServer, error: PolicyServiceError, says: str
) -> None:
    session = control([server.address], watchdog=PATIENT)
    server.behave = [fail_with(error)]
    refused = session.step(OBSERVATION, cost=[0, 0])
    assert refused.watchdog is not None
    assert refused.watchdog.reason is WatchdogReason.REFUSED
    assert says in refused.watchdog.message
    assert server.address in refused.watchdog.message
    assert refused.action.tolist() == SAFE
    assert session.step(OBSERVATION, cost=[0, 0]).step == 1


def test_a_step_whose_number_the_server_does_not_expect_is_sent_again_as_it_asks(
    control: Open, server: FaultyServer
) -> None:
    session = control([server.address], watchdog=PATIENT)

    def refuse_without_counting(session: Session, message: pb.ControlStep, context: grpc.ServicerContext) -> Answers:
        status = status_of(ResourceExhaustedError("too many"), "request")
        yield encode_step_error(message.step, status, message.step + 7, b"")

    server.behave = [refuse_without_counting]
    assert session.step(OBSERVATION, cost=[0, 0]).watchdog is not None
    good = session.step(OTHER, cost=[0, 0])
    assert (good.step, good.action.tolist()) == (0, OTHER_ACTION)


def test_nobody_gets_the_answer_of_a_step_that_somebody_else_has_out(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[9, 9], watchdog=PATIENT)
    stall = Stall()
    server.behave = [stall]
    with ThreadPoolExecutor() as threads:
        first = threads.submit(session.step, OBSERVATION, cost=[1, 0])
        assert stall.reached.wait(PATIENCE_SECONDS)
        with pytest.raises(PolicyServiceError, match="one at a time"):
            session.step(OTHER, cost=[0.5, 0])
        stall.release.set()
        assert first.result().action.tolist() == ACTION
    assert session.step(OTHER, cost=[0, 0]).action.tolist() == OTHER_ACTION
    assert session.step(OTHER, cost=[0, 0]).cost_spent.tolist() == [1.5, 0.0]


def test_a_cost_between_two_steps_comes_with_the_next_one(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[9, 9], watchdog=PATIENT)
    session.step(OBSERVATION, cost=[1, 0])
    session.count_cost([0.5, 2])
    with pytest.raises(InvalidRequestError) as caught:
        session.count_cost([1, -1])
    assert caught.value.field == "cost[1]"
    assert session.step(OBSERVATION, cost=[0.25, 0]).cost_spent.tolist() == [1.75, 2.0]


# --- connections ---------------------------------------------------------------------------------------------------


def test_a_stream_that_breaks_between_steps_costs_nothing(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[9, 9], watchdog=PATIENT)
    server.behave = [answer, answer_and_break_off]
    answers = [session.step(OBSERVATION, cost=[1, 0]) for _ in range(5)]
    assert watchdogs(answers) == []
    assert [a.step for a in answers] == [0, 1, 2, 3, 4]
    assert [a.cost_left[0] for a in answers] == [8, 7, 6, 5, 4]
    assert server.opened == 2


def test_a_step_in_flight_when_the_stream_breaks_is_sent_again(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[9, 9], watchdog=PATIENT)
    server.behave = [answer, break_off]
    session.step(OBSERVATION, cost=[1, 0])
    second = session.step(OTHER, cost=[1, 0])
    assert (second.source, second.step, second.cost_left[0]) == (Source.POLICY, 1, 7.0)
    assert second.action.tolist() == OTHER_ACTION
    assert server.opened == 2


def test_a_session_goes_on_from_a_step_that_had_no_action_and_counts(control: Open, server: FaultyServer) -> None:
    session = control([server.address], cost_budget=[9, 9], watchdog=PATIENT)
    server.behave = [answer, fail_with(SupersededError("a newer one")), break_off]
    session.step(OBSERVATION, cost=[1, 0])
    assert session.step(OBSERVATION, cost=[1, 0]).watchdog is not None
    third = session.step(OTHER, cost=[1, 0])
    assert (third.source, third.step, third.cost_left[0]) == (Source.POLICY, 2, 6.0)
    assert server.opened == 2


def test_while_no_server_is_there_the_watchdog_acts_and_then_the_session_goes_on(
    control: Open, server: FaultyServer
) -> None:
    session = control([server.address], cost_budget=[500, 500], watchdog=HASTY)
    while session.step(OBSERVATION, cost=[0, 0]).watchdog is not None:
        """A busy machine."""
    number = session.step(OBSERVATION, cost=[0, 0]).step
    assert number is not None
    server.stop()
    away = [session.step(OBSERVATION, cost=[1, 0]) for _ in range(5)]
    assert [a.source for a in away] == [Source.WATCHDOG] * 5
    assert away[-1].watchdog is not None
    assert away[-1].watchdog.reason is WatchdogReason.DISCONNECTED
    assert f"No server answers at {server.address}" in away[-1].watchdog.message
    server.start()
    steps = 5
    while (back := session.step(OBSERVATION, cost=[1, 0])).watchdog is not None:
        steps += 1
    assert back.cost_spent[0] == steps + 1
    assert back.step is not None
    assert back.step > number


def test_a_session_that_no_server_goes_on_with_is_lost_and_says_why(control: Open, server: FaultyServer) -> None:
    session = control([server.address], watchdog=PATIENT)
    server.behave = [answer_and_break_off]
    server.key = b"the key of another server"
    session.step(OBSERVATION, cost=[0, 0])
    for _ in range(2):
        lost = session.step(OBSERVATION, cost=[0, 0])
        assert lost.watchdog is not None
        assert lost.watchdog.reason is WatchdogReason.SESSION_LOST
        assert "--session-key-file" in lost.watchdog.message
        assert lost.action.tolist() == SAFE


def test_a_session_is_lost_also_where_one_of_the_servers_is_dead(control: Open, faulty: Start) -> None:
    server, dead = faulty(lifetime_seconds=0.5), faulty()
    dead.stop()
    session = control([server.address, dead.address], watchdog=PATIENT)
    server.behave = [answer_and_break_off]
    server.key = b"the key of another server"
    session.step(OBSERVATION, cost=[0, 0])
    lost = session.step(OBSERVATION, cost=[0, 0])
    assert lost.watchdog is not None
    assert lost.watchdog.reason is WatchdogReason.SESSION_LOST


def test_a_session_whose_version_is_retired_is_lost(control: Open, server: FaultyServer) -> None:
    session = control([server.address], version=1, watchdog=PATIENT)
    server.serve(loaded={2: server.policies.select("goal", 2, "")})
    server.behave = [answer_and_break_off]
    assert session.step(OBSERVATION, cost=[0, 0]).source is Source.POLICY
    lost = session.step(OBSERVATION, cost=[0, 0])
    assert lost.watchdog is not None
    assert lost.watchdog.reason is WatchdogReason.SESSION_LOST
    assert "has no version 1" in lost.watchdog.message
    assert "open another one" in lost.watchdog.message


@pytest.mark.parametrize("serves", ["another robot", "a plan that cannot be read"])
def test_a_session_goes_on_with_its_version_where_new_ones_could_not_be_opened(
    control: Open, server: FaultyServer, serves: str
) -> None:
    policy = server.policies.select("goal", None, "")
    stranger = dataclasses.replace(policy, served=dataclasses.replace(policy.served, fingerprint="0" * 16))
    fingerprint = policy.served.fingerprint
    session = control([server.address], fingerprint=fingerprint, watchdog=Watchdog(timeout_seconds=5.0))
    server.serve(served=stranger if serves == "another robot" else None)
    server.behave = [answer_and_break_off]
    answers = [session.step(OBSERVATION, cost=[0, 0]) for _ in range(2)]
    assert watchdogs(answers) == []
    assert server.opened == 2
    assert answers[-1].policy == policy.served


def test_a_server_with_another_key_is_passed_over(control: Open, faulty: Start) -> None:
    servers = [faulty(), faulty(key=b"the key of another server"), faulty()]
    session = control([server.address for server in servers], watchdog=PATIENT)
    servers[0].behave = [answer, break_off]
    answers = [session.step(OBSERVATION, cost=[0, 0]) for _ in range(3)]
    assert watchdogs(answers) == []
    assert [a.step for a in answers] == [0, 1, 2]


def test_a_server_that_stops_is_left_between_two_steps(control: Open, faulty: Start) -> None:
    old, new = faulty(), faulty()
    session = control([old.address, new.address], cost_budget=[500, 500], watchdog=PATIENT)
    session.step(OBSERVATION, cost=[1, 0])
    old.notices.set()
    answers = [session.step(OBSERVATION, cost=[1, 0])]
    while new.opened == 0:
        answers.append(session.step(OBSERVATION, cost=[1, 0]))
    assert watchdogs(answers) == []
    assert [a.step for a in answers] == list(range(1, len(answers) + 1))
    assert answers[-1].cost_spent[0] == len(answers) + 1
    assert old.ended.acquire(timeout=PATIENCE_SECONDS)  # its stream is finished, not left open
    assert old.opened == 1


def test_when_no_other_server_takes_the_session_the_old_one_goes_on(control: Open, faulty: Start) -> None:
    old, new = faulty(), faulty()
    session = control([old.address, new.address], watchdog=PATIENT)
    new.refuse = grpc.StatusCode.RESOURCE_EXHAUSTED
    old.notices.set()
    answers = [session.step(OBSERVATION, cost=[0, 0]) for _ in range(50)]
    assert watchdogs(answers) == []
    assert [a.step for a in answers] == list(range(50))


def test_a_server_that_falls_silent_is_left(control: Open, faulty: Start) -> None:
    dead, alive = faulty(), faulty()
    session = control([dead.address, alive.address], watchdog=Watchdog(timeout_seconds=0.2))
    stall = Stall()
    dead.behave = [stall]
    assert session.step(OBSERVATION, cost=[0, 0]).watchdog is not None
    while session.step(OBSERVATION, cost=[0, 0]).watchdog is not None:
        """Not given up yet."""
    assert alive.opened == 1
    stall.release.set()


def test_a_server_that_hangs_is_said_to_say_nothing(control: Open, server: FaultyServer) -> None:
    proxy = Proxy(server.address)
    try:
        session = control([proxy.address], watchdog=HASTY)
        proxy.fall_silent(for_good=True)
        while (taken := session.step(OBSERVATION, cost=[0, 0]).watchdog) is None or taken.reason is WatchdogReason.LATE:
            """Not given up yet."""
        assert taken.reason is WatchdogReason.DISCONNECTED
        assert taken.message == f"{proxy.address} has said nothing for too long."
    finally:
        proxy.close()


# --- opening and closing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cost_budget": [-1, 0]}, "open.cost_budget[0]"),
        ({"cost_budget": [[1, 0]]}, "cost_budget"),
        ({"cost_budget": []}, "cost_budget"),
        ({"extent": Horizon(0)}, "open.horizon_steps"),
        ({"extent": Horizon(1.5)}, "horizon"),  # type: ignore[arg-type]  # as by a user without types
        ({"extent": RollingWindow(-1)}, "rolling window"),
        ({"extent": 50}, "extent"),
        ({"mode": Sampled}, "mode"),  # the class: parentheses forgotten
        ({"mode": "shielded"}, "mode"),
        ({"fallback": ConstantAction()}, "fallback"),
        ({"fallback": Fallback(HoldLastAction)}, "fallback.action"),  # type: ignore[arg-type]
        ({"fallback": Fallback("hold_last")}, "fallback.action"),  # type: ignore[arg-type]
        ({"fallback": Fallback(BackupPolicy("sure"))}, "fallback.action"),  # type: ignore[arg-type]
        ({"fallback": Fallback(HoldLastAction(), FallbackReason.SHIFTED)}, "fallback.reasons"),  # type: ignore[arg-type]
        ({"fallback": Fallback(HoldLastAction(), {"shifted"})}, "fallback.reasons"),  # type: ignore[arg-type]
        ({"fallback": Fallback(ConstantAction(("a", "b")))}, "fallback.action"),  # type: ignore[arg-type]
        ({"fallback": Fallback(ConstantAction(()))}, "fallback.action"),
        ({"fallback": Fallback(LeastUnsafeAction(0))}, "candidates"),
        ({"fallback": Fallback(HoldLastAction(), frozenset())}, "fallback.reasons"),
        ({"fallback": Fallback(HoldLastAction(), recovery_steps=0)}, "recovery_steps"),
        ({"watchdog": Watchdog(safe_action=("a", "b"))}, "watchdog.safe_action"),  # type: ignore[arg-type]
        ({"max_age_seconds": np.nan}, "max_age_seconds"),
        ({"max_age_seconds": np.inf}, "max_age_seconds"),
        ({"max_age_seconds": 0.0}, "max_age_seconds"),
        ({"max_age_seconds": -3.0}, "max_age_seconds"),
        ({"max_age_seconds": "1"}, "max_age_seconds"),
        ({"watchdog": Watchdog(safe_action=(0.0,))}, "watchdog.safe_action"),
        ({"watchdog": Watchdog(safe_action=(0.0, 2.5))}, "watchdog.safe_action[1]"),
        ({"watchdog": Watchdog(timeout_seconds=0.0)}, "watchdog.timeout_seconds"),
        ({"watchdog": Watchdog(timeout_seconds=1e10)}, "watchdog.timeout_seconds"),
        ({"watchdog": Watchdog(timeout_seconds="1")}, "watchdog.timeout_seconds"),  # type: ignore[arg-type]
        ({"watchdog": Watchdog(hold_steps=-1)}, "watchdog.hold_steps"),
        ({"watchdog": Watchdog(hold_steps="2")}, "watchdog.hold_steps"),  # type: ignore[arg-type]
        ({"watchdog": 0.005}, "watchdog"),
    ],
)
def test_an_opening_that_is_wrong_names_the_field(
    control: Open, server: FaultyServer, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        control([server.address], **options)
    assert caught.value.field == field


def test_no_server_is_one_sentence(control: Open) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(UnavailableError, match=f"No server answers at {address}"):
        control([address])


def test_a_server_that_is_full_is_passed_over_and_one_alone_is_told(control: Open, faulty: Start) -> None:
    full, free = faulty(), faulty()
    full.refuse = grpc.StatusCode.RESOURCE_EXHAUSTED
    session = control([full.address, free.address], watchdog=PATIENT)
    assert session.step(OBSERVATION, cost=[0, 0]).source is Source.POLICY
    with pytest.raises(ResourceExhaustedError):
        control([full.address], timeout_seconds=1.0)


def test_what_a_server_says_is_heard_also_while_the_client_writes(server: FaultyServer) -> None:
    server.refuse = grpc.StatusCode.RESOURCE_EXHAUSTED

    async def refused() -> PolicyServiceError:
        ends: asyncio.Queue[Any] = asyncio.Queue()
        channel = grpc.aio.insecure_channel(server.address)
        stream = _Stream(channel, server.address, pb.ControlRequest(open=pb.OpenSession()), ends.put_nowait)
        for step in range(1000):  # grpc.aio makes INTERNAL of the status that a write is interrupted by
            stream.send(pb.ControlRequest(step=pb.ControlStep(step=step)))
        error: PolicyServiceError = (await ends.get()).error
        return error

    async def run() -> list[PolicyServiceError]:
        return [await refused() for _ in range(10)]

    for error in asyncio.run(run()):
        assert isinstance(error, ResourceExhaustedError), error
        assert error.retry_after_seconds == 0.01


def test_a_server_of_another_policy_refuses_the_opening(control: Open, server: FaultyServer) -> None:
    server.refuse = grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(FingerprintError):
        control([server.address])


@pytest.mark.parametrize("stalls", [False, True])
def test_closing_leaves_no_thread_even_when_the_server_hangs(server: FaultyServer, stalls: bool) -> None:
    stall = Stall()
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        session = client.control(watchdog=HASTY)
        server.behave = [stall] if stalls else []
        session.step(OBSERVATION, cost=[0, 0])
        session.close()
        names = [thread.name for thread in threading.enumerate()]
        assert [name for name in names if name.startswith("control ")] == []
    stall.release.set()


def test_closing_leaves_no_task(server: FaultyServer) -> None:
    async def run() -> int:
        async with (
            AsyncPolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
            await client.control(watchdog=PATIENT) as session,
        ):
            await session.step(OBSERVATION, cost=[0, 0])
            assert len(asyncio.all_tasks()) > 1
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def test_a_step_that_its_caller_has_left_does_not_fail_the_next_one(server: FaultyServer) -> None:
    stall = Stall()
    server.behave = [stall]

    async def run() -> ControlAnswer:
        async with (
            AsyncPolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
            await client.control(watchdog=PATIENT) as session,
        ):
            left = asyncio.create_task(session.step(TOO_LARGE, cost=[1, 0]))
            await asyncio.to_thread(stall.reached.wait, PATIENCE_SECONDS)
            left.cancel()
            await asyncio.wait([left])
            stall.release.set()
            while session._inbox.empty():  # the error of the step that nobody waits for
                await asyncio.sleep(0.001)
            return await session.step(OBSERVATION, cost=[0.5, 0])

    assert asyncio.run(run()).cost_spent.tolist() == [1.5, 0.0]


def test_a_session_does_not_step_in_a_child_of_its_process(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()
    with (
        PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
        client.control(watchdog=PATIENT) as session,
    ):
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: parent + 1)
            with pytest.raises(PolicyServiceError, match=f"belongs to process {parent}"):
                session.step(OBSERVATION, cost=[0, 0])
        assert session.step(OBSERVATION, cost=[0, 0]).step == 0


def test_a_step_that_is_interrupted_does_not_fail_the_next_one(server: FaultyServer) -> None:
    class Interrupt(BaseException):
        """As of Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    def interrupt_when_reached() -> None:
        stall.reached.wait(PATIENCE_SECONDS)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    stall = Stall()
    server.behave = [stall]
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with (
            PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
            client.control(watchdog=PATIENT) as session,
        ):
            assert isinstance(session, RemoteControlSession)
            interrupting = threading.Thread(target=interrupt_when_reached)
            interrupting.start()
            with pytest.raises(Interrupt):
                session.step(TOO_LARGE, cost=[1, 0])
            interrupting.join()
            stall.release.set()
            while session._inbox.empty():
                """The error of the step that nobody waits for is on its way."""
            assert session.step(OBSERVATION, cost=[0.5, 0]).cost_spent.tolist() == [1.5, 0.0]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_step_that_is_interrupted_when_it_is_late_does_not_block_the_next_one(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> ControlAnswer:
        raise KeyboardInterrupt

    stall = Stall()
    server.behave = [stall]
    with (
        PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
        client.control(watchdog=HASTY) as session,
    ):
        assert isinstance(session, RemoteControlSession)
        with monkeypatch.context() as late:
            late.setattr(session._conversation, "overdue", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.step(OBSERVATION, cost=[1, 0])
        stall.release.set()
        while (answer := session.step(OBSERVATION, cost=[0, 0])).watchdog is not None:
            """A busy machine."""
        assert answer.cost_spent.tolist() == [1.0, 0.0]


def test_an_opening_that_is_cancelled_leaves_no_task(server: FaultyServer) -> None:
    server.refuse = grpc.StatusCode.UNAVAILABLE

    async def run() -> int:
        async with AsyncPolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
            opening = asyncio.create_task(client.control())
            while len(asyncio.all_tasks()) < 3:  # this one, the opening, and its search for a server
                await asyncio.sleep(0.01)
            opening.cancel()
            await asyncio.wait([opening])
            assert opening.cancelled()
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def test_a_session_whose_closing_is_cancelled_is_closed(server: FaultyServer) -> None:
    async def run() -> bool:
        async with AsyncPolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
            session = await client.control(watchdog=PATIENT)
            closing = asyncio.create_task(session.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled()
            return await asyncio.to_thread(server.ended.acquire, timeout=5)

    assert asyncio.run(run()), "the server still has the session"


def test_a_session_says_that_it_is_of_another_event_loop(server: FaultyServer) -> None:
    async def open_one() -> AsyncControlSession:
        async with AsyncPolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
            return await client.control(watchdog=PATIENT)

    session = asyncio.run(open_one())
    with pytest.raises(PolicyServiceError, match="of the event loop that opened it"):
        asyncio.run(session.step(OBSERVATION, cost=[0, 0]))
