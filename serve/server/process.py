"""The server process: ports, health, reflection, metrics, and a stop that loses no request."""

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from prometheus_client import disable_created_metrics

from cvpo.bundle import MANIFEST, TrustedKeys, read_trusted_keys
from cvpo.errors import KeyFileError
from serve.errors import StartupError
from serve.gen.cvpo.v1.admin_pb2_grpc import add_PolicyAdminServiceServicer_to_server
from serve.gen.cvpo.v1.control_pb2_grpc import add_ControlServiceServicer_to_server
from serve.gen.cvpo.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server
from serve.server.acceptor import aio_server
from serve.server.admin import AdminServicer
from serve.server.control import ControlServicer
from serve.server.health import HealthServicer
from serve.server.interceptors import Registrar
from serve.server.listening import bind, check_free, check_reach
from serve.server.monitor import Monitor
from serve.server.reflection import add_reflection
from serve.server.repository import RepositoryCollector
from serve.server.scheduled import ScheduledPolicyServicer
from serve.server.service import PolicyServicer
from serve.server.settings import Settings
from serve.server.shadow import Shadow
from serve.server.sharing import SharedRuns
from serve.server.signals import STOPPING, end_on_signal
from serve.server.state import StateSeal
from serve.server.telemetry import Metrics, configure_logging, log
from serve.server.watch import Watcher
from serve.server.workers import Workers

logger = logging.getLogger(__name__)

# Time in which those who go on asking a stopping server get an answer that says when to ask again. Requests in flight
# do not need it, but when the port closes, gRPC cancels those that it has not taken up yet (grpc/grpc issue 41785).
_NOTICE_SECONDS = 0.2

# A connection on which nothing came for the first time is asked for a sign of life, and closed where none comes for the
# second: a robot that lost power says no farewell, and its stream would stay.
_KEEPALIVE_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000


@dataclass(frozen=True)
class RunningServer:
    """A server that answers, on the event loop that started it."""

    address: str  # what a client connects to; the real port where 0 was asked for
    admin_address: str | None
    metrics_address: str | None
    watcher: Watcher
    _servers: tuple[grpc.aio.Server, ...]
    _health: HealthServicer
    _monitor: Monitor | None
    _draining: asyncio.Event
    _control: ControlServicer
    _workers: Workers
    _shadow: Shadow

    async def stop(self, drain_seconds: float) -> None:
        """Say NOT_SERVING, take no new request, answer those in flight, and close; returns when it is done.

        What is still unanswered after `drain_seconds` is cancelled.
        """
        self._draining.set()
        self._control.drain(drain_seconds)
        self._health.stop()
        notice = min(_NOTICE_SECONDS, drain_seconds)
        await asyncio.sleep(notice)
        self._health.end()
        await asyncio.gather(*(server.stop(drain_seconds - notice) for server in self._servers))
        self._workers.close()
        self._shadow.close()
        self.watcher.stop()
        if self._monitor is not None:
            self._monitor.close()


async def start(settings: Settings) -> RunningServer:
    """Load the repository, answer on the configured addresses, and follow the repository from then on.

    A folder without anything to serve is waited for; the health of our services says so.

    Raises:
        StartupError: the repository is no folder, cannot be read, or is a bundle that is refused; an address is in
            use, or open to the network without leave; a certificate or a key cannot be used.
    """
    check_reach(settings)
    # Before the bundles, which take minutes where there are many: what is wrong with the settings is said at once.
    for address, flag in ((settings.address, "--address"), (settings.admin_address, "--admin-address")):
        if address is not None:
            check_free(address, shared=settings.share_port, flag=flag)
    seal = _seal(settings)
    for_robots, for_admins = _credentials(settings), _credentials(settings)
    watcher = _load(settings)
    metrics = Metrics()
    metrics.registry.register(RepositoryCollector(watcher.repository))
    draining = asyncio.Event()
    workers = Workers(settings.threads)
    loop = asyncio.get_running_loop()
    shadow = Shadow(watcher.repository, metrics, loop.call_soon_threadsafe)
    answers = PolicyServicer(watcher.repository, settings.limits, metrics, shadow)
    shared_runs = SharedRuns(metrics.registry)
    control = ControlServicer(watcher.repository, settings.limits, seal, workers, shared_runs, metrics, shadow)
    health_servicer = HealthServicer(settings.max_streams)

    server, services = _grpc_server(settings, metrics, draining)
    add_PolicyServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        ScheduledPolicyServicer(answers, workers, shared_runs), services
    )
    add_ControlServiceServicer_to_server(control, services)  # type: ignore[no-untyped-call]  # generated
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    add_reflection(server, (*services.names, health.SERVICE_NAME), settings.max_streams)
    address = bind(server, settings.address, for_robots, shared=settings.share_port, flag="--address")
    servers = [server]

    admin_address = None
    if settings.admin_address is not None:
        admin = _admin_server(settings, metrics, draining, watcher)
        shared = settings.share_port
        admin_address = bind(admin, settings.admin_address, for_admins, shared=shared, flag="--admin-address")
        servers.append(admin)

    monitor = None
    if settings.metrics_address is not None:
        monitor = Monitor(
            settings.metrics_address,
            metrics.registry,
            ready=lambda: watcher.repository.snapshot.ready and not draining.is_set(),
        )
    for each in servers:
        await each.start()
    _follow(watcher, settings.poll_seconds, services.names, health_servicer, metrics)
    return RunningServer(
        address,
        admin_address,
        None if monitor is None else monitor.address,
        watcher,
        tuple(servers),
        health_servicer,
        monitor,
        draining,
        control,
        workers,
        shadow,
    )


