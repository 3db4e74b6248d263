"""A few hundred wrong messages and connections; `python -m benchmarks.faults` sends ten thousand."""

import random
from collections.abc import Callable
from pathlib import Path

import grpc

from benchmarks.faults.malformed import BLAMELESS, Connections, Messages, send_bytes, send_messages
from serve.client import PolicyClient
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess


def test_wrong_messages_and_wrong_bytes_leave_the_server_serving(
    repository: Path, serve_process: Callable[..., ServerProcess]
) -> None:
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    host, port = server.address.split(":")
    with grpc.insecure_channel(server.address) as channel:
        codes = send_messages(channel, Messages(random.Random(0), "goal", 3), 200)
    assert codes.keys() <= BLAMELESS, codes
    assert codes["INVALID_ARGUMENT"] > 50, codes
    connections = Connections(random.Random(0))
    assert send_bytes(host, int(port), (connections.bytes() for _ in range(200))) == 200
    with PolicyClient(server.address, timeout_seconds=PATIENCE_SECONDS) as client:
        assert client.act([1, 2, -1]).action.tolist() == [0.25, -2.0]
    assert server.terminate() == 0
    assert server.process.stderr is not None
    assert "request failed" not in server.process.stderr.read()
