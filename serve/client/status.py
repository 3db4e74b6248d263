"""A status of the service as an error of ours. On the server, `serve.server.status` does the reverse."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from serve.errors import (
    DeadlineExceededError,
    FingerprintError,
    HorizonError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PolicyServiceError,
    ResourceExhaustedError,
    SupersededError,
    UnavailableError,
)

M = TypeVar("M", bound=Message)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def call_error(error: Any, where: str, timeout_seconds: float) -> PolicyServiceError:
    """Return the error that the status of a call stands for.

    Args:
        error: the grpc.RpcError.
        where: address, or addresses, that were asked.
        timeout_seconds: how long the call might take.
    """
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError(
            f"No answer from {where} within {timeout_seconds:g} s; allow more time with timeout_seconds, or look at "
            "the server's load."
        )
    return stream_error(error, where)


def stream_error(error: Any, where: str) -> PolicyServiceError:
    """Return the error that the status of a stream, which has no deadline of its own, stands for."""
    code, message, details = error.code(), str(error.details()), call_details(error)
    # A server that stops says CANCELLED of calls that it has not taken up yet (grpc/grpc issue 41785).
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and retry_after_seconds(details) is None:
        return UnavailableError(
            f"No server answers at {where}; start one with `cvpo serve BUNDLES`, or check the address, and that both "
            f"sides use TLS or neither, with a certificate of the client where the server asks for one ({message})."
        )
    return _error(code, message, details, where)


def step_error(status: status_pb2.Status, where: str) -> PolicyServiceError:
    """Return the error that the status of a step stands for."""
    return _error(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status.details, where)


def call_details(error: Any) -> Sequence[AnyMessage]:
    """Return the details (google.rpc) of a grpc.RpcError; none where there are none, or none that can be read."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                details: Sequence[AnyMessage] = status_pb2.Status.FromString(value).details
            except DecodeError:
                return ()
            return details
    return ()


def retry_after_seconds(details: Iterable[AnyMessage]) -> float | None:
    """When the server says it is worth asking again; None where it does not say."""
    retry = _detail(details, error_details_pb2.RetryInfo())
    return None if retry is None else retry.retry_delay.ToTimedelta().total_seconds()


def _error(code: grpc.StatusCode, message: str, details: Sequence[AnyMessage], where: str) -> PolicyServiceError:
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            field, description = _violation(details) or ("request", message)
            return InvalidRequestError(field, description)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return UnavailableError(f"{where}: {message}", retry_after_seconds(details))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError(f"{where}: {message}")
        case grpc.StatusCode.NOT_FOUND:
            field, _ = _violation(details) or ("", message)
            return NotFoundError(f"{where}: {message}", field)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return FingerprintError(f"{where}: {message}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ResourceExhaustedError(
                f"{where} takes no message of this size, or has too many calls at once ({message}).",
                retry_after_seconds(details),
            )
        case grpc.StatusCode.OUT_OF_RANGE:
            return HorizonError(f"{where}: {message}")
        case grpc.StatusCode.ABORTED:
            return SupersededError(f"{where}: {message}")
        case grpc.StatusCode.INTERNAL:
            return InternalError(f"{where}: {message}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return PolicyServiceError(f"The server at {where} is no policy service of this version ({message}).")
        case _:
            return PolicyServiceError(f"{where} answered {code.name}: {message}")


def _violation(details: Iterable[AnyMessage]) -> tuple[str, str] | None:
    """Return the field that is wrong, and what is wrong with it; None where none is named."""
    bad_request = _detail(details, error_details_pb2.BadRequest())
    if bad_request is None or not bad_request.field_violations:
        return None
    violation = bad_request.field_violations[0]
    return violation.field, violation.description


def _detail(details: Iterable[AnyMessage], wanted: M) -> M | None:
    """Fill `wanted` from the detail of its type and return it; None where there is none."""
    return wanted if any(detail.Unpack(wanted) for detail in details) else None
