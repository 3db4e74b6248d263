"""Calls that nobody knows: refused, and no danger to the others."""

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from benchmarks.faults.malformed import connection, frame
from serve.client import PolicyClient
from tests.serve.conftest import PATIENCE_SECONDS
from tests.serve.running import ServerThread


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
