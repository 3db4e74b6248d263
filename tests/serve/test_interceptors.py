"""Deadlines, draining, bounds and crashes, around handlers that wait for as long as a test wants."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from serve.client import PolicyClient
from serve.errors import (
    DeadlineExceededError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from serve.gen.cvpo.v1 import control_pb2, control_pb2_grpc
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import (
    PolicyServiceServicer,
    add_PolicyServiceServicer_to_server,
)
from serve.server.interceptors import Context, Registrar, check_deadline, request_id
from serve.server.telemetry import Metrics
from tests.serve.running import LoopThread

PATIENCE_SECONDS = 30.0


class Waiting(PolicyServiceServicer):
    """Answers ListPolicies once it is released, and fails GetPolicy."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.release = asyncio.Event()

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: object) -> pb.ListPoliciesResponse:  # noqa: N802
        self.begun.release()
        await asyncio.wait_for(self.release.wait(), PATIENCE_SECONDS)
        return pb.ListPoliciesResponse()

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: object) -> pb.GetPolicyResponse:  # noqa: N802
        raise RuntimeError("the secret of the house")

    async def Act(self, request: object, context: object) -> None:  # noqa: N802
        """Not asked."""

    async def EvaluateAction(self, request: object, context: object) -> None:  # noqa: N802
        """Not asked."""


class Echoing(control_pb2_grpc.ControlServiceServicer):
    """Answers each step by its number, step 13 with a crash, 14 with an error, 15 and 16 with interrupted ones."""

    async def Control(  # noqa: N802
        self, requests: AsyncIterator[control_pb2.ControlRequest], context: Context
    ) -> None:
        async for request in requests:
            if request.step.step == 13:
                raise RuntimeError("the secret of the house")
            if request.step.step == 14:
                raise NotFoundError("There is no step 14.")
            if request.step.step == 16:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise NotFoundError("There is no step 16.")
            response = control_pb2.ControlResponse(result=control_pb2.ControlResult(step=request.step.step))
            if request.step.step == 15:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
                try:
                    await context.write(response)
                except asyncio.CancelledError:
                    raise NotFoundError("There is no step 15.") from None
            await context.write(response)
        await context.write(control_pb2.ControlResponse(opened={"session_id": request_id(context)}))


async def set_event(event: asyncio.Event) -> None:
    event.set()


class Fixture:
    """A server on a loop in a thread."""

    def __init__(self, *, requests: int = 8, streams: int = 8) -> None:
        self.metrics = Metrics()
        self._thread = LoopThread()
        self._thread.run(self._start(requests, streams))
        self.channel = grpc.insecure_channel(self.address)

    async def _start(self, requests: int, streams: int) -> None:
        self.servicer = Waiting()
        self.server = grpc.aio.server()
        self.draining = asyncio.Event()
        registrar = Registrar(self.server, self.metrics, self.draining, max_requests=requests, max_streams=streams)
        add_PolicyServiceServicer_to_server(self.servicer, registrar)  # type: ignore[no-untyped-call]
        control_pb2_grpc.add_ControlServiceServicer_to_server(Echoing(), registrar)  # type: ignore[no-untyped-call]
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    def release(self) -> None:
        self._thread.run(set_event(self.servicer.release))

    def drain(self) -> None:
        self._thread.run(set_event(self.draining))

    def count(self, method: str, code: str) -> float:
        labels = {"method": method, "code": code}
        return self.metrics.registry.get_sample_value("cvpo_serve_requests_total", labels) or 0.0

    def timed(self, method: str) -> float:
        """How many calls the histogram of times has."""
        return self.metrics.registry.get_sample_value("cvpo_serve_request_seconds_count", {"method": method}) or 0.0

    def control(self, steps: Iterator[control_pb2.ControlRequest]) -> Iterator[control_pb2.ControlResponse]:
        stub = control_pb2_grpc.ControlServiceStub(self.channel)  # type: ignore[no-untyped-call]
        call: Iterator[control_pb2.ControlResponse] = stub.Control(steps, timeout=PATIENCE_SECONDS)
        return call

    def close(self) -> None:
        self.release()
        self.channel.close()
        self._thread.run(self.server.stop(None))
        self._thread.close()


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.close()


