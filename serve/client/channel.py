"""Where the servers are: several addresses, which of them to ask next, and channels to them, with TLS or without."""

import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import grpc

from serve.client.status import call_details, call_error, retry_after_seconds
from serve.errors import InvalidRequestError

# A connection on which nothing came for the first time is asked for a sign of life, and left where none comes for the
# second, or what was sent is not acknowledged for so long (TCP_USER_TIMEOUT, which gRPC sets): a server that lost power
# says no farewell. Our servers let themselves be asked every 10 seconds.
_KEEPALIVE_MS = 15_000
_KEEPALIVE_TIMEOUT_MS = 5_000

_OPTIONS = (
    ("grpc.enable_retries", 0),  # an answer that comes late is worth less than knowing at once
    ("grpc.enable_http_proxy", 0),  # a control loop does not go through a web proxy that happens to be set
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # is also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, which a balancer may bring elsewhere
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),  # without it gRPC waits a minute for the answer
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no bound
    ("grpc.client_idle_timeout_ms", 300_000),  # what was left for renewed credentials does not connect for ever
)
_SHORTEST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 5.0
_REFUSED_SECONDS = 0.5  # a good part less than servers may lag behind each other (serve/client/conversation.py)
_PATH_BYTES = 107  # of a Unix socket on Linux, and gRPC's bound everywhere


@dataclass(frozen=True)
class Tls:
    """Who is believed to be the server, and how this client shows who it is: files in PEM."""

    certificate_authority: Path | str | None = None  # that signed the server's certificate; None: those of the system
    certificate: Path | str | None = None  # of this client, for servers that ask for one
    key: Path | str | None = None  # of that certificate
    server_name: str = ""  # in the server's certificate, where it is not the host of the address

    def read(self) -> "_Files":
        """Read the files.

        Raises:
            InvalidRequestError: one cannot be read, or there is a certificate without a key or the reverse.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequestError("tls.key", "and tls.certificate go together; give both or none")
        return _Files(
            root_certificates=_read("tls.certificate_authority", self.certificate_authority),
            private_key=_read("tls.key", self.key),
            certificate_chain=_read("tls.certificate", self.certificate),
        )

    def check(self) -> None:
        """Look into the files: gRPC would say of one that it cannot use only that no server answers.

        Raises:
            InvalidRequestError: one holds no certificate, or the key is not that of the certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.certificate_authority is not None:
            try:
                context.load_verify_locations(self.certificate_authority)
            except OSError as error:  # and ssl.SSLError, a kind of it
                raise InvalidRequestError(
                    "tls.certificate_authority", f"is {self.certificate_authority}, which holds no certificate in PEM"
                ) from error
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=lambda: b"")  # or it asks the terminal
            except OSError as error:
                raise InvalidRequestError(
                    "tls.certificate",
                    f"and tls.key, {self.certificate} and {self.key}, are not a certificate and its unencrypted key, "
                    f"both in PEM ({getattr(error, 'reason', None) or error})",
                ) from error


class _Files(NamedTuple):
    """What was in the files of a Tls, as gRPC takes it."""

    root_certificates: bytes | None
    private_key: bytes | None
    certificate_chain: bytes | None


