"""The messages of the control stream to values and back, naming the field that is wrong; shared by server and client.

Decoding an opening checks what can be checked without the policy; the session checks the rest.
"""

import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from serve.codec import (
    UINT32_MAX,
    UINT64_MAX,
    Limits,
    check_candidates,
    decode_duration,
    decode_mode,
    decode_predictions,
    decode_served,
    encode_mode,
    fill_duration,
    fill_predictions,
    fill_served,
    in_range,
    seconds,
    vector,
)
from serve.control_values import (
    DEFAULT_LEAST_UNSAFE_CANDIDATES,
    DEFAULT_RECOVERY_STEPS,
    REASONS_IN_ORDER,
    Account,
    BackupPolicy,
    ConstantAction,
    Fallback,
    FallbackAction,
    FallbackReason,
    FallbackTaken,
    FlaggedAction,
    HoldLastAction,
    Horizon,
    LeastUnsafeAction,
    Opening,
    PolicySelector,
    RollingWindow,
    SessionOpened,
    Step,
    StepAnswer,
    StepResult,
    StepTiming,
)
from serve.errors import InvalidRequestError
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1 import policy_pb2

_STATE_FRAME_BYTES = 12  # of the tag and length of a state in its opening, and of that in its request, at most

# --- requests, on the server ---------------------------------------------------------------------------------------


def decode_opening(message: pb.OpenSession, limits: Limits) -> Opening:
    """Return what a session is to be, defaults filled in but for those that are the policy's.

    Raises:
        InvalidRequestError: unknown or too many reasons, too many candidates, an age that is not above zero.
    """
    extent: Horizon | RollingWindow | None = None
    match message.WhichOneof("extent"):
        case "horizon_steps":
            extent = Horizon(message.horizon_steps)
        case "rolling_window_steps":
            extent = RollingWindow(message.rolling_window_steps)
    max_age = decode_duration(message.max_age) if message.HasField("max_age") else None
    if max_age is not None and max_age <= 0:
        raise InvalidRequestError("open.max_age", f"is {max_age:g} s; it must be above zero")
    return Opening(
        policy=decode_selector(message.policy),
        cost_budget=tuple(message.cost_budget) or None,
        extent=extent,
        mode=decode_mode(message, limits, "open."),
        max_age_seconds=max_age,
        fallback=_decode_fallback(message.fallback, limits),
    )


def state_room(message: pb.OpenSession, limits: Limits) -> int:
    """Return how many bytes the state may have with which a session goes on that was opened by this message."""
    return limits.max_message_bytes - message.ByteSize() - _STATE_FRAME_BYTES


def opening_digest(message: pb.OpenSession) -> bytes:
    """Return what tells whether a session that goes on was opened as it is now: the SHA-256 of all but the state."""
    opening = pb.OpenSession()
    opening.CopyFrom(message)
    opening.ClearField("state")
    return hashlib.sha256(opening.SerializeToString(deterministic=True)).digest()


def decode_selector(message: policy_pb2.PolicySelector) -> PolicySelector:
    """Return which policy is meant."""
    return PolicySelector(message.name, message.version if message.HasField("version") else None, message.fingerprint)


def _decode_fallback(message: pb.Fallback, limits: Limits) -> Fallback:
    if len(message.reasons) > len(REASONS_IN_ORDER):  # before they are looked at: a message holds millions
        raise InvalidRequestError(
            "open.fallback.reasons", f"has {len(message.reasons)} entries; there are {len(REASONS_IN_ORDER)} reasons"
        )
    reasons = set()
    for index, number in enumerate(map(int, message.reasons)):
        if number not in REASONS_IN_ORDER:
            known = ", ".join(f"{reason.value} ({reason.name})" for reason in sorted(REASONS_IN_ORDER))
            raise InvalidRequestError(f"open.fallback.reasons[{index}]", f"is {number}; the reasons are {known}")
        reasons.add(FallbackReason(number))
    return Fallback(
        action=_decode_fallback_action(message, limits),
        reasons=frozenset(reasons or REASONS_IN_ORDER),
        recovery_steps=message.recovery_steps or DEFAULT_RECOVERY_STEPS,
    )


