"""Request ids, request metrics, and who is let in.

grpc.aio awaits an interceptor at every call. Here the handlers are wrapped once, when a service is registered, which
does the same and costs a call nothing but its own work.
"""

import asyncio
import inspect
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from serve.errors import (
    RETRY_AFTER_SECONDS,
    DeadlineExceededError,
    InvalidRequestError,
    PolicyServiceError,
    ResourceExhaustedError,
    UnavailableError,
)
from serve.server.status import code_of, status_of
from serve.server.telemetry import Metrics, log

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"

RETRY_WHEN_FULL_SECONDS = 0.1  # by then what waits is answered
_PRINTABLE_ID = re.compile(r"[!-~]{1,128}")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # quoted: only grpc's stubs can be subscripted
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[[Any, Context], Awaitable[Any]]


class Registrar:
    """Stands in for the server when a service of ours is added to it, and wraps each of its handlers.

        add_PolicyServiceServicer_to_server(servicer, registrar)

    Handlers are coroutine functions, unary or streams in both directions; they raise what `serve.errors` has, and the
    caller gets its status. `request_id(context)` tells them the request's id.
    """

    def __init__(
        self, server: grpc.aio.Server, metrics: Metrics, draining: asyncio.Event, *, max_requests: int, max_streams: int
    ) -> None:
        """Wrap the handlers of one server.

        Args:
            server: takes the wrapped handlers.
            metrics: counts the calls.
            draining: once it is set, the server is stopping and new calls are refused.
            max_requests: unary calls at work or waiting at once; more are refused.
            max_streams: open streams; more are refused.
        """
        self._server = server
        self._metrics = metrics
        self._draining = draining
        self.names: list[str] = []  # of the services, in order
        self._requests = _Room("requests at once", max_requests)
        self._streams = _Room("streams", max_streams)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: generated code names every handler here once, and below once more."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Wrap the handlers of a service and hand them to the server."""
        self.names.append(service)
        wrapped = {method: self._wrap(method, handler) for method, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)  # does nothing before grpcio 1.84

    def _wrap(self, method: str, handler: Handler) -> Handler:
        behavior = handler.stream_stream or handler.unary_unary
        assert inspect.iscoroutinefunction(behavior), f"{method} is no coroutine function"
        assert handler.request_deserializer is not None
        assert handler.response_serializer is not None
        decode, encode = _decoder(handler.request_deserializer), handler.response_serializer
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, behavior), decode, encode)
        # Bytes in, bytes out: grpc would call a message that is none UNKNOWN, and quote the exception.
        return grpc.unary_unary_rpc_method_handler(self._unary(method, behavior, decode, encode))

    def _unary(
        self,
        method: str,
        behavior: Behavior,
        decode: Callable[[bytes], Message],
        encode: Callable[[Message], bytes],
    ) -> Behavior:
        room = self._requests

        async def answer(raw: bytes, context: Context) -> bytes:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            admitted = False
            name_request(context)
            room.taken += 1
            try:
                self._admit(room)
                check_deadline(context)
                admitted = True
                return encode(await behavior(decode(raw), context))
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED  # the caller has left, mostly because its deadline has passed
                raise
            except Exception as error:
                failure, code = error, code_of(error)
            finally:
                room.taken -= 1
                if admitted:
                    self._metrics.count_request(method, code.name, time.perf_counter() - started)
                else:  # a refusal takes no time, and among the answers it would make a full server look a fast one
                    self._metrics.count_untimed(method, code.name)
            return await _abort(context, failure, code, method)

        return answer

    def _stream(self, method: str, behavior: Behavior) -> Behavior:
        room = self._streams

        async def converse(requests: object, context: Context) -> Any:
            code = grpc.StatusCode.OK
            name_request(context)
            room.taken += 1
            try:
                self._admit(room)
                # Said apart: a handler that is interrupted in its first write could not end the stream with a status.
                await context.send_initial_metadata(())
                return await behavior(requests, context)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                failure, code = error, code_of(error)
            finally:
                room.taken -= 1
                self._metrics.count_untimed(method, code.name)
            return await _abort(context, failure, code, method)

        return converse

    def _admit(self, room: "_Room") -> None:
        if self._draining.is_set():
            raise UnavailableError("The server is stopping. Ask again, or ask another one.", RETRY_AFTER_SECONDS)
        if room.taken > room.size:
            raise ResourceExhaustedError(
                f"The server takes {room.size} {room.name}, and has them. Ask again, or ask another one.",
                RETRY_WHEN_FULL_SECONDS,
            )


class _Room:
    """How many calls of a kind there are, and may be."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.taken = 0


def choose_request_id(context: Context) -> str:
    """Return the id that every end of a call sends: the caller's where it gave a printable one, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _PRINTABLE_ID.fullmatch(value):
            return value
    return os.urandom(8).hex()


def name_request(context: Context) -> None:
    """Have a call come back with its id, which `request_id` tells from now on."""
    context.set_trailing_metadata(((REQUEST_ID, choose_request_id(context)),))


def request_id(context: Context) -> str:
    """Return the id of the request that a handler answers."""
    return str(next(value for key, value in context.trailing_metadata() if key == REQUEST_ID))


def check_deadline(context: Context) -> None:
    """Refuse a request whose caller no longer waits.

    Raises:
        DeadlineExceededError: its deadline has passed.
    """
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceededError("The deadline had passed when the request's turn came; nothing was computed.")


def trailing(request_id: str, status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata of a refused call."""
    return (REQUEST_ID, request_id), ("grpc-status-details-bin", status.SerializeToString())


async def refuse(context: Context, error: PolicyServiceError) -> NoReturn:
    """End a call that has a name with the status of an error, where no registrar has wrapped the handler."""
    named = request_id(context)
    status = status_of(error, named)
    await context.abort(code_of(error), status.message, trailing(named, status))
    raise AssertionError("grpc.aio raises when it has aborted a call")


def _decoder(parse: Callable[[bytes], Message]) -> Callable[[bytes], Message]:
    def decode(raw: bytes) -> Message:
        try:
            return parse(raw)
        except DecodeError as error:
            raise InvalidRequestError("request", "is not the message that this call takes") from error

    return decode


async def _abort(context: Context, error: Exception, code: grpc.StatusCode, method: str) -> NoReturn:
    named = request_id(context)
    status = status_of(error, named)
    if code is grpc.StatusCode.INTERNAL:
        log(logger, logging.ERROR, "request failed", exception=error, method=method, request_id=named)
    else:
        log(
            logger,
            logging.DEBUG,
            "request refused",
            method=method,
            code=code.name,
            reason=status.message,
            request_id=named,
        )
    sending = asyncio.ensure_future(context.abort(code, status.message, trailing(named, status)))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:  # of the handler, and late: the status is sent all the same
        await sending
    raise AssertionError("grpc.aio raises when it has aborted a call")
