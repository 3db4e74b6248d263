"""grpc.aio's server, mended in two places where it takes up calls.

A path that is not UTF-8: the server of grpcio 1.84 and 1.85 decodes the path of each call that is of no registered
method in the very loop that takes up calls. Where that fails the loop ends, and the server with everything on it: one
stray packet would stop all robots. Here every method is registered, so that whatever else arrives is unknown, and is
refused unread.

A queue that nobody sees: the server takes up one call of a method at a time, between two computations; the others wait
inside of gRPC, a thousand of them, where nothing tells that there are any. Here they are taken up ahead, so that those
over a bound are refused at once.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # private: test_acceptor.py watches it

from serve.errors import RETRY_AFTER_SECONDS, PolicyServiceError, ResourceExhaustedError, UnavailableError
from serve.server.interceptors import RETRY_WHEN_FULL_SECONDS, choose_request_id, trailing
from serve.server.status import code_of, status_of
from serve.server.telemetry import Metrics, log

logger = logging.getLogger(__name__)

Options = Sequence[tuple[str, int]]

_AHEAD = 16  # calls of a method that gRPC hands over without being asked again


def aio_server(options: Options, metrics: Metrics, max_waiting: int) -> grpc.aio.Server:
    """Return `grpc.aio.server(options=options)`, for services whose generated code registers its methods.

    Args:
        options: of the channel.
        metrics: counts the calls that are refused here.
        max_waiting: calls of a method that wait to be taken up; more are refused.
    """
    server = grpc.aio.server(options=options)
    if not hasattr(cygrpc.AioServer, "_make_request_call_future"):  # before 1.84: nothing to mend it with
        return server
    acceptor = _Acceptor(asyncio.get_running_loop(), None, (), (), tuple(options), None)
    acceptor.metrics = metrics
    acceptor.max_waiting = max_waiting
    acceptor.lines = {}
    mended: Any = server
    mended._server = acceptor
    return server


class _Acceptor(cygrpc.AioServer):  # type: ignore[misc]  # untyped
    metrics: Metrics
    max_waiting: int
    lines: dict[bytes, "_Line"]

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[Any]":
        """Return what the next call resolves: of a registered method, or, for None, of no method."""
        if method is None:
            return asyncio.ensure_future(self._refuse_unknown())
        if method not in self.lines:
            self.lines[method] = _Line(self, method)
        return self.lines[method].next()

    async def _refuse_unknown(self) -> None:
        """Refuse calls until the server stops, which raises here what the server expects."""
        refusing = _Refusing()
        while True:
            refusing.add(await self._request_call(), grpc.StatusCode.UNIMPLEMENTED, "This server has no such method.")


class _Line:
    """The calls of one method that wait to be taken up."""

    def __init__(self, acceptor: _Acceptor, method: bytes) -> None:
        self._acceptor = acceptor
        self._method = method
        self._waiting: deque[Any] = deque()
        self._taker: asyncio.Future[Any] | None = None
        self._failure: Exception | None = None
        self._refusing = _Refusing()
        self._fetching = [asyncio.ensure_future(self._fetch()) for _ in range(_AHEAD)]

    def next(self) -> "asyncio.Future[Any]":
        """Return what the next call resolves, or the stop of the server fails."""
        self._taker = asyncio.get_running_loop().create_future()
        if self._waiting:
            self._taker.set_result(self._waiting.popleft())
        elif self._failure is not None:
            self._taker.set_exception(self._failure)
        return self._taker

    async def _fetch(self) -> None:
        try:
            while True:
                self._take(await self._acceptor._request_registered_call(self._method))
        except Exception as error:  # the server stops
            self._failure = error
            while self._waiting:
                self._refuse(self._waiting.popleft(), UnavailableError("The server has stopped.", RETRY_AFTER_SECONDS))
            if self._taker is not None and not self._taker.done():
                self._taker.set_exception(error)

    def _take(self, call: object) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(call)
        elif len(self._waiting) < self._acceptor.max_waiting:
            self._waiting.append(call)
        else:
            full = (
                f"The server lets {self._acceptor.max_waiting} requests wait, and has them. Ask again, or another one."
            )
            self._refuse(call, ResourceExhaustedError(full, RETRY_WHEN_FULL_SECONDS))

    def _refuse(self, call: object, error: PolicyServiceError) -> None:
        named = choose_request_id(_context(call))
        status = status_of(error, named)
        code = code_of(error)
        method = self._method.decode().rpartition("/")[2]
        self._acceptor.metrics.count_untimed(method, code.name)
        reason = status.message
        log(logger, logging.DEBUG, "request refused", method=method, code=code.name, reason=reason, request_id=named)
        self._refusing.add(call, code, status.message, trailing(named, status))


class _Refusing:
    """Refusals that are on their way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()  # or one might be collected before it is done

    def add(
        self, call: object, code: grpc.StatusCode, message: str, metadata: tuple[tuple[str, str | bytes], ...] = ()
    ) -> None:
        """End a call with a status."""
        task = asyncio.ensure_future(_refuse(call, code, message, metadata))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _refuse(
    call: object, code: grpc.StatusCode, message: str, metadata: tuple[tuple[str, str | bytes], ...]
) -> None:
    with contextlib.suppress(cygrpc.AbortError, cygrpc.ExecuteBatchError):
        await _context(call).abort(code, message, metadata)


def _context(call: object) -> Any:
    """Return what a handler of the call would be given."""
    return cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
