"""A plaintext HTTP port for those who watch the server and cannot present a certificate: /metrics, /livez, /readyz."""

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from serve.errors import StartupError
from serve.server.settings import split_address
from serve.server.telemetry import log

logger = logging.getLogger(__name__)

_LOOP_PATIENCE_SECONDS = 5.0  # a loop that is only busy comes round in milliseconds
_SOCKET_TIMEOUT_SECONDS = 10.0  # who asks and then says nothing is let go
# Open at once. One more, and the oldest is let go: a probe or a scrape takes milliseconds, and always finds a place.
MOST_CONNECTIONS = 16
_PAUSE_SECONDS = 0.1  # after a connection that could not be taken
_WILDCARDS = "0.0.0.0", "::"  # every address of the machine, of both families where it has both: as gRPC takes them


class Monitor:
    """The port, answered by threads of its own: a server that hangs still says so."""

    def __init__(self, address: str, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        """Open it and answer; to be called on the event loop that answers the requests.

        Args:
            address: HOST:PORT.
            registry: what /metrics tells.
            ready: whether the server may be asked for actions, which /readyz tells.

        Raises:
            StartupError: the address cannot be had.
        """
        loop = asyncio.get_running_loop()

        class Handler(BaseHTTPRequestHandler):
            timeout = _SOCKET_TIMEOUT_SECONDS

            def do_GET(self) -> None:
                match self.path.partition("?")[0]:
                    case "/metrics":
                        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                        self._answer(HTTPStatus.OK, encode(registry), content_type)
                    case "/livez":
                        self._say(_turns(loop), "the event loop turns", "the event loop does not turn")
                    case "/readyz":
                        self._say(ready(), "ready", "stopping, or without a policy")
                    case _:
                        self._answer(HTTPStatus.NOT_FOUND, b"/metrics, /livez, /readyz\n", "text/plain")

            def _say(self, true: bool, yes: str, no: str) -> None:
                status = HTTPStatus.OK if true else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, f"{yes if true else no}\n".encode(), "text/plain")

            def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Not one line per probe."""

        host, port = split_address(address)
        try:
            self._server = _Server(host, port, Handler)
        except OSError as error:
            raise StartupError(
                f"Cannot listen on {address} for metrics: {error.strerror}. Choose another --metrics-address."
            ) from error
        self.address = f"{address.rpartition(':')[0]}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True).start()

    def close(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[Any, None] = {}  # connections, the oldest first
        self._changing = threading.Lock()
        if host in _WILDCARDS:
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Probes ask 127.0.0.1, which a name such as localhost may come second with.
        self.address_family, _, _, _, target = min(found, key=lambda one: one[0] is not socket.AF_INET)
        super().__init__((str(target[0]), port), handler)

    def server_bind(self) -> None:
        """Take the address; `::` is of both families, whatever the machine's default."""
        if self.address_family is socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection."""
        try:
            return super().get_request()
        except OSError:  # too many open files, mostly: it stays in the queue, and would be tried again without a pause
            time.sleep(_PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: object) -> None:
        """Answer in a thread of its own."""
        with self._changing:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > MOST_CONNECTIONS else None
            self._open.pop(oldest, None)
        if oldest is not None:
            with contextlib.suppress(OSError):  # its thread has closed it by itself
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, answered or not."""
        with self._changing:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what went wrong with a request, unless it is that the client has left."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            log(logger, logging.ERROR, "metrics request failed", exception=error)


def _turns(loop: asyncio.AbstractEventLoop) -> bool:
    turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
    try:
        turn.result(_LOOP_PATIENCE_SECONDS)
    except FutureTimeoutError:
        turn.cancel()
        return False
    return True
