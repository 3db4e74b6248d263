"""Calls that nobody knows: refused, and no danger to the others."""

import logging
import socket
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from benchmarks.faults.malformed import connection, frame
from serve.client import PolicyClient
from serve.client.status import call_details, retry_after_seconds
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.server.runtime import Asked
from serve.server.service import PolicyServicer
from serve.server.settings import Settings
from tests.serve.conftest import PATIENCE_SECONDS
from tests.serve.running import ServerThread

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unknown_method_is_refused(server: ServerThread) -> None:
    with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(8) as pool:

        def ask(method: str) -> grpc.StatusCode:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method, bytes, bytes)(b"", timeout=PATIENCE_SECONDS)
            assert isinstance(caught.value, grpc.Call)
            code: grpc.StatusCode = caught.value.code()
            return code

        methods = ["/cvpo.v1.PolicyService/Fly", "/nowhere", "/", "/cvpo.v1.PolicyAdminService/GetServing"] * 16
        assert set(pool.map(ask, methods)) == {grpc.StatusCode.UNIMPLEMENTED}


@pytest.mark.parametrize("path", [b"/cvpo.v1.PolicyService/\xff", b"\xc3\x28"])
def test_a_path_that_is_not_utf8_does_not_end_the_server(
    server: ServerThread, client: PolicyClient, path: bytes
) -> None:
    host, port = server.address.split(":")
    placeholder = "P" * len(path)
    raw = connection(placeholder, b"").replace(placeholder.encode(), path)
    for _ in range(3):
        with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as stray:
            stray.sendall(raw)
            answer = b""
            while frame(3, 0, 1, b"", 4)[:9] not in answer and b"grpc-status" not in answer:
                received = stray.recv(4096)
                assert received
                answer += received
        assert client.act([1, 2, -1]).action.tolist() == [0.25, -2.0]


def test_small_requests_that_wait_are_bounded_and_told_when_to_come_back(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "serve.server.acceptor")
    begun, release = threading.Event(), threading.Event()
    read_act = PolicyServicer.read_act

    def stall(self: PolicyServicer, request: pb.ActRequest, request_id: str | None) -> Asked:
        begun.set()
        release.wait(PATIENCE_SECONDS)  # and with it the event loop
        return read_act(self, request, request_id)

    monkeypatch.setattr(PolicyServicer, "read_act", stall)
    server = ServerThread(
        Settings(
            repository=repository / "goal",
            address="127.0.0.1:0",
            metrics_address="127.0.0.1:0",
            max_concurrent_requests=4,
        )
    )
    request = pb.ActRequest(situations=[pb.Situation(observation=(1, 2, -1))])
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]
            first = stub.Act.future(request, timeout=PATIENCE_SECONDS)
            assert begun.wait(PATIENCE_SECONDS)
            calls = {
                named: stub.Act.future(request, timeout=PATIENCE_SECONDS, metadata=(("x-request-id", named),))
                for named in map(str, range(200))
            }
            time.sleep(1.0)  # they arrive while nobody looks
            release.set()
            assert list(first.result().results[0].action) == [0.25, -2.0]
            codes = Counter(call.code() for call in calls.values())
            assert codes.keys() == {grpc.StatusCode.OK, FULL}
            for named, call in calls.items():
                assert dict(call.trailing_metadata())["x-request-id"] == named
                if call.code() is FULL:
                    assert retry_after_seconds(call_details(call)) == pytest.approx(0.1)
                    assert "4 requests" in call.details()
            not_taken_up = sum("4 requests wait" in call.details() for call in calls.values() if call.code() is FULL)
            assert not_taken_up > codes[FULL] / 2  # the others were, and found four at work
            stub.Act(request, timeout=PATIENCE_SECONDS)  # there is room again
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=PATIENCE_SECONDS) as page:
            counted = f'cvpo_serve_requests_total{{code="RESOURCE_EXHAUSTED",method="Act"}} {codes[FULL]}.0'
            assert counted in page.read().decode()
        assert [record.getMessage() for record in caplog.records] == ["request refused"] * not_taken_up
    finally:
        release.set()
        server.stop(drain_seconds=0)
