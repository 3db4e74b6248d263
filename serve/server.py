"""The server process: ports, health, reflection, metrics, and a stop that loses no request."""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from serve.errors import StartupError
from serve.gen.cvpo.v1 import policy_pb2
from serve.gen.cvpo.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server
from serve.interceptors import RequestInterceptor
from serve.repository import Repository, load_repository
from serve.service import PolicyServicer
from serve.settings import Settings, is_loopback, split_address
from serve.telemetry import Metrics, configure_logging, log

logger = logging.getLogger(__name__)

SERVICE_NAME = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_UNIX = "unix:"

# Time in which those who go on asking a stopping server get an answer that says when to ask again. Requests in flight
# do not need it, but when the port closes, gRPC cancels those that it has not taken up yet (grpc/grpc issue 41785).
_NOTICE_SECONDS = 0.2


@dataclass(frozen=True)
class RunningServer:
    """A server that answers."""

    address: str  # what a client connects to; the real port where 0 was asked for
    metrics_address: str | None
    repository: Repository
    _server: grpc.Server
    _health: health.HealthServicer
    _metrics_server: WSGIServer | None
    _draining: threading.Event

    def stop(self, drain_seconds: float) -> None:
        """Say NOT_SERVING, take no new request, answer those in flight, and close; waits until it is done.

        What is still unanswered after `drain_seconds` is cancelled.
        """
        self._health.enter_graceful_shutdown()
        self._draining.set()
        notice = min(_NOTICE_SECONDS, drain_seconds)
        time.sleep(notice)
        self._server.stop(drain_seconds - notice).wait()
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()


def start(settings: Settings) -> RunningServer:
    """Load the repository and answer on the configured address.

    Raises:
        StartupError: there is nothing to serve, or the address is in use, malformed, or open to the network without
            leave.
    """
    _check_reach(settings)
    repository = load_repository(settings.repository, allow_uncalibrated=settings.allow_uncalibrated)
    metrics = Metrics()
    for name, versions in repository.policies.items():
        for version in versions:
            metrics.bundle_loaded(name, version)

    draining = threading.Event()
    server = grpc.server(
        ThreadPoolExecutor(settings.threads, thread_name_prefix="request"),
        interceptors=[RequestInterceptor(metrics, draining)],
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a silent sharing
            ("grpc.max_receive_message_length", settings.max_message_bytes),
        ),
        maximum_concurrent_rpcs=settings.max_concurrent_requests,
    )
    add_PolicyServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        PolicyServicer(repository, settings.limits, metrics), server
    )
    health_servicer = health.HealthServicer(
        experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1, thread_name_prefix="health")
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)

    address = _bind(server, settings.address)
    metrics_server, metrics_address = _serve_metrics(settings, metrics)
    server.start()
    for service in ("", SERVICE_NAME):
        health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    return RunningServer(address, metrics_address, repository, server, health_servicer, metrics_server, draining)


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status: 0 after a clean stop, 1 where it could not start.

    Once it answers, one JSON line on stdout says where: {"event": "ready", "address": ..., "policies": [...]}.
    """
    configure_logging(settings.log_level)
    with _stop_signal() as stop:
        try:
            server = start(settings)
        except StartupError as error:
            print(error, file=sys.stderr)
            return 1
        ready = {
            "event": "ready",
            "address": server.address,
            "metrics_address": server.metrics_address,
            "policies": [
                {"name": name, "versions": list(versions)} for name, versions in server.repository.policies.items()
            ],
        }
        print(json.dumps(ready), flush=True)
        number = stop.recv(1)[0]
        log(logger, logging.INFO, "stopping", signal=signal.Signals(number).name, drain_seconds=settings.drain_seconds)
        server.stop(settings.drain_seconds)
        log(logger, logging.INFO, "stopped")
    return 0


@contextlib.contextmanager
def _stop_signal() -> Iterator[socket.socket]:
    """Yield a socket that gives the number of the first SIGTERM or SIGINT; the second has its usual effect.

    Waiting for an Event or a queue would not do: where the kernel hands the signal to one of gRPC's threads, nothing
    wakes the main thread, which alone runs handlers. What Python writes to the wake-up socket does.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)

        def on_signal(number: int, frame: FrameType | None) -> None:
            signal.signal(number, signal.SIG_DFL)

        handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(writer.fileno())
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _check_reach(settings: Settings) -> None:
    """Refuse an address that other machines can reach, unless the operator said so."""
    for address in (settings.address, settings.metrics_address):
        if address is None or (address == settings.address and address.startswith(_UNIX)):
            continue
        host, _ = split_address(address)
        if not (is_loopback(host) or settings.allow_plaintext_network):
            raise StartupError(
                f"{address} can be reached from other machines, and requests travel unencrypted and unauthenticated. "
                "Use 127.0.0.1 or unix:PATH, or accept the risk with --allow-plaintext-network."
            )


def _bind(server: grpc.Server, address: str) -> str:
    """Open the port and return the address that clients use."""
    if address.startswith(_UNIX):
        _check_socket_free(address.removeprefix(_UNIX))
    else:
        _check_port_free(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"Cannot listen on {address}. Choose another --address.") from error
    return address if address.startswith(_UNIX) else f"{address.rpartition(':')[0]}:{port}"


def _check_port_free(address: str) -> None:
    """Say why an address cannot be had: gRPC does not tell."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: closed connections may linger
            probe.bind(target)
    except OSError as error:
        raise StartupError(f"Cannot listen on {address}: {error.strerror}. Choose another --address.") from error


def _check_socket_free(path: str) -> None:
    """Refuse a path that is taken: gRPC would silently take the place of a server that answers there."""
    if not os.access(Path(path).parent, os.W_OK):
        raise StartupError(f"Cannot listen on unix:{path}: the folder is not there, or cannot be written.")
    if Path(path).exists() and not Path(path).is_socket():
        raise StartupError(f"{path} exists and is no socket. Choose another --address.")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise StartupError(f"Another server answers on unix:{path}. Stop it, or choose another --address.")


def _serve_metrics(settings: Settings, metrics: Metrics) -> tuple[WSGIServer | None, str | None]:
    if settings.metrics_address is None:
        return None, None
    host, port = split_address(settings.metrics_address)
    try:
        http_server, _ = start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as error:
        raise StartupError(
            f"Cannot listen on {settings.metrics_address} for metrics: {error.strerror}. "
            "Choose another --metrics-address."
        ) from error
    return http_server, f"{settings.metrics_address.rpartition(':')[0]}:{http_server.server_port}"