@pytest.fixture
def narrow() -> Iterator[Fixture]:
    fixture = Fixture(requests=1, streams=1)
    yield fixture
    fixture.close()


def step(number: int) -> control_pb2.ControlRequest:
    return control_pb2.ControlRequest(step=control_pb2.ControlStep(step=number))


def details(error: grpc.RpcError) -> list[error_details_pb2.RequestInfo | error_details_pb2.RetryInfo]:
    """Return the details of an error that we know, in order."""
    assert isinstance(error, grpc.Call)
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    found = []
    for detail in status.details:
        for wanted in (error_details_pb2.RequestInfo(), error_details_pb2.RetryInfo()):
            if detail.Unpack(wanted):
                found.append(wanted)
    return found


def test_while_draining_new_requests_are_told_to_ask_again_and_those_in_flight_are_answered(fixture: Fixture) -> None:
    with PolicyClient(fixture.address, timeout_seconds=PATIENCE_SECONDS) as client, ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(client.list_policies)
        assert fixture.servicer.begun.acquire(timeout=PATIENCE_SECONDS)
        fixture.drain()
        with pytest.raises(UnavailableError, match="stopping") as caught:
            client.list_policies()
        with pytest.raises(grpc.RpcError) as refused:
            list(fixture.control(iter([step(1)])))
        fixture.release()
        assert in_flight.result(PATIENCE_SECONDS) == ()
    assert caught.value.retry_after_seconds == 1.0
    assert isinstance(refused.value, grpc.Call)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert fixture.count("ListPolicies", "OK") == 1
    assert fixture.count("ListPolicies", "UNAVAILABLE") == 1
    assert fixture.timed("ListPolicies") == 1  # what is refused takes no time, and would pass for a fast answer
    assert fixture.count("Control", "UNAVAILABLE") == 1


def test_more_requests_at_once_than_the_server_takes_are_refused_at_once_and_told_when_to_come_back(
    narrow: Fixture,
) -> None:
    with PolicyClient(narrow.address, timeout_seconds=PATIENCE_SECONDS) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.list_policies)
        assert narrow.servicer.begun.acquire(timeout=PATIENCE_SECONDS)
        with pytest.raises(ResourceExhaustedError, match="1 requests at once") as caught:
            client.list_policies()
        assert isinstance(caught.value.__cause__, grpc.RpcError)
        _, retry = details(caught.value.__cause__)
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToMilliseconds() == 100
        narrow.release()
        assert first.result(PATIENCE_SECONDS) == ()
        assert client.list_policies() == ()  # there is room again
    assert narrow.count("ListPolicies", "RESOURCE_EXHAUSTED") == 1
    assert narrow.timed("ListPolicies") == 2


def test_more_streams_than_the_server_takes_are_refused_and_told_when_to_come_back(narrow: Fixture) -> None:
    leave = threading.Event()

    def steps() -> Iterator[control_pb2.ControlRequest]:
        yield step(1)
        leave.wait(PATIENCE_SECONDS)

    first = narrow.control(steps())
    assert next(first).result.step == 1
    with pytest.raises(grpc.RpcError) as caught:
        list(narrow.control(iter([step(1)])))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert any(isinstance(detail, error_details_pb2.RetryInfo) for detail in details(caught.value))
    leave.set()
    assert len(list(first)) == 1
    assert [answer.result.step for answer in narrow.control(iter([step(2)]))] == [2, 0]


