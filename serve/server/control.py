"""ControlService: a stream is a session. Reads, queues, times and writes; what a step is answered is the session's.

When steps queue, the newest is answered; the older ones are told so, in order, and count.
"""

import asyncio
import logging
import math
import time

import grpc

from serve.codec import Limits
from serve.control_codec import (
    decode_opening,
    decode_step,
    encode_notice,
    encode_opened,
    encode_result,
    encode_step_error,
    opening_digest,
    state_room,
)
from serve.control_values import StepAnswer
from serve.errors import (
    RETRY_AFTER_SECONDS,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    SessionStateError,
    SupersededError,
    UnavailableError,
)
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceServicer
from serve.server.decision import Policies
from serve.server.inbox import Arrival, Inbox
from serve.server.interceptors import Context, request_id
from serve.server.session import Begun, Session, open_session, resume_session
from serve.server.session_metrics import SessionMetrics, SessionRecord
from serve.server.shadow import Shadow
from serve.server.sharing import SharedRuns
from serve.server.state import StateSeal
from serve.server.status import code_of, status_of
from serve.server.telemetry import Metrics, log
from serve.server.warming import Expectation, Warming
from serve.server.workers import INLINE_ROWS, Workers
from serve.values import ActLists

logger = logging.getLogger(__name__)

# Before the end of the time to drain, so that a stream ends with a status of its own and not with gRPC's CANCELLED.
_LAST_WORD_SECONDS = 0.2

_TOO_LATE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED  # of a step that would come too late


class ControlServicer(ControlServiceServicer):
    """Holds the streams of a server, on its event loop."""

    def __init__(
        self,
        policies: Policies,
        limits: Limits,
        seal: StateSeal,
        workers: Workers,
        shared_runs: SharedRuns,
        metrics: Metrics,
        shadow: Shadow | None = None,
    ) -> None:
        """Begin without a stream.

        Args:
            policies: where the policies are.
            limits: how much one opening may ask for.
            seal: of the sessions' states; its lifetime is also how long a stream may be idle.
            workers: compute steps with many candidates.
            shared_runs: answer steps that come together.
            metrics: of the server.
            shadow: is given what the policy itself answers.
        """
        self._shadow = shadow
        self._policies = policies
        self._limits = limits
        self._seal = seal
        self._workers = workers
        self._shared_runs = shared_runs
        self._metrics = metrics
        self._session_metrics = SessionMetrics(metrics.registry)
        self._warming = Warming(metrics.registry)
        self._inboxes: set[Inbox] = set()

    async def Control(self, requests: object, context: Context) -> None:  # noqa: N802
        taker = asyncio.current_task()
        assert taker is not None
        inbox = Inbox(context, taker, self._seal.lifetime_seconds, self._limits.max_message_bytes)
        self._inboxes.add(inbox)
        try:
            await self._converse(inbox, context)
        except asyncio.CancelledError:
            if inbox.failure is None:
                raise
            raise inbox.failure from None
        finally:
            inbox.close()
            self._inboxes.discard(inbox)

    def drain(self, seconds: float) -> None:
        """Tell every stream that the server is stopping; those still open shortly before the end are ended."""
        for inbox in self._inboxes:
            inbox.tell(encode_notice(pb.NOTICE_KIND_DRAINING, "The server is stopping: go on at another one."))
        asyncio.get_running_loop().call_later(max(0.0, seconds - _LAST_WORD_SECONDS), self._end)

    def _end(self) -> None:
        for inbox in self._inboxes:
            inbox.fail(UnavailableError("The server has stopped. Go on at another one.", RETRY_AFTER_SECONDS))

    async def _converse(self, inbox: Inbox, context: Context) -> None:
        arrivals = await inbox.take()
        if not arrivals and inbox.notices:  # it is told to go before it has begun
            raise UnavailableError("The server is stopping. Ask again, or ask another one.", RETRY_AFTER_SECONDS)
        if not arrivals:
            return
        _, first = arrivals.pop(0)
        if first.WhichOneof("request") != "open":
            raise InvalidRequestError("open", "is missing; the first message of a stream opens the session")
        session = self._open(first.open, context)
        why = "cancelled"
        record = SessionRecord(self._session_metrics, session, first.open.fallback.WhichOneof("action") or "flagged")
        self._session_metrics.open.inc()
        expectation = Expectation(self._warming)
        try:
            await context.write(encode_opened(session.opened()))
            conversation = _Conversation(
                session, record, context, self._workers, self._shared_runs, self._metrics, expectation, self._shadow
            )
            await conversation.hold(arrivals, inbox)
            why = "ended by the robot"
        except Exception as error:
            why = code_of(error).name
            raise
        finally:
            expectation.end()
            self._session_metrics.open.dec()
            log(
                logger,
                logging.INFO,
                "session ended",
                session_id=session.session_id,
                request_id=request_id(context),
                why=why if inbox.failure is None else code_of(inbox.failure).name,
                steps=record.steps,
                fallback_steps=record.fallback_steps,
                cost_spent=session.cost_total,
            )

    def _open(self, message: pb.OpenSession, context: Context) -> Session:
        """Open a session, or go on with one."""
        opening, digest, state = decode_opening(message, self._limits), opening_digest(message), message.state
        strict = self._limits.strict_observations
        try:
            if state:
                session = resume_session(opening, digest, state, self._policies, self._seal, strict_observations=strict)
            else:
                room = state_room(message, self._limits)
                session = open_session(
                    opening, digest, self._policies, self._seal, strict_observations=strict, state_bytes=room
                )
        except SessionStateError as error:
            self._session_metrics.refused_states.inc()
            log(logger, logging.WARNING, "session state refused", request_id=request_id(context), reason=str(error))
            raise
        self._session_metrics.begun.labels(session.policy.served.name, str(bool(state)).lower()).inc()
        log(
            logger,
            logging.INFO,
            "session opened",
            session_id=session.session_id,
            request_id=request_id(context),
            policy=session.policy.served.name,
            version=session.policy.served.version,
            goes_on=bool(state),
            next_step=session.next_step,
        )
        return session


