"""The control stream over a real channel: what a robot gets, when steps queue, and how a stream ends."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cvpo.bundle import read_bundle
from serve.codec import Limits
from serve.errors import DeadlineExceededError
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1 import policy_pb2
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceStub, add_ControlServiceServicer_to_server
from serve.server.control import ControlServicer
from serve.server.inbox import MAX_WAITING
from serve.server.interceptors import Registrar
from serve.server.runtime import Asked, PolicyRuntime, load
from serve.server.sharing import SharedRuns
from serve.server.state import StateSeal
from serve.server.telemetry import Metrics
from serve.server.workers import Workers
from serve.values import ActLists, Mode, Situations
from tests.serve import bundles
from tests.serve.conftest import PATIENCE_SECONDS
from tests.serve.robots import CALM, Robot, bad_field, retry_seconds
from tests.serve.running import LoopThread
from tests.serve.test_session import Served

GOAL = policy_pb2.PolicySelector(name="goal")
OUTSIDE, NONSENSE = (4.5, 0.0, 0.0), (1e20, 0.0, 0.0)
OPEN = pb.OpenSession(policy=GOAL)


class Gate:
    """Lets a policy act, or keeps it waiting in the middle of it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Semaphore(0)

    def keep(self) -> None:
        """From now on whoever acts waits."""
        self.open.clear()
        while self.begun.acquire(blocking=False):
            pass


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.001)


