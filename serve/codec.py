"""Messages to arrays and back, naming the field that is wrong; shared by server and client.

Decoding a request checks everything that can be checked without the policy's graphs. Encoding a request checks only
what cannot be put into a message. Paths of fields are those of the proto, such as `situations[0].observation[3]`.
"""

import math
from collections.abc import Sequence
from ctypes import c_float
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from operator import index
from typing import cast

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import ArrayLike, NDArray

from serve.errors import InvalidRequestError
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.control_pb2 import OpenSession
from serve.values import (
    ActLists,
    ActResult,
    CalibrationDescription,
    ConstraintDescription,
    Deterministic,
    EvaluateActionLists,
    EvaluateActionResult,
    Floats,
    Frame,
    Mode,
    PolicyDescription,
    Prediction,
    PredictionLists,
    Rows,
    Sampled,
    ServedPolicy,
    Shielded,
    Situations,
    Space,
)

UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1
_DAY_SECONDS = 86_400
_MASKED = "has masked values; give a number for each"


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for."""

    max_batch: int = 256  # situations or actions in one request
    max_candidates: int = 256  # K of a shielded request
    max_rows: int = 4096  # situations times candidates of a shielded request
    max_message_bytes: int = 2**20
    strict_observations: bool = False  # refuse an observation outside the observation space


# --- requests, on the server ---------------------------------------------------------------------------------------


def decode_mode(request: pb.ActRequest | OpenSession, limits: Limits, path: str = "", situations: int = 1) -> Mode:
    """Return how the action is to be chosen in so many situations; `path` is that of the message in its request.

    Raises:
        InvalidRequestError: too few or too many candidates, by themselves or for so many situations.
    """
    which = request.WhichOneof("mode")
    if which == "shielded":
        candidates = request.shielded.candidates
        check_candidates(f"{path}shielded.candidates", candidates, limits, situations)
        return Shielded(candidates, request.shielded.seed if request.shielded.HasField("seed") else None)
    if which == "sampled":
        return Sampled(request.sampled.seed if request.sampled.HasField("seed") else None)
    return Deterministic()


def check_candidates(field: str, candidates: int, limits: Limits, situations: int = 1) -> None:
    """Refuse a number of candidates, each in so many situations, that is none or asks for too much.

    Raises:
        InvalidRequestError: names the field.
    """
    if not 2 <= candidates <= limits.max_candidates:
        raise InvalidRequestError(field, f"is {candidates}; this server takes 2 to {limits.max_candidates}")
    if situations * candidates > limits.max_rows:
        raise InvalidRequestError(
            field,
            f"is {candidates} for {situations} situations, {situations * candidates} in all; this server takes "
            f"{limits.max_rows} in one request",
        )


def decode_situations(messages: Sequence[pb.Situation], frame: Frame, limits: Limits) -> Situations:
    """Return the situations of an ActRequest, defaults filled in.

    Raises:
        InvalidRequestError: none or too many, a wrong length, NaN or infinity, steps or costs out of range.
    """
    _check_batch("situations", len(messages), limits)
    return _decode_situations(messages, frame, limits, "situations[{}]")


def decode_situated_actions(
    messages: Sequence[pb.SituatedAction], frame: Frame, limits: Limits
) -> tuple[Situations, Rows]:
    """Return the situations and the actions [N, A] of an EvaluateActionRequest.

    Raises:
        InvalidRequestError: as for decode_situations, or an action outside the action space.
    """
    _check_batch("situated_actions", len(messages), limits)
    situations = _decode_situations([m.situation for m in messages], frame, limits, "situated_actions[{}].situation")
    size = len(frame.action_low)
    action = np.empty((len(messages), size), np.float32)
    for i, message in enumerate(messages):
        if len(message.action) != size:
            raise InvalidRequestError(
                f"situated_actions[{i}].action", f"has {len(message.action)} values; the policy's action has {size}"
            )
        action[i] = message.action[:]
    check_action_space(action, frame.action_low, frame.action_high, "situated_actions[{}].action")
    rows: Rows = action.tolist()
    return situations, rows


def _check_batch(field: str, size: int, limits: Limits) -> None:
    if not 1 <= size <= limits.max_batch:
        raise InvalidRequestError(field, f"has {size} entries; this server takes 1 to {limits.max_batch}")


def check_observation_space(observation: Sequence[Sequence[float]], frame: Frame, path: str) -> None:
    """Refuse observations [N, O] outside of the observation space; `path` has a place for the row.

    Raises:
        InvalidRequestError: names the first value.
    """
    outside = frame.outside(observation)
    if outside.any():
        assert frame.observation_bounds is not None
        i, j = _first(outside)
        low, high = frame.observation_bounds
        raise InvalidRequestError(
            f"{path.format(i)}[{j}]",
            f"is {observation[i][j]:g}; the observation space is {low[j]:g} to {high[j]:g} there",
        )


def check_action_space(
    action: Sequence[Sequence[float] | Floats] | Floats,
    low: Sequence[float] | Floats,
    high: Sequence[float] | Floats,
    path: str,
) -> None:
    """Refuse actions [N, A] outside of the bounds [A]; `path` has a place for the row.

    Raises:
        InvalidRequestError: names the first value.
    """
    values = np.asarray(action, np.float32)  # as the bounds are
    inside = (np.asarray(low) <= values) & (values <= np.asarray(high))  # False for NaN
    if not inside.all():
        i, j = _first(~inside)
        raise InvalidRequestError(
            f"{path.format(i)}[{j}]", f"is {action[i][j]:g}; the action space is {low[j]:g} to {high[j]:g} there"
        )


def _decode_situations(messages: Sequence[pb.Situation], frame: Frame, limits: Limits, path: str) -> Situations:
    observation, steps_left, cost_allowed = [], [], []
    constraints = len(frame.cost_limit)
    for i, message in enumerate(messages):
        values = message.observation
        if len(values) != frame.observation_size:  # before it is copied: it may be as long as a message
            raise InvalidRequestError(
                f"{path.format(i)}.observation",
                f"has {len(values)} values; the policy's observation has {frame.observation_size}",
            )
        row = values[:]
        if not math.isfinite(sum(row)):  # a sum of float32 in Python's floats does not overflow
            j, value = next((j, value) for j, value in enumerate(row) if not math.isfinite(value))
            raise InvalidRequestError(f"{path.format(i)}.observation[{j}]", f"is {value}; it must be finite")
        steps = message.steps_left if message.HasField("steps_left") else frame.window_steps
        if not 1 <= steps <= frame.horizon_steps:
            raise InvalidRequestError(
                f"{path.format(i)}.steps_left", f"is {steps}; the policy's horizon is 1 to {frame.horizon_steps} steps"
            )
        costs = message.cost_allowed[:] or frame.share(steps)
        if len(costs) != constraints:
            raise InvalidRequestError(
                f"{path.format(i)}.cost_allowed",
                f"has {len(costs)} values; the policy has {constraints} constraints",
            )
        for j, cost in enumerate(costs):
            if not cost >= 0:  # True for NaN; infinity is "unconstrained"
                raise InvalidRequestError(
                    f"{path.format(i)}.cost_allowed[{j}]", f"is {cost:g}; it must be zero or more"
                )
        observation.append(row)
        steps_left.append(steps)
        cost_allowed.append(costs)
    if limits.strict_observations:
        check_observation_space(observation, frame, f"{path}.observation")
    return Situations(observation, steps_left, cost_allowed)


def _first(where: NDArray[np.bool_]) -> tuple[int, int]:
    i, j = np.argwhere(where)[0]
    return int(i), int(j)


# --- requests, on the client ---------------------------------------------------------------------------------------


def encode_situations(
    observation: ArrayLike, steps_left: ArrayLike | None, cost_allowed: ArrayLike | None
) -> tuple[list[pb.Situation], bool]:
    """Return the messages of one observation [O] or a batch [N, O], and whether it was a single one.

    Args:
        observation: [O] or [N, O].
        steps_left: one number for all, or [N]. None: the policy's window.
        cost_allowed: [C] for all, or [N, C]. None: the limit's share of those steps.

    Raises:
        InvalidRequestError: something is not a number, or the shapes do not fit each other.
    """
    rows, single = _rows("observation", observation)
    count = len(rows)
    situations = [pb.Situation(observation=row) for row in rows.tolist()]
    if steps_left is not None:
        for situation, steps in zip(situations, _steps(steps_left, count), strict=True):
            situation.steps_left = steps
    if cost_allowed is not None:
        allowed, for_all = _rows("cost_allowed", cost_allowed)
        if allowed.shape[1] == 0:
            raise InvalidRequestError("cost_allowed", "is empty; give one cost per constraint, or None for the default")
        if not for_all and len(allowed) != count:
            raise InvalidRequestError("cost_allowed", f"has {len(allowed)} rows for {count} observations")
        for situation, costs in zip(situations, np.broadcast_to(allowed, (count, allowed.shape[1])), strict=True):
            situation.cost_allowed.extend(map(float32_below, costs.tolist()))
    return situations, single


def float32_below(exact: float) -> float:
    """The largest float32 that is not above: rounding never allows more than was said."""
    nearest = c_float(exact).value
    return float(np.nextafter(np.float32(nearest), np.float32(-np.inf))) if nearest > exact else nearest


def encode_situated_actions(
    observation: ArrayLike, action: ArrayLike, steps_left: ArrayLike | None, cost_allowed: ArrayLike | None
) -> tuple[list[pb.SituatedAction], bool]:
    """Return the messages of actions [A] or [N, A] in their situations, and whether it was a single one."""
    situations, single = encode_situations(observation, steps_left, cost_allowed)
    actions, single_action = _rows("action", action)
    if (len(actions), single_action) != (len(situations), single):
        raise InvalidRequestError("action", f"has shape {np.shape(action)}, the observation {np.shape(observation)}")
    return [
        pb.SituatedAction(situation=situation, action=row)
        for situation, row in zip(situations, actions.tolist(), strict=True)
    ], single


def encode_act_request(selector: pb.PolicySelector, situations: list[pb.Situation], mode: Mode) -> pb.ActRequest:
    """Return the request for one action per situation.

    Raises:
        InvalidRequestError: a seed or a number of candidates that does not fit into the message.
    """
    request = pb.ActRequest(policy=selector, situations=situations)
    encode_mode(request, mode)
    return request


def encode_mode(request: pb.ActRequest | OpenSession, mode: Mode) -> None:
    """Write how the action is to be chosen.

    Raises:
        InvalidRequestError: it is no mode, or a seed or a number of candidates does not fit into the message.
    """
    match mode:
        case Deterministic():
            request.deterministic.SetInParent()
        case Sampled(seed):
            request.sampled.SetInParent()
            if seed is not None:
                request.sampled.seed = in_range("seed", seed, UINT64_MAX)
        case Shielded(candidates, seed):
            request.shielded.candidates = in_range("candidates", candidates, UINT32_MAX)
            if seed is not None:
                request.shielded.seed = in_range("seed", seed, UINT64_MAX)
        case _:
            raise InvalidRequestError("mode", f"is {mode!r}; give Deterministic(), Sampled() or Shielded(candidates)")


def _rows(name: str, value: ArrayLike) -> tuple[NDArray[np.float64], bool]:
    array = _numbers(name, value)
    if array.ndim not in (1, 2):
        raise InvalidRequestError(name, f"has shape {array.shape}; give one vector or a batch of them")
    return np.atleast_2d(array), array.ndim == 1


def vector(name: str, value: ArrayLike, size: int | None = None) -> list[float]:
    """Return the numbers of a vector; of a single number, where the size is 1.

    Raises:
        InvalidRequestError: it is no vector, or has another size.
    """
    array = _numbers(name, value)
    if array.ndim == 0 and size == 1:
        array = array[None]
    if array.ndim != 1 or size not in (None, len(array)):
        expected = "one vector" if size is None else f"{size} values"
        raise InvalidRequestError(name, f"has shape {array.shape}; give {expected}")
    numbers: list[float] = array.tolist()
    return numbers


def _steps(steps_left: ArrayLike, count: int) -> list[int]:
    _numbers("steps_left", steps_left)  # refuses what is ragged
    array = np.asarray(steps_left)
    if array.dtype.kind not in "iu" or array.shape not in ((), (count,)):
        raise InvalidRequestError("steps_left", f"must be one whole number, or one for each of {count} observations")
    return [in_range("steps_left", steps, UINT32_MAX) for steps in np.broadcast_to(array, (count,)).tolist()]


def _numbers(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """Return an array of real numbers.

    Raises:
        InvalidRequestError: it is none: ragged, or of text, times, complex or other things; or values of it are masked.
    """
    if np.ma.is_masked(value):  # numpy would take what stands behind the mask, which nobody has observed
        raise InvalidRequestError(name, _MASKED)
    try:
        array = np.asarray(value)
        if array.ndim > 1 and isinstance(value, Sequence) and any(map(np.ma.is_masked, value)):
            raise InvalidRequestError(name, _MASKED)
        if array.dtype != np.object_:
            return array.astype(np.float64, casting="same_kind", copy=False)
        for each in array.flat:
            if not isinstance(each, Real | Decimal):
                raise TypeError(f"{each!r} is none")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: torch's, of what has a grad
        raise InvalidRequestError(name, f"is not an array of numbers: {error}") from error


def in_range(name: str, value: int, largest: int, least: int = 0) -> int:
    """Return a number that fits into its field.

    Raises:
        InvalidRequestError: it does not, or is no whole number.
    """
    try:
        number = index(value)
    except TypeError as error:
        raise InvalidRequestError(name, f"is {value!r}; it must be a whole number") from error
    if not least <= number <= largest:
        raise InvalidRequestError(name, f"is {number}; it must be {least} to {largest}")
    return number


def seconds(name: str, value: float) -> float:
    """Return how long something may take.

    Raises:
        InvalidRequestError: it is no number of seconds, not above zero, or more than a day, which no timer need take.
    """
    if not (isinstance(value, Real) and 0 < value <= _DAY_SECONDS):  # True for NaN
        raise InvalidRequestError(name, f"is {value!r}; give seconds, above zero and at most {_DAY_SECONDS}")
    return float(value)


# --- answers -------------------------------------------------------------------------------------------------------


# Answers are written into messages that are already part of the answer: one that is made apart is copied when it is
# put into another, which costs more than all the rest.


def encode_act_response(result: ActLists) -> pb.ActResponse:
    """Return the message of an answer."""
    message = pb.ActResponse()
    fill_served(message.policy, result.policy)
    fill_duration(message.compute_time, result.compute_seconds)
    rows = [message.results.add() for _ in result.action]
    for row, action, feasible, chosen in zip(rows, result.action, result.feasible, result.chosen, strict=True):
        row.action.extend(action)
        row.feasible = feasible
        row.chosen = chosen
    fill_predictions([row.prediction for row in rows], result.prediction)
    return message


def decode_act_response(message: pb.ActResponse) -> ActResult:
    """Return the answer in a message, with the axis N."""
    return ActResult(
        policy=decode_served(message.policy),
        action=np.array([result.action[:] for result in message.results], np.float32),
        feasible=np.array([result.feasible for result in message.results], np.bool_),
        chosen=np.array([result.chosen for result in message.results], np.int64),
        prediction=decode_predictions([result.prediction for result in message.results]),
        compute_seconds=decode_duration(message.compute_time),
    )


def encode_evaluate_response(result: EvaluateActionLists) -> pb.EvaluateActionResponse:
    """Return the message of a judgement."""
    message = pb.EvaluateActionResponse()
    fill_served(message.policy, result.policy)
    fill_duration(message.compute_time, result.compute_seconds)
    fill_predictions([message.predictions.add() for _ in result.prediction.steps_left], result.prediction)
    return message


def decode_evaluate_response(message: pb.EvaluateActionResponse) -> EvaluateActionResult:
    """Return the judgement in a message, with the axis N."""
    return EvaluateActionResult(
        policy=decode_served(message.policy),
        prediction=decode_predictions(message.predictions),
        compute_seconds=decode_duration(message.compute_time),
    )


def fill_predictions(messages: Sequence[pb.Prediction], prediction: PredictionLists) -> None:
    """Write the predictions of N situations into as many empty messages."""
    for n, message in enumerate(messages):
        violation = prediction.violation[n]
        message.violation = True in violation
        message.steps_left = prediction.steps_left[n]
        message.calibration_status = cast("pb.CalibrationStatus", prediction.calibration_status[n])  # equal numbers
        message.reward_value = prediction.reward_value[n]
        message.shift_score = prediction.shift_score[n]
        cost_value, cost_to_go = prediction.cost_value[n], prediction.cost_to_go[n]
        cost_upper, cost_allowed = prediction.cost_upper[n], prediction.cost_allowed[n]
        probability = prediction.violation_probability[n]
        for c, name in enumerate(prediction.constraints):
            constraint = message.constraints.add()
            constraint.name = name
            constraint.cost_value = cost_value[c]
            constraint.cost_to_go = cost_to_go[c]
            constraint.cost_upper = cost_upper[c]
            constraint.violation_probability = probability[c]
            constraint.violation = violation[c]
            constraint.cost_allowed = cost_allowed[c]
            constraint.alarm_level = prediction.alarm_level[c]


def decode_predictions(messages: Sequence[pb.Prediction]) -> Prediction:
    """Return the predictions in messages, at least one, with the axis N."""
    rows = [
        [
            (c.cost_value, c.cost_to_go, c.cost_upper, c.violation_probability, c.violation, c.cost_allowed)
            for c in message.constraints
        ]
        for message in messages
    ]
    first = messages[0].constraints
    values = np.array(rows, np.float32)  # [N, C, 6]
    return Prediction(
        constraints=tuple(c.name for c in first),
        cost_value=values[..., 0],
        cost_to_go=values[..., 1],
        cost_upper=values[..., 2],
        violation_probability=values[..., 3],
        violation=values[..., 4] != 0,
        cost_allowed=values[..., 5],
        alarm_level=np.array([c.alarm_level for c in first], np.float32),
        steps_left=np.array([message.steps_left for message in messages], np.int64),
        reward_value=np.array([message.reward_value for message in messages], np.float32),
        shift_score=np.array([message.shift_score for message in messages], np.float32),
        calibration_status=np.array([message.calibration_status for message in messages], np.int64),
    )


# --- descriptions --------------------------------------------------------------------------------------------------


def encode_description(description: PolicyDescription) -> pb.PolicyDescription:
    """Return the message of a policy's description."""
    message = pb.PolicyDescription(
        observation=_encode_space(description.observation),
        action=_encode_space(description.action),
        constraints=[
            pb.ConstraintDescription(
                name=c.name,
                unit=c.unit,
                cost_limit=c.cost_limit,
                discount=c.discount,
                cost_threshold=c.cost_threshold,
            )
            for c in description.constraints
        ],
        horizon_steps=description.horizon_steps,
        window_steps=description.window_steps,
        safe_action=description.safe_action,
        environment=description.environment,
        versions=description.versions,
        shift_threshold=description.shift_threshold,
    )
    fill_served(message.policy, description.policy)
    if description.control_period_seconds is not None:
        fill_duration(message.control_period, description.control_period_seconds)
    calibration = description.calibration
    if calibration is not None:
        message.calibration.CopyFrom(
            pb.CalibrationDescription(
                method=calibration.method,
                modes=calibration.modes,
                confidence=calibration.confidence,
                miss_rate=calibration.miss_rate,
                alarm_levels=calibration.alarm_levels,
                episodes=calibration.episodes,
            )
        )
    return message