def _decode_fallback_action(message: pb.Fallback, limits: Limits) -> FallbackAction:
    match message.WhichOneof("action"):
        case "least_unsafe":
            candidates = message.least_unsafe.candidates or DEFAULT_LEAST_UNSAFE_CANDIDATES
            check_candidates("open.fallback.least_unsafe.candidates", candidates, limits)
            return LeastUnsafeAction(candidates)
        case "constant":
            return ConstantAction(tuple(message.constant.action) or None)
        case "hold_last":
            return HoldLastAction()
        case "backup":
            return BackupPolicy(decode_selector(message.backup.policy))
        case _:
            return FlaggedAction()


def decode_step(message: pb.ControlStep) -> Step:
    """Return a step; the session checks it, its lengths before its values are copied."""
    return Step(message.step, message.observation, message.cost_total)


# --- requests, on the client ---------------------------------------------------------------------------------------


def encode_opening(opening: Opening, state: bytes = b"") -> pb.OpenSession:
    """Return the message that opens a session, or goes on from a state of it.

    Raises:
        InvalidRequestError: a value of another kind, a number that does not fit into the message, or what is
            empty and would be taken for the default.
    """
    message = pb.OpenSession(policy=encode_selector(opening.policy), state=state)
    message.cost_budget.extend(_given("cost_budget", opening.cost_budget))
    match opening.extent:
        case Horizon(steps):
            message.horizon_steps = in_range("horizon", steps, UINT32_MAX)
        case RollingWindow(steps):
            message.rolling_window_steps = in_range("rolling window", steps, UINT32_MAX)
        case None:
            pass
        case _:
            raise InvalidRequestError("extent", f"is {opening.extent!r}; give Horizon(steps) or RollingWindow(steps)")
    encode_mode(message, opening.mode)
    if opening.max_age_seconds is not None:
        fill_duration(message.max_age, seconds("max_age_seconds", opening.max_age_seconds))
    _encode_fallback(message.fallback, opening.fallback)
    return message


def _encode_fallback(message: pb.Fallback, fallback: Fallback) -> None:
    if not isinstance(fallback, Fallback):
        raise InvalidRequestError("fallback", f"is {fallback!r}; give Fallback(action)")
    acts = not isinstance(fallback.action, FlaggedAction)  # else the defaults change nothing
    try:
        reasons = sorted(map(FallbackReason, fallback.reasons))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            "fallback.reasons", f"is {fallback.reasons!r}; give a set of FallbackReason"
        ) from error
    if acts and not reasons:
        raise InvalidRequestError("fallback.reasons", "is empty; name one, or leave the fallback away")
    message.reasons.extend(map(_encode_reason, reasons))
    message.recovery_steps = in_range("recovery_steps", fallback.recovery_steps, UINT32_MAX, least=int(acts))
    match fallback.action:
        case FlaggedAction():
            message.flagged.SetInParent()
        case LeastUnsafeAction(candidates):
            message.least_unsafe.candidates = in_range("candidates", candidates, UINT32_MAX, least=1)
        case ConstantAction(action):
            message.constant.action.extend(_given("fallback.action", action))
            message.constant.SetInParent()
        case HoldLastAction():
            message.hold_last.SetInParent()
        case BackupPolicy(PolicySelector() as selector):
            message.backup.policy.CopyFrom(encode_selector(selector))
        case _:
            raise InvalidRequestError(
                "fallback.action",
                f"is {fallback.action!r}; give FlaggedAction(), LeastUnsafeAction(), ConstantAction(), "
                "HoldLastAction() or BackupPolicy(PolicySelector(name))",
            )


def encode_step(step: Step) -> pb.ControlStep:
    """Return the message of a step."""
    return pb.ControlStep(step=step.number, observation=step.observation, cost_total=step.cost_total)


def _given(name: str, values: Sequence[float] | None) -> Sequence[float]:
    """Return the numbers that are given; none for None.

    Raises:
        InvalidRequestError: what is given is empty, or not of numbers.
    """
    if values is None:
        return ()
    numbers = vector(name, values)
    if not numbers:
        raise InvalidRequestError(name, "is empty; give all of its values, or None for the default")
    return numbers


def encode_selector(selector: PolicySelector) -> policy_pb2.PolicySelector:
    """Return the message that says which policy is meant.

    Raises:
        InvalidRequestError: a name, version or fingerprint that is none.
    """
    for field, text in (("policy", selector.name), ("fingerprint", selector.fingerprint)):
        if not isinstance(text, str):
            raise InvalidRequestError(field, f"is {text!r}; give a text")
    version = None if selector.version is None else in_range("version", selector.version, UINT64_MAX)
    return policy_pb2.PolicySelector(name=selector.name, version=version, fingerprint=selector.fingerprint)