class _Conversation:
    """A session on its stream."""

    def __init__(
        self,
        session: Session,
        record: SessionRecord,
        context: Context,
        workers: Workers,
        shared_runs: SharedRuns,
        metrics: Metrics,
        expectation: Expectation,
        shadow: Shadow | None,
    ) -> None:
        self._shadow = shadow
        self._expectation = expectation
        self._session = session
        self._record = record
        self._context = context
        self._workers = workers
        self._shared_runs = shared_runs
        self._metrics = metrics
        self._version = session.policy.served.version  # that the robot knows of
        self._failed: set[str] = set()  # who gave nothing when asked last, policy or backup, and the log has it

    async def hold(self, arrivals: list[Arrival], inbox: Inbox) -> None:
        """Answer what comes until the robot ends the stream."""
        while True:
            newest = self._newest(arrivals)
            for index, arrival in enumerate(arrivals):
                if index < newest:
                    await self._context.write(self._supersede(_step(arrival[1])))
                else:
                    await self._answer(*arrival)
            if arrivals and not inbox:
                self._expectation.begin(self._session.policy, arrivals[-1][0])
            arrivals = await inbox.take()
            if arrivals:
                self._expectation.end()
            while inbox.notices:
                await self._context.write(inbox.notices.popleft())
            if inbox.ended and not arrivals:
                return

    def _newest(self, arrivals: list[Arrival]) -> int:
        """The place of the newest step that can be answered; those behind it are errors, and take nobody's place."""
        if len(arrivals) < 2:
            return 0
        return self._session.newest([decode_step(request.step) for _, request in arrivals])

    async def _answer(self, arrived: float, request: pb.ControlRequest) -> None:
        message = _step(request)
        session, step = self._session, decode_step(message)

        def compute() -> StepAnswer:  # which itself refuses a step that has grown too old
            return session.step(step, time.perf_counter() - arrived)

        try:
            if session.rows > INLINE_ROWS:
                result = await self._workers.run(compute)
            else:
                begun = session.begin(step, time.perf_counter() - arrived)
                result = session.finish(begun, await self._ask(begun))
        except Exception as error:
            await self._context.write(self._refuse(step.number, error))
            return
        self._log_failure("policy", "policy failed", session.failure, step.number)
        self._log_failure("backup", "backup failed", session.backup_failure, step.number)
        if result.policy.version != self._version:
            self._version = result.policy.version
            said = f"Version {self._version} answers from this step on."
            await self._context.write(encode_notice(pb.NOTICE_KIND_VERSION_CHANGED, said))
        answer = encode_result(result, message.sent_at if message.HasField("sent_at") else None)
        seconds = time.perf_counter() - arrived
        try:
            await self._context.write(answer)
        finally:  # the robot does not wait for what is counted
            self._count(result, seconds)

    async def _ask(self, begun: Begun) -> ActLists | InternalError | DeadlineExceededError:
        try:
            return await self._shared_runs.answer(begun.asked, begun.until)
        except (InternalError, DeadlineExceededError) as error:
            return error

    def _count(self, result: StepAnswer, seconds: float) -> None:
        """Count an answer that took so long in the server."""
        session = self._session
        self._record.answered(result)
        self._count_pace(seconds)
        if result.prediction is not None:
            self._metrics.count_predictions(result.answered_by, result.prediction)
        if self._shadow is not None and session.own is not None:
            asked, said = session.own
            self._shadow.compare(asked.situations, asked.mode, said)

    def _count_pace(self, seconds: float) -> None:
        """Count a step that was answered so long after it came; infinity: too late to be answered at all."""
        policy = self._session.policy
        period_ms = policy.manifest.control_period_ms
        if period_ms is not None:
            served = policy.served
            self._metrics.count_pace(served.name, served.version, late=seconds * 1e3 > period_ms)

    def _supersede(self, message: pb.ControlStep) -> pb.ControlResponse:
        try:
            self._session.pass_over(decode_step(message))
        except Exception as error:
            return self._refuse(message.step, error)
        return self._refuse(message.step, SupersededError("A newer step was waiting and is answered instead."))

    def _refuse(self, step: int, error: Exception) -> pb.ControlResponse:
        code, named, session = code_of(error), request_id(self._context), self._session
        self._record.failed(code.name)
        if code in _TOO_LATE:
            self._count_pace(math.inf)
        if code is grpc.StatusCode.INTERNAL:
            self._log_failure("policy", "step failed", error, step)
        return encode_step_error(step, status_of(error, named), session.next_step, session.state())

    def _log_failure(self, whose: str, event: str, error: Exception | None, step: int) -> None:
        """Once for as long as it goes on; None: it is over."""
        if error is None:
            self._failed.discard(whose)
        elif whose not in self._failed:
            self._failed.add(whose)
            session_id, named = self._session.session_id, request_id(self._context)
            log(logger, logging.ERROR, event, exception=error, session_id=session_id, request_id=named, step=step)


def _step(request: pb.ControlRequest) -> pb.ControlStep:
    if request.WhichOneof("request") != "step":
        raise InvalidRequestError("step", "is missing; every message but the first of a stream is a step")
    return request.step