class House:
    """A server of control streams with policy goal in versions 1 and 2, of which 1 is served."""

    def __init__(
        self,
        runtimes: dict[int, PolicyRuntime],
        idle_seconds: float = 60.0,
        limits: Limits = Limits(),  # noqa: B008  # frozen
    ) -> None:
        self._limits = limits
        self.served = Served({"goal": runtimes}, {"goal": 1})
        self.metrics = Metrics()
        self._loop = LoopThread()
        self.address = self._loop.run(self._start(idle_seconds))

    async def _start(self, idle_seconds: float) -> str:
        self._server = grpc.aio.server()
        registrar = Registrar(self._server, self.metrics, asyncio.Event(), max_requests=8, max_streams=64)
        self._workers = Workers(2)
        seal = StateSeal(b"0123456789abcdef", idle_seconds)
        shared_runs = SharedRuns(self.metrics.registry)
        self.servicer = ControlServicer(self.served, self._limits, seal, self._workers, shared_runs, self.metrics)
        add_ControlServiceServicer_to_server(self.servicer, registrar)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    def drain(self, seconds: float) -> None:
        async def drain() -> None:
            self.servicer.drain(seconds)

        self._loop.run(drain())

    def read(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has a value."""
        wait_until(lambda: self.read(name, **labels) == value)

    def wait_for_arrivals(self, count: int) -> None:
        """Wait until so many messages wait in the only stream."""
        (inbox,) = self.servicer._inboxes
        wait_until(lambda: len(inbox) >= count)

    def close(self) -> None:
        self._loop.run(self._server.stop(0))
        self._workers.close()
        self._loop.close()


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, PolicyRuntime]:
    root = tmp_path_factory.mktemp("control")
    return {
        version: load(read_bundle(bundles.write(root / str(version), bundles.manifest(version=version))))
        for version in (1, 2)
    }


@pytest.fixture
def house(runtimes: dict[int, PolicyRuntime]) -> Iterator[House]:
    house = House(dict(runtimes))
    yield house
    house.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Every policy acts only while the gate is open."""
    gate, act = Gate(), PolicyRuntime.act

    def gated(self: PolicyRuntime, situations: Situations, mode: Mode) -> ActLists:
        gate.begun.release()
        assert gate.open.wait(PATIENCE_SECONDS)
        return act(self, situations, mode)

    monkeypatch.setattr(PolicyRuntime, "act", gated)
    yield gate
    gate.open.set()


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_robot_gets_an_action_and_what_it_may_still_spend(house: House) -> None:
    opening = pb.OpenSession(policy=GOAL, cost_budget=[4.0, 2.0], horizon_steps=8)
    with Robot(house.address, opening) as robot:
        opened = robot.opened()
        assert (opened.policy.name, opened.policy.version, opened.next_step) == ("goal", 1, 0)
        assert (list(opened.cost_budget), opened.extent_steps) == ([4.0, 2.0], 8)
        assert opened.idle_timeout.ToTimedelta().total_seconds() == 60.0
        step = pb.ControlStep(step=0, observation=(1, 2, -1), cost_total=(0.25, 0.0))
        step.sent_at.FromMilliseconds(1234)
        robot.send_request(pb.ControlRequest(step=step))
        result = robot.result()
    assert list(result.action) == [0.25, -2.0]
    assert [(c.name, c.cost_to_go, c.cost_allowed, c.violation) for c in result.prediction.constraints] == [
        ("heat", 2.0, 3.75, False),
        ("wear", 8.0, 2.0, True),
    ]
    assert [(b.name, b.spent, b.left, b.exhausted) for b in result.budgets] == [
        ("heat", 0.25, 3.75, False),
        ("wear", 0.0, 2.0, False),
    ]
    assert (result.step, result.steps_left, result.feasible) == (0, 8, False)
    assert not result.HasField("fallback")
    assert result.policy.version == 1
    assert result.sent_at.ToMilliseconds() == 1234
    assert result.timing.computed.ToNanoseconds() > 0
    assert result.state


def test_the_policy_is_kept_warm_for_a_robot_that_asks_at_a_steady_pace(house: House) -> None:
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        steps = iter(range(90))
        while not house.read("cvpo_serve_warming_runs_total"):  # a busy machine may be late a few times
            robot.step(next(steps))
            time.sleep(0.02)


def test_robots_share_runs_and_each_is_answered_as_if_it_were_alone(house: House) -> None:
    robots, steps = 6, 60
    opening = pb.OpenSession(policy=GOAL, cost_budget=[4.0, 2.0], horizon_steps=steps)
    opening.sampled.seed = 7
    opening.fallback.hold_last.SetInParent()
    opening.fallback.reasons.append(pb.FALLBACK_REASON_FLAGGED)
    opening.fallback.recovery_steps = 2
    observations = np.random.default_rng(1).normal(0, 1, (robots, steps, 3)).tolist()

    def drive(number: int, start: threading.Barrier) -> list[pb.ControlResult]:
        with Robot(house.address, opening) as robot:
            robot.opened()
            start.wait(PATIENCE_SECONDS)
            results = [robot.step(step, seen, (step / 32, 0.0)) for step, seen in enumerate(observations[number])]
        for result in results:
            result.ClearField("timing")
            result.ClearField("state")  # which is dated
        return results

    alone = [drive(number, threading.Barrier(1)) for number in range(robots)]
    together = threading.Barrier(robots)
    with ThreadPoolExecutor(robots) as pool:
        answers = list(pool.map(lambda number: drive(number, together), range(robots)))
    assert answers == alone
    assert house.read("cvpo_serve_shared_requests_total") > 0
    taken = [result.HasField("fallback") for results in alone for result in results]
    assert any(taken)
    assert not all(taken)


def test_a_wrong_step_is_an_error_of_its_own_and_the_stream_goes_on(house: House) -> None:
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        robot.step(0)
        for step, observation, cost_total, field in [
            (0, CALM, (0.0, 0.0), "step.step"),
            (2, CALM, (0.0, 0.0), "step.step"),
            (1, (0.2, float("nan"), 0.0), (0.0, 0.0), "step.observation[1]"),
            (1, CALM, (), "step.cost_total"),
            (1, CALM, (0.0, -1.0), "step.cost_total[1]"),
        ]:
            robot.send(step, observation, cost_total)
            error = robot.error()
            assert (error.step, error.next_step) == (step, 1)
            assert error.status.code == code_pb2.INVALID_ARGUMENT
            assert bad_field(error.status) == field
        assert robot.step(1).step == 1
    house.wait_for("cvpo_serve_steps_total", 5, policy="goal", code="INVALID_ARGUMENT")
    house.wait_for("cvpo_serve_steps_total", 2, policy="goal", code="OK")


def test_a_step_past_the_horizon_says_so(house: House) -> None:
    with Robot(house.address, pb.OpenSession(policy=GOAL, horizon_steps=1)) as robot:
        robot.opened()
        robot.step(0)
        robot.send(1)
        assert robot.error().status.code == code_pb2.OUT_OF_RANGE


def test_nonsense_from_the_policy_is_an_error_with_fixed_words_and_one_line_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        for _ in range(3):
            robot.send(0, NONSENSE)
            error = robot.error()
            assert error.status.code == code_pb2.INTERNAL
            assert "request id" in error.status.message
            assert error.next_step == 0
        assert robot.step(0).step == 0
    assert [record.getMessage() for record in caplog.records].count("step failed") == 1


def test_a_policy_that_fails_under_a_fallback_is_logged_once_until_it_answers_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    fallback = pb.Fallback(constant=pb.ConstantAction())
    with Robot(house.address, pb.OpenSession(policy=GOAL, fallback=fallback)) as robot:
        robot.opened()
        for step, observation in enumerate((NONSENSE, NONSENSE, CALM, NONSENSE)):
            robot.step(step, observation)
    failed = [record for record in caplog.records if record.getMessage() == "policy failed"]
    assert [record.__dict__["fields"]["step"] for record in failed] == [0, 3]


def test_a_backup_that_fails_is_logged_once_until_it_answers_again_whatever_the_policy_does(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    backup = pb.BackupPolicy(policy=GOAL)  # gives nothing where the policy does
    fallback = pb.Fallback(backup=backup, recovery_steps=1)
    with Robot(house.address, pb.OpenSession(policy=GOAL, fallback=fallback)) as robot:
        robot.opened()
        # At 2 it takes over for the last time, at 3 it is not asked.
        for step, observation in enumerate((NONSENSE, NONSENSE, CALM, CALM, NONSENSE)):
            robot.step(step, observation)
    for event in ("policy failed", "backup failed"):
        failed = [record for record in caplog.records if record.getMessage() == event]
        assert [record.__dict__["fields"]["step"] for record in failed] == [0, 4]


def test_a_fallback_is_told_and_counted(house: House) -> None:
    fallback = pb.Fallback(constant=pb.ConstantAction(action=[0.5, -1.0]), recovery_steps=1)
    with Robot(house.address, pb.OpenSession(policy=GOAL, cost_budget=[1.0, 99.0], fallback=fallback)) as robot:
        robot.opened()
        shifted = robot.step(0, OUTSIDE)
        assert list(shifted.action) == [0.5, -1.0]
        assert (shifted.fallback.reason, shifted.fallback.steps) == (pb.FALLBACK_REASON_SHIFTED, 1)
        exhausted = robot.step(1, CALM, (1.0, 0.0))
        assert exhausted.fallback.reason == pb.FALLBACK_REASON_BUDGET_EXHAUSTED
        assert exhausted.budgets[0].exhausted
        robot.step(2, CALM, (1.5, 0.0))
    for reason, count in (("SHIFTED", 1), ("BUDGET_EXHAUSTED", 2)):
        house.wait_for("cvpo_serve_fallback_steps_total", count, policy="goal", reason=reason, kind="constant")
    house.wait_for("cvpo_serve_budgets_exhausted_total", 1, policy="goal", constraint="heat")
    house.wait_for("cvpo_serve_budgets_exhausted_total", 0, policy="goal", constraint="wear")
    for phase in ("queued", "checked", "computed"):
        house.wait_for("cvpo_serve_step_seconds_count", 3, phase=phase)
    version = {"policy": "goal", "version": "1"}
    house.wait_for("cvpo_serve_answers_total", 1, **version, calibration_status="SHIFTED")
    house.wait_for("cvpo_serve_answers_total", 2, **version, calibration_status="EXTERNAL_ACTION")
    house.wait_for("cvpo_serve_paced_answers_total", 3, **version)


def test_an_answer_that_takes_longer_than_the_control_period_is_counted(house: House, gate: Gate) -> None:
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        gate.keep()
        robot.send(0)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        time.sleep(0.03)  # the period is 20 ms
        gate.open.set()
        robot.result()
    house.wait_for("cvpo_serve_late_answers_total", 1, policy="goal", version="1")


def test_many_candidates_are_computed_by_a_thread_while_others_are_answered(house: House, gate: Gate) -> None:
    with Robot(house.address, THREADED) as robot, Robot(house.address, OPEN) as other:
        robot.opened()
        other.opened()
        gate.keep()
        robot.send(0)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        other.send(1)  # a wrong step, which needs no policy: the event loop is free
        assert other.error().next_step == 0
        gate.open.set()
        assert robot.result().step == 0


def test_the_policy_is_not_kept_warm_while_the_step_that_was_expected_is_answered(house: House, gate: Gate) -> None:
    with Robot(house.address, THREADED) as robot:
        robot.opened()
        robot.step(0)
        time.sleep(0.3)
        robot.step(1)  # the next one is expected as long after it
        gate.keep()
        robot.send(2)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        before = house.read("cvpo_serve_warming_runs_total")
        time.sleep(0.5)  # the event loop is free
        assert house.read("cvpo_serve_warming_runs_total") == before
        gate.open.set()
        assert robot.result().step == 2


# --- openings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opening", "field"),
    [
        (pb.ControlRequest(step=pb.ControlStep()), "open"),
        (pb.ControlRequest(), "open"),
        (pb.OpenSession(policy=GOAL, cost_budget=[1.0, -1.0]), "open.cost_budget[1]"),
        (pb.OpenSession(policy=GOAL, horizon_steps=101), "open.horizon_steps"),
    ],
)
def test_an_opening_that_cannot_be_met_ends_the_stream(
    house: House, opening: pb.OpenSession | pb.ControlRequest, field: str
) -> None:
    with Robot(house.address, opening) as robot:
        status = robot.status()
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert bad_field(status) == field


def test_an_opening_is_held_to_the_limits_of_the_server(runtimes: dict[int, PolicyRuntime]) -> None:
    house = House(dict(runtimes), limits=Limits(max_rows=16, max_message_bytes=700))
    openings = {
        "open.shielded.candidates": pb.OpenSession(shielded=policy_pb2.Shielded(candidates=17)),
        "open.fallback.least_unsafe.candidates": pb.OpenSession(
            fallback=pb.Fallback(least_unsafe=pb.LeastUnsafeAction(candidates=17))
        ),
        "open.rolling_window_steps": pb.OpenSession(rolling_window_steps=100),
    }
    try:
        for field, opening in openings.items():
            with Robot(house.address, opening) as robot:
                assert bad_field(robot.status()) == field
    finally:
        house.close()


def test_an_unknown_policy_and_another_fingerprint_end_the_stream(house: House) -> None:
    with Robot(house.address, pb.OpenSession(policy=policy_pb2.PolicySelector(name="nobody"))) as robot:
        assert robot.status().code == code_pb2.NOT_FOUND
    with Robot(house.address, pb.OpenSession(policy=policy_pb2.PolicySelector(fingerprint="0" * 16))) as robot:
        assert robot.status().code == code_pb2.FAILED_PRECONDITION


@pytest.mark.parametrize("request_", [pb.ControlRequest(open=OPEN), pb.ControlRequest()])
def test_what_is_no_step_ends_an_open_stream(house: House, request_: pb.ControlRequest) -> None:
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        robot.send_request(request_)
        status = robot.status()
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert bad_field(status) == "step"


@hypothesis_settings(max_examples=30)
@given(st.binary(min_size=1, max_size=60))
def test_bytes_that_are_no_message_end_only_their_own_stream(runtimes: dict[int, PolicyRuntime], raw: bytes) -> None:
    house = _shared_house(runtimes)
    with grpc.insecure_channel(house.address) as channel:
        control: Any = channel.stream_stream("/cvpo.v1.ControlService/Control")  # bytes, as they are
        call = control(iter([raw]), timeout=PATIENCE_SECONDS)
        with contextlib.suppress(grpc.RpcError):
            list(call)
        assert call.code() in (  # OK where the bytes happen to open a session
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
        )
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        assert robot.step(0).step == 0


_houses: list[House] = []


def _shared_house(runtimes: dict[int, PolicyRuntime]) -> House:
    if not _houses:
        _houses.append(House(dict(runtimes)))
    return _houses[0]


@pytest.fixture(scope="module", autouse=True)
def _close_shared_house() -> Iterator[None]:
    yield
    while _houses:
        _houses.pop().close()


# --- queues and time -----------------------------------------------------------------------------------------------


# So many candidates that a thread computes them, and the event loop goes on reading.
THREADED = pb.OpenSession(policy=GOAL, shielded=policy_pb2.Shielded(candidates=32, seed=1))


def test_when_steps_queue_the_newest_is_answered_and_the_costs_of_all_count(house: House, gate: Gate) -> None:
    with Robot(house.address, THREADED) as robot:
        robot.opened()
        gate.keep()
        robot.send(0)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        for step in range(1, 11):
            robot.send(step, CALM, (step / 2, 0.0))
        house.wait_for_arrivals(10)
        gate.open.set()
        assert robot.result().step == 0
        for step in range(1, 10):
            error = robot.error()
            assert (error.step, error.next_step) == (step, step + 1)
            assert error.status.code == code_pb2.ABORTED
        newest = robot.result()
        assert newest.step == 10
        assert newest.budgets[0].spent == 5.0
        assert robot.step(11, CALM, (5.0, 0.0)).step == 11
    house.wait_for("cvpo_serve_steps_total", 9, policy="goal", code="ABORTED")
    house.wait_for("cvpo_serve_paced_answers_total", 12, policy="goal", version="1")


def test_a_wrong_step_in_the_queue_keeps_its_own_error(house: House, gate: Gate) -> None:
    with Robot(house.address, THREADED) as robot:
        robot.opened()
        gate.keep()
        robot.send(0)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        robot.send(1, (float("nan"), 0, 0))
        robot.send(1)
        robot.send(2)
        house.wait_for_arrivals(3)
        gate.open.set()
        assert robot.result().step == 0
        assert robot.error().status.code == code_pb2.INVALID_ARGUMENT
        assert robot.error().status.code == code_pb2.ABORTED
        assert robot.result().step == 2


def test_a_step_is_not_passed_over_for_one_that_cannot_be_answered(house: House, gate: Gate) -> None:
    with Robot(house.address, THREADED) as robot:
        robot.opened()
        gate.keep()
        robot.send(0)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        for step in (1, 2, 2, 9):  # sent again by a robot that has lost patience, and out of order
            robot.send(step)
        house.wait_for_arrivals(4)
        gate.open.set()
        assert robot.result().step == 0
        assert robot.error().status.code == code_pb2.ABORTED
        assert robot.result().step == 2
        for step in (2, 9):
            error = robot.error()
            assert (error.step, error.next_step) == (step, 3)
            assert error.status.code == code_pb2.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("observation", "cost_total"),
    [((float("nan"), 0, 0), (1.0, 0.0)), (CALM[:2], (1.0, 0.0)), (CALM, (0.5, 0.0)), (CALM, ())],
)
def test_a_step_is_not_passed_over_for_one_that_is_wrong(
    house: House, gate: Gate, observation: tuple[float, ...], cost_total: tuple[float, ...]
) -> None:
    with Robot(house.address, THREADED) as robot:
        robot.opened()
        gate.keep()
        robot.send(0)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        robot.send(1, CALM, (1.0, 0.0))
        robot.send(2, observation, cost_total)
        house.wait_for_arrivals(2)
        gate.open.set()
        assert robot.result().step == 0
        assert robot.result().step == 1
        error = robot.error()
        assert (error.step, error.next_step) == (2, 2)
        assert error.status.code == code_pb2.INVALID_ARGUMENT
        assert robot.step(2, CALM, (1.0, 0.0)).step == 2