def _encode_reason(reason: FallbackReason) -> pb.FallbackReason:
    return cast("pb.FallbackReason", reason.value)  # the numbers are the same


# --- answers -------------------------------------------------------------------------------------------------------


def encode_opened(opened: SessionOpened) -> pb.ControlResponse:
    """Return the answer to an opening."""
    response = pb.ControlResponse()
    message = response.opened
    message.session_id = opened.session_id
    fill_served(message.policy, opened.policy)
    message.cost_budget.extend(opened.cost_budget)
    message.extent_steps = opened.extent_steps
    message.next_step = opened.next_step
    fill_duration(message.idle_timeout, opened.idle_timeout_seconds)
    message.state = opened.state
    return response


def decode_opened(message: pb.SessionOpened) -> SessionOpened:
    """Return what a session begins with."""
    return SessionOpened(
        session_id=message.session_id,
        policy=decode_served(message.policy),
        cost_budget=tuple(message.cost_budget),
        extent_steps=message.extent_steps,
        next_step=message.next_step,
        idle_timeout_seconds=decode_duration(message.idle_timeout),
        state=message.state,
    )


def encode_result(result: StepAnswer, sent_at: Timestamp | None = None) -> pb.ControlResponse:
    """Return the answer to a step that was sent at a time of the robot's clock."""
    account, taken, timing = result.account, result.fallback, result.timing
    response = pb.ControlResponse()
    message = response.result
    message.step = result.step
    message.action.extend(result.action)
    if result.prediction is not None:
        fill_predictions([message.prediction], result.prediction)
    message.feasible = result.feasible
    message.chosen = result.chosen
    if taken is not None:
        message.fallback.reason = _encode_reason(taken.reason)
        message.fallback.steps = taken.steps
        if taken.backup is not None:
            fill_served(message.fallback.backup, taken.backup)
    for name, spent, left, exhausted in zip(
        result.constraints, account.spent, account.left, account.exhausted, strict=True
    ):
        budget = message.budgets.add()
        budget.name = name
        budget.spent = spent
        budget.left = left
        budget.exhausted = exhausted
    message.steps_left = account.steps_left
    fill_served(message.policy, result.policy)
    times = message.timing
    fill_duration(times.queued, timing.queued_seconds)
    fill_duration(times.checked, timing.checked_seconds)
    fill_duration(times.computed, timing.computed_seconds)
    if sent_at is not None:
        message.sent_at.CopyFrom(sent_at)
    message.state = result.state
    return response


def decode_result(message: pb.ControlResult) -> StepResult:
    """Return the answer to a step, with the axis N."""
    fallback = None
    if message.HasField("fallback"):
        taken = message.fallback
        backup = decode_served(taken.backup) if taken.HasField("backup") else None
        fallback = FallbackTaken(FallbackReason(taken.reason), taken.steps, backup)
    return StepResult(
        step=message.step,
        action=np.array([message.action[:]], np.float32),
        prediction=decode_predictions([message.prediction]) if message.HasField("prediction") else None,
        feasible=message.feasible,
        chosen=message.chosen,
        fallback=fallback,
        constraints=tuple(budget.name for budget in message.budgets),
        account=Account(
            spent=tuple(budget.spent for budget in message.budgets),
            left=tuple(budget.left for budget in message.budgets),
            steps_left=message.steps_left,
        ),
        policy=decode_served(message.policy),
        timing=StepTiming(
            decode_duration(message.timing.queued),
            decode_duration(message.timing.checked),
            decode_duration(message.timing.computed),
        ),
        state=message.state,
    )


def encode_step_error(step: int, status: Status, next_step: int, state: bytes) -> pb.ControlResponse:
    """Return what says why a step has no action, and where the session is."""
    return pb.ControlResponse(error=pb.StepError(step=step, status=status, next_step=next_step, state=state))


def encode_notice(kind: pb.NoticeKind, message: str) -> pb.ControlResponse:
    """Return news of the server."""
    return pb.ControlResponse(notice=pb.Notice(kind=kind, message=message))
