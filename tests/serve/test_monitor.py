"""What the metrics port makes of clients that leave and of its own failures: stderr is for JSON alone."""

import logging
import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.client import RemoteDisconnected

import pytest
from prometheus_client import CollectorRegistry

from serve.server.monitor import Monitor
from tests.serve.running import LoopThread

PATIENCE_SECONDS = 30.0


@pytest.fixture
def opened() -> Iterator[Callable[[Callable[[], bool]], Monitor]]:
    """Open a monitor that asks a function whether the server is ready."""
    loop = LoopThread()
    monitors: list[Monitor] = []

    async def make(ready: Callable[[], bool]) -> Monitor:
        return Monitor("127.0.0.1:0", CollectorRegistry(), ready)

    def open(ready: Callable[[], bool]) -> Monitor:
        monitors.append(loop.run(make(ready)))
        return monitors[-1]

    yield open
    for monitor in monitors:
        monitor.close()
    loop.close()


def test_of_a_client_that_leaves_in_the_middle_nothing_is_said(
    opened: Callable[[Callable[[], bool]], Monitor],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, left = threading.Event(), threading.Event()

    def ready() -> bool:
        asked.set()
        left.wait(PATIENCE_SECONDS)
        return True

    host, port = opened(ready).address.split(":")
    before = set(threading.enumerate())
    with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert asked.wait(PATIENCE_SECONDS)
        answering = set(threading.enumerate()) - before
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset instead of a farewell
    left.set()
    assert answering
    for thread in answering:
        thread.join(PATIENCE_SECONDS)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_failure_of_its_own_is_an_event_of_the_log(
    opened: Callable[[Callable[[], bool]], Monitor],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def ready() -> bool:
        raise RuntimeError("of a kind that nobody thought of")

    with pytest.raises(RemoteDisconnected):
        urllib.request.urlopen(f"http://{opened(ready).address}/readyz", timeout=PATIENCE_SECONDS)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "metrics request failed")
    assert "of a kind that nobody thought of" in str(record.exc_info)
    assert capfd.readouterr() == ("", "")