def test_a_step_that_waited_too_long_is_late_and_counts(house: House, gate: Gate) -> None:
    opening = pb.OpenSession()
    opening.CopyFrom(THREADED)
    opening.max_age.FromMilliseconds(200)
    with Robot(house.address, opening) as robot:
        robot.opened()
        gate.keep()
        robot.send(0)
        assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
        robot.send(1, CALM, (0.5, 0.0))
        house.wait_for_arrivals(1)
        time.sleep(0.25)  # older than it may be
        gate.open.set()
        assert robot.result().step == 0
        error = robot.error()
        assert (error.step, error.next_step) == (1, 2)
        assert error.status.code == code_pb2.DEADLINE_EXCEEDED
    house.wait_for("cvpo_serve_steps_total", 1, policy="goal", code="DEADLINE_EXCEEDED")


def test_a_step_that_grew_too_old_while_it_waited_for_others_is_late_and_counts(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = SharedRuns.answer
    allowed: list[float] = []

    async def slow(self: SharedRuns, asked: Asked, until: float = math.inf) -> ActLists:
        allowed.append(until - time.perf_counter())
        if len(allowed) == 2:
            raise DeadlineExceededError("after a wait for others")
        return await answer(self, asked, until)

    monkeypatch.setattr(SharedRuns, "answer", slow)
    opening = pb.OpenSession()
    opening.CopyFrom(OPEN)
    opening.max_age.FromSeconds(60)
    with Robot(house.address, opening) as robot:
        robot.opened()
        robot.step(0)
        robot.send(1, CALM, (0.5, 0.0))
        error = robot.error()
        assert (error.step, error.next_step) == (1, 2)
        assert error.status.code == code_pb2.DEADLINE_EXCEEDED
        assert robot.step(2, CALM, (0.5, 0.0)).step == 2
    assert all(30 < seconds <= 60 for seconds in allowed)


def test_a_robot_that_does_not_read_is_held_back_and_disturbs_nobody(house: House) -> None:
    with Robot(house.address, OPEN) as deaf, Robot(house.address, OPEN) as other:
        other.opened()
        deaf.opened()
        for step in range(2_000):
            deaf.send(step)
        for step in range(50):
            assert other.step(step).step == step
        # Its answers fill the connection, its steps the inbox, and then it is not read.
        wait_until(lambda: max(map(len, house.servicer._inboxes)) == MAX_WAITING)
        for step in range(50, 100):
            assert other.step(step).step == step
        deaf.call.cancel()
        house.wait_for("cvpo_serve_open_sessions", 1)


# --- ends ----------------------------------------------------------------------------------------------------------


def test_an_idle_stream_is_closed(runtimes: dict[int, PolicyRuntime]) -> None:
    house = House(dict(runtimes), idle_seconds=0.3)
    try:
        with Robot(house.address, OPEN) as robot:
            robot.opened()
            robot.step(0)
            status = robot.status()
            assert status.code == code_pb2.DEADLINE_EXCEEDED
            assert "0.3 s" in status.message
    finally:
        house.close()


def silent(channel: grpc.Channel, until: threading.Event) -> Any:
    """A stream on which nothing is sent."""
    requests = (pb.ControlRequest(open=OPEN) for _ in range(1) if until.wait(PATIENCE_SECONDS))
    return ControlServiceStub(channel).Control(requests, timeout=PATIENCE_SECONDS)  # type: ignore[no-untyped-call]


def test_a_stream_that_is_never_opened_is_closed_when_idle(runtimes: dict[int, PolicyRuntime]) -> None:
    house, never = House(dict(runtimes), idle_seconds=0.3), threading.Event()
    try:
        with grpc.insecure_channel(house.address) as channel:
            call = silent(channel, never)
            with pytest.raises(grpc.RpcError):
                next(call)
            assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert "Nothing came" in call.details()
    finally:
        never.set()
        house.close()


def test_a_stream_that_is_not_opened_yet_ends_when_the_server_stops_and_holds_nothing_up(house: House) -> None:
    never = threading.Event()
    with Robot(house.address, OPEN) as robot, grpc.insecure_channel(house.address) as channel:
        robot.opened()
        call = silent(channel, never)
        wait_until(lambda: len(house.servicer._inboxes) == 2)
        house.drain(20.0)
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() == grpc.StatusCode.UNAVAILABLE
        assert robot.notice().kind == pb.NOTICE_KIND_DRAINING
        assert robot.step(0).step == 0
        never.set()


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_robot_that_neither_reads_nor_lets_go_is_closed_when_idle(
    runtimes: dict[int, PolicyRuntime], half_closed: bool
) -> None:
    house = House(dict(runtimes), idle_seconds=0.5)
    try:
        with Robot(house.address, OPEN) as deaf:
            deaf.opened()
            for step in range(2_000):
                deaf.send(step)
            if half_closed:
                deaf.end()
            house.wait_for("cvpo_serve_requests_total", 1, method="Control", code="DEADLINE_EXCEEDED")
            house.wait_for("cvpo_serve_open_sessions", 0)
    finally:
        house.close()


def test_a_session_that_its_robot_ends_ends_well_and_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Robot(house.address, OPEN) as robot:
        session_id = robot.opened().session_id
        robot.step(0, OUTSIDE)
        robot.step(1, CALM, (0.5, 0.25))
        robot.end()
        with pytest.raises(StopIteration):
            robot.receive()
        assert robot.call.code() == grpc.StatusCode.OK
    house.wait_for("cvpo_serve_open_sessions", 0)
    events = {record.getMessage(): vars(record).get("fields", {}) for record in caplog.records}
    opened, ended = events["session opened"], events["session ended"]
    assert opened["session_id"] == ended["session_id"] == session_id
    assert (opened["policy"], opened["version"], opened["goes_on"]) == ("goal", 1, False)
    assert (ended["why"], ended["steps"], ended["cost_spent"]) == ("ended by the robot", 2, (0.5, 0.25))


def test_a_robot_that_vanishes_leaves_no_session_behind(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        robot.step(0)
        house.wait_for("cvpo_serve_open_sessions", 1)
        robot.call.cancel()
        house.wait_for("cvpo_serve_open_sessions", 0)
    wait_until(lambda: not house.servicer._inboxes)
    ended = [vars(record)["fields"]["why"] for record in caplog.records if record.getMessage() == "session ended"]
    assert ended == ["cancelled"]


def test_a_stopping_server_says_so_answers_on_and_then_ends_the_stream(house: House) -> None:
    with Robot(house.address, OPEN) as robot:
        robot.opened()
        robot.step(0)
        house.drain(3.0)
        assert robot.notice().kind == pb.NOTICE_KIND_DRAINING
        assert robot.step(1).step == 1
        status = robot.status()
    assert status.code == code_pb2.UNAVAILABLE
    assert retry_seconds(status) > 0


def test_a_version_that_changes_between_steps_is_told_before_its_first_answer(house: House) -> None:
    pinned = pb.OpenSession(policy=policy_pb2.PolicySelector(name="goal", version=1))
    with Robot(house.address, OPEN) as robot, Robot(house.address, pinned) as other:
        robot.opened()
        other.opened()
        assert robot.step(0).policy.version == 1
        house.served.serve["goal"] = 2
        robot.send(1)
        notice = robot.notice()
        assert notice.kind == pb.NOTICE_KIND_VERSION_CHANGED
        assert "2" in notice.message
        assert robot.result().policy.version == 2
        assert robot.step(2).policy.version == 2
        assert other.step(0).policy.version == 1


# --- going on elsewhere --------------------------------------------------------------------------------------------


def test_a_session_goes_on_at_another_server_and_a_state_of_another_opening_is_refused(
    house: House, runtimes: dict[int, PolicyRuntime]
) -> None:
    elsewhere = House(dict(runtimes))
    try:
        with Robot(house.address, OPEN) as robot:
            session_id = robot.opened().session_id
            state = robot.step(0, CALM, (0.5, 0.0)).state
        with Robot(elsewhere.address, pb.OpenSession(policy=GOAL, state=state)) as robot:
            opened = robot.opened()
            assert (opened.session_id, opened.next_step) == (session_id, 1)
            assert robot.step(1, CALM, (0.75, 0.0)).budgets[0].spent == 0.75
        for bad in (pb.OpenSession(policy=GOAL, state=state[:-1]), pb.OpenSession(state=state)):
            with Robot(elsewhere.address, bad) as robot:
                assert robot.status().code == code_pb2.FAILED_PRECONDITION
        assert elsewhere.read("cvpo_serve_refused_states_total") == 2
        assert house.read("cvpo_serve_sessions_total", policy="goal", goes_on="false") == 1
        assert elsewhere.read("cvpo_serve_sessions_total", policy="goal", goes_on="true") == 1
    finally:
        elsewhere.close()


@pytest.mark.parametrize("what", ["wrong", "not computed", "superseded"])
def test_a_session_goes_on_from_its_errors_as_from_its_answers(house: House, gate: Gate, what: str) -> None:
    with Robot(house.address, THREADED) as robot:
        robot.opened()
        robot.step(0, CALM, (0.5, 0.0))
        if what == "superseded":
            gate.keep()
            robot.send(1, CALM, (0.75, 0.0))
            assert gate.begun.acquire(timeout=PATIENCE_SECONDS)
            robot.send(2, CALM, (1.0, 0.0))
            robot.send(3, CALM, (1.0, 0.0))
            house.wait_for_arrivals(2)
            gate.open.set()
            assert robot.result().step == 1
        else:
            robot.send(1, NONSENSE if what == "not computed" else CALM[:1], (0.75, 0.0))
        error = robot.error()
    again = pb.OpenSession()
    again.CopyFrom(THREADED)
    again.state = error.state
    with Robot(house.address, again) as robot:
        assert robot.opened().next_step == error.next_step == (3 if what == "superseded" else 1)
        robot.send(error.next_step, CALM, (0.75, 0.0))
        if what == "superseded":  # it counted, and so does its cost
            assert bad_field(robot.error().status) == "step.cost_total[0]"
        else:
            assert robot.result().budgets[0].spent == 0.75


def test_a_state_of_an_error_is_as_young_as_the_error(runtimes: dict[int, PolicyRuntime]) -> None:
    house = House(dict(runtimes), idle_seconds=1.0)
    try:
        with Robot(house.address, OPEN) as robot:
            first = robot.opened().state
            for _ in range(6):
                time.sleep(0.2)
                robot.send(0, NONSENSE)
                error = robot.error()
        with Robot(house.address, pb.OpenSession(policy=GOAL, state=first)) as robot:
            assert "sessions are kept for 1 s" in robot.status().message
        with Robot(house.address, pb.OpenSession(policy=GOAL, state=error.state)) as robot:
            assert robot.opened().next_step == 0
    finally:
        house.close()