def decode_description(message: pb.PolicyDescription) -> PolicyDescription:
    """Return the description in a message."""
    calibration = message.calibration
    return PolicyDescription(
        policy=decode_served(message.policy),
        environment=message.environment,
        observation=_decode_space(message.observation),
        action=_decode_space(message.action),
        constraints=tuple(
            ConstraintDescription(c.name, c.unit, c.cost_limit, c.discount, c.cost_threshold)
            for c in message.constraints
        ),
        horizon_steps=message.horizon_steps,
        window_steps=message.window_steps,
        control_period_seconds=decode_duration(message.control_period) if message.HasField("control_period") else None,
        safe_action=tuple(message.safe_action),
        calibration=CalibrationDescription(
            method=calibration.method,
            modes=tuple(calibration.modes),
            confidence=calibration.confidence,
            miss_rate=calibration.miss_rate,
            alarm_levels=tuple(calibration.alarm_levels),
            episodes=dict(calibration.episodes),
        )
        if message.HasField("calibration")
        else None,
        shift_threshold=message.shift_threshold,
        versions=tuple(message.versions),
    )


def fill_served(message: pb.ServedPolicy, policy: ServedPolicy) -> None:
    """Write who answered."""
    message.name = policy.name
    message.version = policy.version
    message.fingerprint = policy.fingerprint


def decode_served(message: pb.ServedPolicy) -> ServedPolicy:
    """Return who answered."""
    return ServedPolicy(message.name, message.version, message.fingerprint)


def _encode_space(space: Space) -> pb.Space:
    return pb.Space(names=space.names, low=space.low, high=space.high)


def _decode_space(message: pb.Space) -> Space:
    return Space(tuple(message.names), tuple(message.low), tuple(message.high))


def fill_duration(message: Duration, seconds: float) -> None:
    """Write a time span."""
    nanos = round(seconds * 1e9)
    if nanos >= 1_000_000_000:
        message.seconds, nanos = divmod(nanos, 1_000_000_000)
    message.nanos = nanos


def decode_duration(duration: Duration) -> float:
    """Return a time span in seconds."""
    return duration.seconds + duration.nanos * 1e-9