def _load(settings: Settings) -> Watcher:
    """Return the watcher of the repository after its first look."""
    watcher = Watcher(
        settings.repository, allow_uncalibrated=settings.allow_uncalibrated, trusted=_trusted(settings.trusted_keys)
    )
    watcher.poll(first=True)
    if (settings.repository / MANIFEST).exists():
        watcher.require_policies()  # bundles are immutable: one that is refused will not become another
    return watcher


def _admin_server(settings: Settings, metrics: Metrics, draining: asyncio.Event, watcher: Watcher) -> grpc.aio.Server:
    """Return the server of who decides what is served, without a port."""
    server, services = _grpc_server(settings, metrics, draining)
    add_PolicyAdminServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        AdminServicer(watcher), services
    )
    add_reflection(server, services.names, settings.max_streams)
    return server


def _follow(
    watcher: Watcher, poll_seconds: float, services: list[str], health_servicer: HealthServicer, metrics: Metrics
) -> None:
    """Look at the repository from now on, and have health and metrics say after each look what there is."""
    loop = asyncio.get_running_loop()

    def after_look(gone: list[tuple[str, int]]) -> None:
        for name in services:
            health_servicer.tell(name, serving=watcher.repository.snapshot.ready)
        for name, version in gone:
            metrics.forget(name, version)
        metrics.looked()

    after_look([])
    watcher.start(poll_seconds, lambda: loop.call_soon_threadsafe(after_look, watcher.gone()))


def _grpc_server(settings: Settings, metrics: Metrics, draining: asyncio.Event) -> tuple[grpc.aio.Server, Registrar]:
    """Return a server without a port, and what our services are added to."""
    server = aio_server(
        (
            ("grpc.so_reuseport", int(settings.share_port)),  # without leave, a second server on a port is an error
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # Of one connection, which holds what its client does not read.
            ("grpc.max_concurrent_streams", settings.max_concurrent_requests + settings.max_streams),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),  # of those that measure the bandwidth
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),  # clients may ask the same
        ),
        metrics,
        settings.max_concurrent_requests,
    )
    registrar = Registrar(
        server,
        metrics,
        draining,
        max_requests=settings.max_concurrent_requests,
        max_streams=settings.max_streams,
    )
    return server, registrar


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, which ends the process with status 0; return 1 where it could not start.

    Once it answers, one JSON line on stdout says where: {"event": "ready", "address": ..., "policies": [...]}.
    """
    configure_logging(settings.log_level)
    # One more series for each counter and histogram, of which Prometheus makes nothing.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # of prometheus_client 0.26.0
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    end_on_signal(clean=True)  # while bundles load, the event loop does not turn
    try:
        server = await start(settings)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    told = _stop_signal()
    gc.collect()
    gc.freeze()  # what is loaded stays: to look it through for garbage would hold up all robots for 20 ms
    ready = {
        "event": "ready",
        "address": server.address,
        "admin_address": server.admin_address,
        "metrics_address": server.metrics_address,
        "policies": [
            {"name": name, "versions": list(policy.loaded)}
            for name, policy in server.watcher.repository.snapshot.policies.items()
        ],
    }
    try:
        print(json.dumps(ready), flush=True)
    except OSError as error:  # a full disk, or nobody who reads: the robots are there all the same
        log(logger, logging.ERROR, "ready line not written to stdout", reason=error.strerror)
    if not server.watcher.repository.snapshot.ready:
        log(logger, logging.WARNING, "nothing to serve yet", repository=str(settings.repository))
    number = await told
    log(logger, logging.INFO, "stopping", signal=number.name, drain_seconds=settings.drain_seconds)
    await server.stop(settings.drain_seconds)
    log(logger, logging.INFO, "stopped")
    logging.shutdown()
    os._exit(0)  # Python would wait for threads that compute or load what nobody waits for any more


def _trusted(path: Path | None) -> TrustedKeys | None:
    try:
        return None if path is None else read_trusted_keys([path])
    except KeyFileError as error:
        raise StartupError(f"--trusted-keys: {error}") from error


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return what one port is opened with; None for plaintext. Credentials that are renewed serve one port only."""
    files = settings.certificate_files
    return None if files is None else files.credentials()


def _seal(settings: Settings) -> StateSeal:
    """Return what the states of sessions are sealed with."""
    path = settings.session_key_file
    if settings.share_port and path is None:
        log(logger, logging.WARNING, "sessions end with their process: its port is shared, but no --session-key-file")
    try:
        key = os.urandom(32) if path is None else path.read_bytes()
        return StateSeal(key, settings.session_idle_seconds)
    except OSError as error:
        raise StartupError(f"--session-key-file: cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise StartupError(f"--session-key-file: {path}: {error}.") from error


def _stop_signal() -> "asyncio.Future[signal.Signals]":
    """Return what the first SIGTERM or SIGINT resolves; the second ends the process at once."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[signal.Signals] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        end_on_signal(clean=False)  # and the loop's handlers stay, for they wake the thread that runs ours
        if not told.done():  # two at once are one
            told.set_result(number)

    for number in STOPPING:
        loop.add_signal_handler(number, on_signal, number)
    return told