def test_a_request_whose_caller_has_left_is_given_up_and_counted(fixture: Fixture) -> None:
    with (
        PolicyClient(fixture.address, timeout_seconds=0.2) as client,
        pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"),
    ):
        client.list_policies()
    assert fixture.servicer.begun.acquire(timeout=PATIENCE_SECONDS)
    waited = threading.Event()
    for _ in range(int(PATIENCE_SECONDS * 100)):  # the client knows before the server
        if fixture.count("ListPolicies", "CANCELLED"):
            break
        waited.wait(0.01)
    assert fixture.count("ListPolicies", "CANCELLED") == 1


def test_a_crash_tells_the_caller_nothing_but_where_to_look(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    with (
        PolicyClient(fixture.address, timeout_seconds=PATIENCE_SECONDS) as client,
        pytest.raises(InternalError) as caught,
    ):
        client.get_policy()
    assert "secret" not in str(caught.value)
    assert "request id" in str(caught.value)
    assert any("the secret of the house" in str(record.exc_info) for record in caplog.records)
    assert fixture.count("GetPolicy", "INTERNAL") == 1


def test_a_stream_ends_with_the_status_of_its_error(fixture: Fixture) -> None:
    for number, code, says in ((13, grpc.StatusCode.INTERNAL, "request id"), (14, grpc.StatusCode.NOT_FOUND, "14")):
        stream = fixture.control(iter([step(1), step(number)]))
        assert next(stream).result.step == 1
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is code
        assert says in str(caught.value.details())
        assert "secret" not in str(caught.value.details())
        info = details(caught.value)[0]
        assert isinstance(info, error_details_pb2.RequestInfo)
        assert dict(caught.value.trailing_metadata() or ())["x-request-id"] == info.request_id
        assert fixture.count("Control", code.name) == 1


@pytest.mark.parametrize("number", [15, 16])
def test_a_stream_that_is_interrupted_in_its_first_write_or_its_end_ends_with_its_status(
    fixture: Fixture, number: int
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(fixture.control(iter([step(number)])))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_stream_has_the_callers_request_id(fixture: Fixture) -> None:
    stub = control_pb2_grpc.ControlServiceStub(fixture.channel)  # type: ignore[no-untyped-call]
    call = stub.Control(iter([step(1)]), timeout=PATIENCE_SECONDS, metadata=(("x-request-id", "robot-7"),))
    assert [answer.opened.session_id for answer in call] == ["", "robot-7"]
    assert dict(call.trailing_metadata())["x-request-id"] == "robot-7"
    assert fixture.count("Control", "OK") == 1


@pytest.mark.parametrize("remaining", [0.0, -1e-9])
def test_what_nobody_waits_for_any_more_is_refused(remaining: float) -> None:
    with pytest.raises(DeadlineExceededError, match="nothing was computed"):
        check_deadline(mock.Mock(time_remaining=lambda: remaining))


@pytest.mark.parametrize("remaining", [None, 1e-9])
def test_what_somebody_waits_for_is_not_refused(remaining: float | None) -> None:
    check_deadline(mock.Mock(time_remaining=lambda: remaining))


def garbage_call(channel: grpc.Channel) -> None:
    channel.unary_unary("/cvpo.v1.PolicyService/ListPolicies", bytes, bytes)(b"\xff\xff", timeout=PATIENCE_SECONDS)


def garbage_stream(channel: grpc.Channel) -> None:
    list(
        channel.stream_stream("/cvpo.v1.ControlService/Control", bytes, bytes)(
            iter([b"\xff\xff"]), timeout=PATIENCE_SECONDS
        )
    )


@pytest.mark.parametrize("send", [garbage_call, garbage_stream])
def test_bytes_that_are_no_message_are_the_callers_fault(
    fixture: Fixture, send: Callable[[grpc.Channel], None], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        send(fixture.channel)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not the message" in str(caught.value.details())
    # Of ours: grpc logs what becomes of streams of servers of earlier tests when these are collected.
    assert [each for each in caplog.records if each.levelname == "ERROR" and each.name.startswith("serve.")] == []