def _read(name: str, path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError(name, f"cannot be read: {error}") from error


class Dialer:
    """Makes channels, with the files of TLS as they are by then. A new channel is a new connection."""

    def __init__(self, tls: Tls | None) -> None:
        """Read the files.

        Raises:
            InvalidRequestError: `tls` is none, or a file cannot be read or used.
        """
        if not isinstance(tls, Tls | None):
            raise InvalidRequestError("tls", f"is {tls!r}; give Tls(certificate_authority), or None: in the clear")
        self._tls = tls
        self._files = None if tls is None else tls.read()
        if tls is not None:
            tls.check()
        self._credentials = None if self._files is None else grpc.ssl_channel_credentials(*self._files)
        self._options: tuple[tuple[str, int | str], ...] = _OPTIONS
        if tls is not None and tls.server_name:
            self._options += (("grpc.ssl_target_name_override", tls.server_name),)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files again; return the credentials as before unless there are others now that can be used."""
        if self._tls is not None:
            with suppress(InvalidRequestError):
                files = self._tls.read()
                if files != self._files:
                    self._tls.check()
                    self._files, self._credentials = files, grpc.ssl_channel_credentials(*files)
        return self._credentials

    def channel(self, address: str) -> grpc.Channel:
        credentials = self.credentials()
        if credentials is None:
            return grpc.insecure_channel(address, options=self._options)
        return grpc.secure_channel(address, credentials, options=self._options)

    def aio_channel(self, address: str) -> grpc.aio.Channel:
        credentials = self.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=self._options)
        return grpc.aio.secure_channel(address, credentials, options=self._options)


def _possible(address: object) -> str:
    match address:
        case str() if address.startswith("unix:"):
            possible = 0 < len(os.fsencode(address.removeprefix("unix:").removeprefix("//"))) <= _PATH_BYTES
        case str():
            port = address.rpartition(":")[2]
            possible = bool(address) and not (port.isdecimal() and (len(port) > 5 or int(port) > 65535))
        case _:
            possible = False
    if not possible:
        raise InvalidRequestError(
            "address", f"is {address!r}; write HOST:PORT or unix:PATH, with a path of 1 to {_PATH_BYTES} bytes"
        )
    return cast("str", address)


@dataclass
class _Record:
    works: bool = False  # it answered when it was asked last
    backoff_seconds: float = _SHORTEST_BACKOFF_SECONDS  # after its next failure
    wait_until: float = 0.0  # on the clock


class Addresses:
    """Servers that are as good as each other: the one that worked last is asked first, those that failed are left alone
    for a while, longer each time. Safe to use from several threads.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Begin with the first.

        Args:
            addresses: HOST:PORT or unix:PATH, one or several.
            clock: seconds.
            draw: a number from 0 to 1, so that clients of one server do not come back all at once.

        Raises:
            InvalidRequestError: there is none, or one that no server can have: asked, it would hide those after it.
        """
        several = isinstance(addresses, Iterable) and not isinstance(addresses, str | bytes)
        self._addresses = list(dict.fromkeys(map(_possible, addresses if several else [addresses])))
        if not self._addresses:
            raise InvalidRequestError("address", "is empty; give at least one")
        self._clock = clock
        self._draw = draw
        self._records = {address: _Record() for address in self._addresses}
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return ", ".join(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)

    def in_order(self) -> list[str]:
        """All of them, the best to ask first; those that are left alone come last."""
        with self._lock:
            now = self._clock()
            return sorted(self._addresses, key=lambda address: max(now, self._records[address].wait_until))

    def wait_seconds(self) -> float:
        """How long to wait before any of them is worth asking; 0: one is."""
        with self._lock:
            return max(0.0, min(record.wait_until for record in self._records.values()) - self._clock())

    def works(self, address: str) -> bool:
        """Whether it answered when it was asked last."""
        return self._records[address].works

    def worked(self, address: str) -> None:
        """Ask this one first from now on."""
        with self._lock:
            self._records[address] = _Record(works=True)
            if self._addresses[0] != address:
                self._addresses.remove(address)
                self._addresses.insert(0, address)

    def failed(self, address: str, retry_after_seconds: float | None = None) -> None:
        """Leave this one alone for a while; at least as long as it says itself."""
        with self._lock:
            record = self._records[address]
            longest = record.backoff_seconds
            record.backoff_seconds = min(2 * longest, _LONGEST_BACKOFF_SECONDS)
            self._leave_alone(record, max(self._jittered(longest), retry_after_seconds or 0.0))

    def refused(self, address: str) -> None:
        """It answers, but not as asked: leave it alone for a moment, no longer each time, for it may yet."""
        with self._lock:
            self._leave_alone(self._records[address], self._jittered(_REFUSED_SECONDS))

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.5 + 0.5 * self._draw())

    def _leave_alone(self, record: _Record, seconds: float) -> None:
        record.works = False
        record.wait_until = self._clock() + seconds


@dataclass(frozen=True)
class Attempt:
    """One try of a call."""

    address: str
    timeout_seconds: float


class Attempts:
    """The tries of one call, over several addresses, that share its deadline.

    for attempt in attempts:
        try:
            response = ...
        except grpc.RpcError as error:
            attempts.failed(attempt, error)  # raises where the next address would not help
        else:
            attempts.worked(attempt)
            return response
    """

    def __init__(self, addresses: Addresses, timeout_seconds: float) -> None:
        self._addresses = addresses
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        self._left = addresses.in_order()

    def __iter__(self) -> Iterator[Attempt]:
        """Each address once. One that has not shown yet that it works leaves those after it their share of the time."""
        while self._left:
            address = self._left.pop(0)
            shares = 1 if self._addresses.works(address) else 1 + len(self._left)
            yield Attempt(address, self._remaining() / shares)

    def worked(self, attempt: Attempt) -> None:
        """Ask this address first from now on."""
        self._addresses.worked(attempt.address)

    def failed(self, attempt: Attempt, error: Any) -> None:
        """Go on with the next address, or raise.

        Raises:
            PolicyServiceError: no other server would answer otherwise, or none is left.
        """
        code, retry = error.code(), retry_after_seconds(call_details(error))
        elsewhere = code in _ELSEWHERE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry is not None)
        if elsewhere:
            self._addresses.failed(attempt.address, retry)
        if not (elsewhere and self._left and self._remaining() > 0):
            where = str(self._addresses) if elsewhere else attempt.address
            raise call_error(error, where, self._timeout_seconds) from error

    def _remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


# What another server may answer otherwise.
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
