"""What the metrics port makes of clients that leave and of its own failures: stderr is for JSON alone."""

import contextlib
import errno
import logging
import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.client import RemoteDisconnected

import pytest
from prometheus_client import CollectorRegistry

from serve.server.monitor import MOST_CONNECTIONS, Monitor
from tests.serve.running import LoopThread

PATIENCE_SECONDS = 30.0


Open = Callable[..., Monitor]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Open a monitor that asks a function whether the server is ready."""
    loop = LoopThread()
    monitors: list[Monitor] = []

    async def make(ready: Callable[[], bool], address: str) -> Monitor:
        return Monitor(address, CollectorRegistry(), ready)

    def open(ready: Callable[[], bool], address: str = "127.0.0.1:0") -> Monitor:
        monitors.append(loop.run(make(ready, address)))
        return monitors[-1]

    yield open
    for monitor in monitors:
        monitor.close()
    loop.close()


def test_of_a_client_that_leaves_in_the_middle_nothing_is_said(
    opened: Open,
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
    opened: Open,
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


def look(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/readyz", timeout=PATIENCE_SECONDS) as page:
        return str(page.read().decode().strip())


def test_where_too_many_connections_are_open_the_oldest_is_let_go(opened: Open) -> None:
    address = opened(lambda: True).address
    host, port = address.split(":")
    before = set(threading.enumerate())
    with contextlib.ExitStack() as held:
        clients = [
            held.enter_context(socket.create_connection((host, int(port)), PATIENCE_SECONDS))
            for _ in range(3 * MOST_CONNECTIONS)
        ]
        for client in clients[::-1]:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"GET /metr")
        for client in clients[: 2 * MOST_CONNECTIONS]:
            assert closed(client)
        assert look(address) == "ready"
        for client in clients[2 * MOST_CONNECTIONS + 1 :]:
            client.sendall(b"ics HTTP/1.1\r\n\r\n")
            assert client.recv(9) == b"HTTP/1.0 "
        for thread in set(threading.enumerate()) - before:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def need_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")


def test_it_listens_on_an_address_of_ipv6(opened: Open) -> None:
    need_ipv6()
    address = opened(lambda: True, "[::1]:0").address
    assert address.startswith("[::1]:")
    assert look(address) == "ready"


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])
def test_on_all_addresses_it_is_reached_by_both_families_as_the_grpc_port_is(opened: Open, wildcard: str) -> None:
    need_ipv6()
    address = opened(lambda: True, f"{wildcard}:0").address
    host, _, port = address.rpartition(":")
    assert host == wildcard
    assert look(f"127.0.0.1:{port}") == look(f"[::1]:{port}") == "ready"


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])
def test_where_there_is_no_ipv6_all_addresses_are_those_of_ipv4(
    opened: Open, wildcard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    _, _, port = opened(lambda: True, f"{wildcard}:0").address.rpartition(":")
    assert look(f"127.0.0.1:{port}") == "ready"


def test_out_of_open_files_it_pauses_and_takes_the_connection_later(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = opened(lambda: True).address
    accept, failed, paused = socket.socket.accept, threading.Event(), threading.Event()

    def fail_once(self: socket.socket) -> tuple[socket.socket, object]:
        if failed.is_set():
            return accept(self)
        failed.set()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", fail_once)
    monkeypatch.setattr("serve.server.monitor.time.sleep", lambda seconds: paused.set())
    assert look(address) == "ready"
    assert paused.is_set()
