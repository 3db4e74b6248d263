"""Deadlines, draining and crashes, around a handler that waits for as long as a test wants."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from serve.client import PolicyClient
from serve.errors import DeadlineExceededError, InternalError, ResourceExhaustedError, UnavailableError
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server
from serve.interceptors import RequestInterceptor
from serve.telemetry import Metrics

PATIENCE_SECONDS = 30.0


class Waiting(PolicyServiceServicer):
    """Answers ListPolicies once it is released, and fails GetPolicy."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()
        self.calls = 0

    def ListPolicies(self, request: pb.ListPoliciesRequest, context: object) -> pb.ListPoliciesResponse:  # noqa: N802
        self.calls += 1
        self.begun.release()
        assert self.release.wait(PATIENCE_SECONDS)
        return pb.ListPoliciesResponse()

    def GetPolicy(self, request: pb.GetPolicyRequest, context: object) -> pb.GetPolicyResponse:  # noqa: N802
        raise RuntimeError("the secret of the house")


class Fixture:
    def __init__(self, *, threads: int, concurrent: int | None) -> None:
        self.servicer = Waiting()
        self.draining = threading.Event()
        self.metrics = Metrics()
        self.server = grpc.server(
            ThreadPoolExecutor(threads),
            interceptors=[RequestInterceptor(self.metrics, self.draining)],
            maximum_concurrent_rpcs=concurrent,
        )
        add_PolicyServiceServicer_to_server(self.servicer, self.server)  # type: ignore[no-untyped-call]
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def count(self, method: str, code: str) -> float:
        labels = {"method": method, "code": code}
        return self.metrics.registry.get_sample_value("cvpo_serve_requests_total", labels) or 0.0

    def close(self) -> None:
        self.servicer.release.set()
        self.server.stop(None).wait()


@pytest.fixture
def one_thread() -> Iterator[Fixture]:
    fixture = Fixture(threads=1, concurrent=None)
    yield fixture
    fixture.close()


@pytest.fixture
def one_call() -> Iterator[Fixture]:
    fixture = Fixture(threads=2, concurrent=1)
    yield fixture
    fixture.close()


def test_a_request_that_outlives_its_deadline_in_the_queue_is_not_worked_on(one_thread: Fixture) -> None:
    patient = PolicyClient(one_thread.address, timeout_seconds=PATIENCE_SECONDS)
    hasty = PolicyClient(one_thread.address, timeout_seconds=0.05)
    with patient, hasty, ThreadPoolExecutor(1) as pool:
        first = pool.submit(patient.list_policies)
        assert one_thread.servicer.begun.acquire(timeout=PATIENCE_SECONDS)
        with pytest.raises(DeadlineExceededError, match=r"within 0\.05 s"):
            hasty.list_policies()
        one_thread.servicer.release.set()
        assert first.result(PATIENCE_SECONDS) == ()
        patient.list_policies()  # comes after the late one in the queue
    assert one_thread.servicer.calls == 2


def test_while_draining_new_requests_are_told_to_ask_again_and_those_in_flight_are_answered(
    one_call: Fixture,
) -> None:
    with PolicyClient(one_call.address, timeout_seconds=PATIENCE_SECONDS) as client, ThreadPoolExecutor(1) as pool:
        with pytest.raises(InternalError):  # connect
            client.get_policy()
        in_flight = pool.submit(client.list_policies)
        assert one_call.servicer.begun.acquire(timeout=PATIENCE_SECONDS)
        one_call.draining.set()
        one_call.servicer.release.set()
        assert in_flight.result(PATIENCE_SECONDS) == ()
        with pytest.raises(UnavailableError, match="stopping") as caught:
            client.list_policies()
    assert caught.value.retry_after_seconds == 1.0
    assert one_call.count("ListPolicies", "OK") == 1
    assert one_call.count("ListPolicies", "UNAVAILABLE") == 1


def test_more_calls_at_once_than_the_server_takes_are_refused(one_call: Fixture) -> None:
    with PolicyClient(one_call.address, timeout_seconds=PATIENCE_SECONDS) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.list_policies)
        assert one_call.servicer.begun.acquire(timeout=PATIENCE_SECONDS)
        with pytest.raises(ResourceExhaustedError):
            client.list_policies()
        one_call.servicer.release.set()
        assert first.result(PATIENCE_SECONDS) == ()


def test_a_crash_tells_the_caller_nothing_but_where_to_look(
    one_thread: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        PolicyClient(one_thread.address, timeout_seconds=PATIENCE_SECONDS) as client,
        pytest.raises(InternalError) as caught,
    ):
        client.get_policy()
    assert "secret" not in str(caught.value)
    assert "request id" in str(caught.value)
    assert any("the secret of the house" in str(record.exc_info) for record in caplog.records)
    assert one_thread.count("GetPolicy", "INTERNAL") == 1
