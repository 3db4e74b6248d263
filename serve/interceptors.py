"""Errors to status codes and details (the only place on the server), request ids and request metrics."""

import logging
import os
import re
import time
from collections.abc import Callable
from threading import Event
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from serve.errors import (
    FingerprintError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from serve.telemetry import Metrics, log

logger = logging.getLogger(__name__)

SERVICE_PREFIX = "/cvpo.v1."
REQUEST_ID = "x-request-id"

_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    FingerprintError: grpc.StatusCode.FAILED_PRECONDITION,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
_RETRY_AFTER_SECONDS = 1.0  # by then a balancer or a restarted process answers
_PRINTABLE_ID = re.compile(r"[!-~]{1,128}")

Behavior = Callable[[Any, grpc.ServicerContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # quoted: only grpc's stubs can be subscripted


class RequestInterceptor(grpc.ServerInterceptor):
    """Stands around every unary call of our services; those of others (health, reflection) pass by."""

    def __init__(self, metrics: Metrics, draining: Event) -> None:
        self._metrics = metrics
        self._draining = draining
        self._handlers: dict[str, Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method: str = handler_call_details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        handler = continuation(handler_call_details)
        if handler is None or not method.startswith(SERVICE_PREFIX) or handler.unary_unary is None:
            return handler
        wrapped = grpc.unary_unary_rpc_method_handler(
            self._around(method.rpartition("/")[2], handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        self._handlers[method] = wrapped
        return wrapped

    def _around(self, method: str, behavior: Behavior) -> Behavior:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            started = time.perf_counter()
            request_id = _request_id(context)
            code = grpc.StatusCode.OK
            try:
                if self._draining.is_set():
                    raise UnavailableError(
                        "The server is stopping. Ask again, or ask another one.", _RETRY_AFTER_SECONDS
                    )
                response = behavior(request, context)
                context.set_trailing_metadata(((REQUEST_ID, request_id),))
                return response
            except Exception as error:
                code = _CODES.get(type(error), grpc.StatusCode.INTERNAL)
                _abort(context, error, code, method, request_id)
            finally:
                self._metrics.count_request(method, code.name, time.perf_counter() - started)

        return answer


def _request_id(context: grpc.ServicerContext) -> str:
    """Return the caller's request id where it gave a printable one, else a new one."""
    for key, value in context.invocation_metadata():
        if key == REQUEST_ID and isinstance(value, str) and _PRINTABLE_ID.fullmatch(value):
            return value
    return os.urandom(8).hex()


def _abort(
    context: grpc.ServicerContext, error: Exception, code: grpc.StatusCode, method: str, request_id: str
) -> NoReturn:
    if code is grpc.StatusCode.INTERNAL:  # our fault: fixed words, and the rest goes into the log
        message = f"The server could not compute an answer. Its log says more under request id {request_id}."
        log(logger, logging.ERROR, "request failed", exception=error, method=method, request_id=request_id)
    else:
        message = str(error)
        log(
            logger,
            logging.DEBUG,
            "request refused",
            method=method,
            code=code.name,
            reason=message,
            request_id=request_id,
        )
    details: list[Message] = [error_details_pb2.RequestInfo(request_id=request_id)]
    if isinstance(error, InvalidRequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, UnavailableError) and error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=message, details=[_pack(detail) for detail in details])
    context.set_trailing_metadata(((REQUEST_ID, request_id), ("grpc-status-details-bin", status.SerializeToString())))
    context.abort(code, message)


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
