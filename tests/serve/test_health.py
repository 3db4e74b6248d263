"""Those who watch a server's health, or have it describe itself: bounded, told whatever the others do, and no hindrance
to its stop."""

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serve.server.settings import Settings
from tests.serve.conftest import PATIENCE_SECONDS
from tests.serve.robots import retry_seconds
from tests.serve.running import ServerThread

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
WATCHERS = 4


@pytest.fixture
def house(repository: Path) -> Iterator[ServerThread]:
    server = ServerThread(Settings(repository=repository / "goal", address="127.0.0.1:0", max_streams=WATCHERS))
    yield server
    server.stop(drain_seconds=0)


@pytest.fixture
def watch(house: ServerThread) -> Iterator[Callable[[], Any]]:
    """Begins to watch, on a connection of its own."""
    with ExitStack() as stack:

        def begin() -> Any:
            channel = stack.enter_context(
                grpc.insecure_channel(house.address, (("grpc.use_local_subchannel_pool", 1),))
            )
            request = health_pb2.HealthCheckRequest(service="cvpo.v1.PolicyService")
            return health_pb2_grpc.HealthStub(channel).Watch(request, timeout=PATIENCE_SECONDS)

        yield begin


def test_those_who_stay_are_told_when_one_has_left(house: ServerThread, watch: Callable[[], Any]) -> None:
    leaving, staying = watch(), watch()
    assert next(leaving).status == next(staying).status == SERVING
    leaving.cancel()
    new = watch()  # by its answer the server knows that the other has left
    assert next(new).status == SERVING
    house.stop(drain_seconds=PATIENCE_SECONDS)
    assert next(staying).status == next(new).status == NOT_SERVING


def test_no_more_than_there_may_be_streams_are_let_in_to_watch(watch: Callable[[], Any]) -> None:
    watching = [watch() for _ in range(WATCHERS)]
    assert [next(each).status for each in watching] == [SERVING] * WATCHERS
    with pytest.raises(grpc.RpcError) as caught:
        next(watch())
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    assert retry_seconds(status_pb2.Status.FromString(details)) > 0
    watching[0].cancel()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:  # the server hears of it a little later
        try:
            assert next(watch()).status == SERVING
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline


def test_the_request_id_comes_back_whatever_is_asked(house: ServerThread) -> None:
    named, patience = (("x-request-id", "robot-7"),), PATIENCE_SECONDS
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(house.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        _, checked = health.Check.with_call(health_pb2.HealthCheckRequest(), timeout=patience, metadata=named)
        described = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([asked]), timeout=patience, metadata=named
        )
        assert next(described)
        watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=patience, metadata=named)
        assert next(watched)
        house.stop(drain_seconds=patience)  # without a drain a stream may end before the server has its say
        for call in (checked, described, watched):
            assert dict(call.trailing_metadata())["x-request-id"] == "robot-7"


def test_those_who_watch_do_not_hold_up_a_stop(house: ServerThread, watch: Callable[[], Any]) -> None:
    watching = watch()
    assert next(watching).status == SERVING
    began = time.monotonic()
    house.stop(drain_seconds=PATIENCE_SECONDS)
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    assert [each.status for each in watching] == [NOT_SERVING]


def test_no_more_than_there_may_be_streams_are_described_the_services(house: ServerThread) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(house.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams: list[tuple[queue.SimpleQueue[Any], Any]] = []
        for _ in range(WATCHERS):
            requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            streams.append((requests, stub.ServerReflectionInfo(iter(requests.get, None), timeout=PATIENCE_SECONDS)))
            requests.put(asked)
            assert next(streams[-1][1]).list_services_response.service
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            next(stub.ServerReflectionInfo(iter([asked]), timeout=PATIENCE_SECONDS))
        for requests, answers in streams:
            requests.put(None)
            assert list(answers) == []
        assert next(stub.ServerReflectionInfo(iter([asked]), timeout=PATIENCE_SECONDS))
