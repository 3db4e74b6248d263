"""A server that holds real sessions and misbehaves on command, where a real one could not be made to."""

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from serve.codec import Limits
from serve.control_codec import (
    decode_opening,
    decode_step,
    encode_notice,
    encode_opened,
    encode_result,
    encode_step_error,
    opening_digest,
)
from serve.errors import PolicyServiceError
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server
from serve.gen.cvpo.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server
from serve.server.service import PolicyServicer
from serve.server.session import Session, open_session, resume_session
from serve.server.state import StateSeal
from serve.server.status import code_of, status_of
from serve.server.telemetry import Metrics
from serve.server.watch import load_repository
from tests.serve.conftest import PATIENCE_SECONDS

Answers = Iterator[pb.ControlResponse]
Behavior = Callable[[Session, pb.ControlStep, grpc.ServicerContext], Answers]

KEY = b"a key that all of them share"


def answer(session: Session, message: pb.ControlStep, context: grpc.ServicerContext) -> Answers:
    """Answer a step as a server does."""
    step = decode_step(message)
    try:
        yield encode_result(session.step(step))
    except PolicyServiceError as error:
        yield encode_step_error(step.number, status_of(error, "request"), session.next_step, session.state())


class Stall:
    """Answers a step when it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.release = threading.Event()

    def __call__(self, session: Session, message: pb.ControlStep, context: grpc.ServicerContext) -> Answers:
        self.reached.set()
        self.release.wait(PATIENCE_SECONDS)
        yield from answer(session, message, context)


class FaultyServer(ControlServiceServicer):
    """Listens at `address`, also after it was stopped and started again."""

    def __init__(self, repository: Path, key: bytes = KEY, lifetime_seconds: float = 600.0) -> None:
        self.policies = load_repository(repository, allow_uncalibrated=True)
        self.key = key
        self._lifetime_seconds = lifetime_seconds  # of states
        self.behave: list[Behavior] = []  # one per step to come; then `answer`
        self.refuse: grpc.StatusCode | None = None  # every opening, with this status
        self.opened = 0  # streams
        self.ended = threading.Semaphore(0)  # released when a stream has ended
        self.notices: threading.Event = threading.Event()  # set: tell the next step that the server is stopping
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),))
        add_ControlServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        add_PolicyServiceServicer_to_server(  # type: ignore[no-untyped-call]
            PolicyServicer(self.policies, Limits(), Metrics()), self._server
        )
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        """End it at once, with all its streams."""
        self._server.stop(None).wait()

    def serve(self, **changes: Any) -> None:
        """Change what is served of policy goal."""
        snapshot = self.policies.snapshot
        goal = dataclasses.replace(snapshot.policies["goal"], **changes)
        self.policies.snapshot = dataclasses.replace(snapshot, policies={**snapshot.policies, "goal": goal})

    def Control(self, requests: Iterator[pb.ControlRequest], context: grpc.ServicerContext) -> Answers:  # noqa: N802
        opening = next(requests).open
        if self.refuse is not None:
            if self.refuse is grpc.StatusCode.RESOURCE_EXHAUSTED:
                status = Status(code=self.refuse.value[0])
                status.details.add().Pack(RetryInfo(retry_delay=Duration(nanos=10_000_000)))
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(self.refuse, "no more streams")
        self.opened += 1
        try:
            yield from self._session(opening, requests, context)
        finally:
            self.ended.release()

    def _session(
        self, opening: pb.OpenSession, requests: Iterator[pb.ControlRequest], context: grpc.ServicerContext
    ) -> Answers:
        decoded, digest = decode_opening(opening, Limits()), opening_digest(opening)
        seal = StateSeal(self.key, self._lifetime_seconds)
        try:
            session = (
                resume_session(decoded, digest, opening.state, self.policies, seal)
                if opening.state
                else open_session(decoded, digest, self.policies, seal)
            )
        except PolicyServiceError as error:
            status = status_of(error, "request")
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(code_of(error), str(error))
        yield encode_opened(session.opened())
        for request in requests:
            if self.notices.is_set():
                yield encode_notice(pb.NOTICE_KIND_DRAINING, "going")
            behave = self.behave.pop(0) if self.behave else answer
            yield from behave(session, request.step, context)
