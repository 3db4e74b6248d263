"""Clients that die, do not read, or come in numbers, and servers that stop: what it does to the others."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import serve.server.process
from benchmarks.faults.malformed import connection
from serve.client import PolicyClient
from serve.errors import ResourceExhaustedError
from serve.gen.cvpo.v1 import control_pb2
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceStub
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.server.settings import Settings
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess
from tests.serve.running import ServerThread

Serve = Callable[..., ServerProcess]
ACT = pb.ActRequest(situations=[pb.Situation(observation=(1, 2, -1))])


def open_session(channel: grpc.Channel, leave: threading.Event) -> Iterator[control_pb2.ControlResponse]:
    """Open a session on a stream that stays until `leave` is set."""

    def requests() -> Iterator[control_pb2.ControlRequest]:
        yield control_pb2.ControlRequest(open=control_pb2.OpenSession())
        leave.wait(PATIENCE_SECONDS)

    stub = ControlServiceStub(channel)  # type: ignore[no-untyped-call]
    answers: Iterator[control_pb2.ControlResponse] = stub.Control(requests(), timeout=2 * PATIENCE_SECONDS)
    return answers


def test_four_times_more_streams_than_threads_leave_health_and_requests_answered(repository: Path) -> None:
    threads, streams = 2, 8
    server = ServerThread(
        Settings(repository=repository / "goal", address="127.0.0.1:0", threads=threads, max_streams=streams)
    )
    leave = threading.Event()
    try:
        with grpc.insecure_channel(server.address) as channel:
            opened = [open_session(channel, leave) for _ in range(streams)]
            assert all(next(stream).opened.session_id for stream in opened)
            asked = health_pb2.HealthCheckRequest()
            health = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE_SECONDS)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            with PolicyClient(server.address, timeout_seconds=PATIENCE_SECONDS) as client:
                assert client.act([1, 2, -1]).action.tolist() == [0.25, -2.0]
                assert len(client.act(np.zeros((64, 3))).action) == 64  # by a thread
            with pytest.raises(grpc.RpcError) as caught:
                next(open_session(channel, leave))
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            leave.set()
            assert [list(stream) for stream in opened] == [[]] * streams
    finally:
        leave.set()
        server.stop(drain_seconds=0)


def test_a_connection_that_gives_no_sign_of_life_is_closed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.server.process, "_KEEPALIVE_MS", 500)
    monkeypatch.setattr(serve.server.process, "_KEEPALIVE_TIMEOUT_MS", 500)
    server = ServerThread(Settings(repository=repository / "goal", address="127.0.0.1:0"))
    host, port = server.address.split(":")
    try:
        with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as silent:
            silent.sendall(connection("/cvpo.v1.PolicyService/Act", ACT.SerializeToString()))
            while silent.recv(65536):  # never answers a ping
                pass
    finally:
        server.stop(drain_seconds=0)


def wait_for_room(client: PolicyClient) -> list[float]:
    """Ask until the server no longer refuses for all that came at once; the action that it answers."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return list(client.act([1, 2, -1]).action)
        except ResourceExhaustedError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_who_does_not_read_holds_up_nobody_and_its_answers_are_let_go(repository: Path, serve_process: Serve) -> None:
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0", "--max-concurrent-requests", "8")
    host, port = server.address.split(":")
    no_window = b"\x00\x04\x00\x00\x00\x00"  # SETTINGS_INITIAL_WINDOW_SIZE 0: nothing may be sent to it
    sent = connection("/cvpo.v1.PolicyService/Act", ACT.SerializeToString(), no_window)
    with ExitStack() as stack:
        for _ in range(64):  # eight times more answers than requests at once
            deaf = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE_SECONDS))
            deaf.sendall(sent)
        with PolicyClient(server.address, timeout_seconds=PATIENCE_SECONDS) as client:
            for _ in range(20):  # the last of the deaf may be heard only after the first of these
                assert wait_for_room(client) == [0.25, -2.0]
    with PolicyClient(server.address, timeout_seconds=PATIENCE_SECONDS) as client:
        assert client.act([1, 2, -1]).action.tolist() == [0.25, -2.0]
    started = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - started < 9  # their answers are not waited for to the end of the drain time
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()


def is_unavailable(error: grpc.RpcError) -> bool:
    """Whether a stopping server says it; CANCELLED is of calls that it has not taken up (grpc/grpc issue 41785)."""
    return isinstance(error, grpc.Call) and error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_two_servers_that_stop_in_turn_fail_no_request_of_a_client_that_knows_both(
    repository: Path, serve_process: Serve
) -> None:
    arguments = (str(repository / "goal"), "--address", "127.0.0.1:0")
    servers = [serve_process(*arguments) for _ in range(2)]
    addresses = [server.address for server in servers]
    stop = threading.Event()
    answered = [0] * 4

    def drive(index: int) -> None:
        """Ask one server, and where it is stopping the other, until told to stop."""
        with ExitStack() as stack:
            channels = [stack.enter_context(grpc.insecure_channel(address)) for address in addresses]
            stubs = [PolicyServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
            chosen = index % 2
            while not stop.is_set():
                try:
                    answer = stubs[chosen].Act(ACT, timeout=PATIENCE_SECONDS)
                except grpc.RpcError as error:
                    if not is_unavailable(error):
                        raise
                    chosen = 1 - chosen
                    answer = stubs[chosen].Act(ACT, timeout=PATIENCE_SECONDS)
                assert list(answer.results[0].action) == [0.25, -2.0]
                answered[index] += 1

    def wait_for_answers() -> None:
        goal = [count + 5 for count in answered]
        end = time.monotonic() + PATIENCE_SECONDS
        while any(count < wanted for count, wanted in zip(answered, goal, strict=True)):
            assert time.monotonic() < end
            assert not any(driver.done() for driver in drivers)
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        drivers = [pool.submit(drive, index) for index in range(4)]
        try:
            wait_for_answers()
            for turn in range(2):
                stopped = servers[turn]
                assert stopped.terminate() == 0
                wait_for_answers()
                servers[turn] = serve_process(str(repository / "goal"), "--address", addresses[turn])
                wait_for_answers()
        finally:
            stop.set()
        for driver in drivers:
            driver.result(PATIENCE_SECONDS)
