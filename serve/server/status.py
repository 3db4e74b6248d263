"""An error of ours as a status: its code, and its details (google.rpc). In the client, `serve.client.status` does the
reverse."""

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from serve.errors import (
    DeadlineExceededError,
    FingerprintError,
    HorizonError,
    InvalidRequestError,
    NotFoundError,
    PlanError,
    ResourceExhaustedError,
    SessionStateError,
    SupersededError,
    UnavailableError,
)

_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    FingerprintError: grpc.StatusCode.FAILED_PRECONDITION,
    PlanError: grpc.StatusCode.FAILED_PRECONDITION,
    SessionStateError: grpc.StatusCode.FAILED_PRECONDITION,
    HorizonError: grpc.StatusCode.OUT_OF_RANGE,
    SupersededError: grpc.StatusCode.ABORTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status code of an error; what is not in `serve.errors` is our fault."""
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)


def status_of(error: Exception, request_id: str) -> status_pb2.Status:
    """Return an error as code, message and details. Of our own fault it says fixed words and the request id."""
    code = code_of(error)
    message = (
        f"The server could not compute an answer. Its log says more under request id {request_id}."
        if code is grpc.StatusCode.INTERNAL
        else str(error)
    )
    details: list[Message] = [error_details_pb2.RequestInfo(request_id=request_id)]
    if isinstance(error, InvalidRequestError | NotFoundError) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, UnavailableError | ResourceExhaustedError) and error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code.value[0], message=message, details=[_pack(detail) for detail in details])


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
