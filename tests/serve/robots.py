"""Robots that drive control streams over a real channel, message by message."""

import queue
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceStub
from tests.serve.conftest import PATIENCE_SECONDS

CALM = (0.2, 0.2, 0.0)  # the policy by hand: u = (0.1, -0.05)


class Robot:
    """One stream, opened."""

    def __init__(self, address: str, opening: pb.OpenSession | pb.ControlRequest) -> None:
        # A fixed window: a robot that does not read holds its server back after 64 KiB, not after some MiB.
        self._channel = grpc.insecure_channel(address, options=(("grpc.http2.bdp_probe", 0),))
        self._requests: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
        if isinstance(opening, pb.OpenSession):
            opening = pb.ControlRequest(open=opening)
        self._requests.put(opening)
        stub = ControlServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.call = stub.Control(iter(self._requests.get, None), timeout=PATIENCE_SECONDS, wait_for_ready=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._channel.close()

    def end(self) -> None:
        """Send no more."""
        self._requests.put(None)

    def send(self, step: int, observation: Iterable[float] = CALM, cost_total: Iterable[float] = (0.0, 0.0)) -> None:
        self._requests.put(
            pb.ControlRequest(step=pb.ControlStep(step=step, observation=observation, cost_total=cost_total))
        )

    def send_request(self, request: pb.ControlRequest) -> None:
        self._requests.put(request)

    def receive(self) -> pb.ControlResponse:
        """Return the next response, whatever it is."""
        response: pb.ControlResponse = next(self.call)
        return response

    def opened(self) -> pb.SessionOpened:
        response = self.receive()
        assert response.WhichOneof("response") == "opened", response
        return response.opened

    def result(self) -> pb.ControlResult:
        response = self.receive()
        assert response.WhichOneof("response") == "result", response
        return response.result

    def error(self) -> pb.StepError:
        response = self.receive()
        assert response.WhichOneof("response") == "error", response
        return response.error

    def notice(self) -> pb.Notice:
        response = self.receive()
        assert response.WhichOneof("response") == "notice", response
        return response.notice

    def step(
        self, step: int, observation: Iterable[float] = CALM, cost_total: Iterable[float] = (0.0, 0.0)
    ) -> pb.ControlResult:
        """Send a step and return its result."""
        self.send(step, observation, cost_total)
        return self.result()

    def status(self) -> status_pb2.Status:
        """Return the status with which the stream ends, which comes next and is an error."""
        with pytest.raises(grpc.RpcError) as caught:
            self.receive()
        assert isinstance(caught.value, grpc.Call)
        trailing = {key: value for key, value in caught.value.trailing_metadata() or () if isinstance(value, bytes)}
        return status_pb2.Status.FromString(trailing["grpc-status-details-bin"])


def bad_field(status: status_pb2.Status) -> str:
    """Return the field that a status names."""
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details), status
    (violation,) = bad_request.field_violations
    assert violation.description
    return str(violation.field)


def retry_seconds(status: status_pb2.Status) -> float:
    """Return when a status says it is worth asking again."""
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details), status
    return float(retry.retry_delay.ToTimedelta().total_seconds())
