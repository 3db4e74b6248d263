import datetime

from serve.gen.cvpo.v1 import policy_pb2 as _policy_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FallbackReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FALLBACK_REASON_UNSPECIFIED: _ClassVar[FallbackReason]
    FALLBACK_REASON_FLAGGED: _ClassVar[FallbackReason]
    FALLBACK_REASON_BUDGET_EXHAUSTED: _ClassVar[FallbackReason]
    FALLBACK_REASON_SHIFTED: _ClassVar[FallbackReason]
    FALLBACK_REASON_NO_ANSWER: _ClassVar[FallbackReason]
    FALLBACK_REASON_RECOVERING: _ClassVar[FallbackReason]

class NoticeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOTICE_KIND_UNSPECIFIED: _ClassVar[NoticeKind]
    NOTICE_KIND_DRAINING: _ClassVar[NoticeKind]
    NOTICE_KIND_VERSION_CHANGED: _ClassVar[NoticeKind]
FALLBACK_REASON_UNSPECIFIED: FallbackReason
FALLBACK_REASON_FLAGGED: FallbackReason
FALLBACK_REASON_BUDGET_EXHAUSTED: FallbackReason
FALLBACK_REASON_SHIFTED: FallbackReason
FALLBACK_REASON_NO_ANSWER: FallbackReason
FALLBACK_REASON_RECOVERING: FallbackReason
NOTICE_KIND_UNSPECIFIED: NoticeKind
NOTICE_KIND_DRAINING: NoticeKind
NOTICE_KIND_VERSION_CHANGED: NoticeKind

class ControlRequest(_message.Message):
    __slots__ = ("open", "step")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    open: OpenSession
    step: ControlStep
    def __init__(self, open: _Optional[_Union[OpenSession, _Mapping]] = ..., step: _Optional[_Union[ControlStep, _Mapping]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("policy", "cost_budget", "horizon_steps", "rolling_window_steps", "deterministic", "sampled", "shielded", "max_age", "fallback", "state")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    COST_BUDGET_FIELD_NUMBER: _ClassVar[int]
    HORIZON_STEPS_FIELD_NUMBER: _ClassVar[int]
    ROLLING_WINDOW_STEPS_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    SHIELDED_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    policy: _policy_pb2.PolicySelector
    cost_budget: _containers.RepeatedScalarFieldContainer[float]
    horizon_steps: int
    rolling_window_steps: int
    deterministic: _policy_pb2.Deterministic
    sampled: _policy_pb2.Sampled
    shielded: _policy_pb2.Shielded
    max_age: _duration_pb2.Duration
    fallback: Fallback
    state: bytes
    def __init__(self, policy: _Optional[_Union[_policy_pb2.PolicySelector, _Mapping]] = ..., cost_budget: _Optional[_Iterable[float]] = ..., horizon_steps: _Optional[int] = ..., rolling_window_steps: _Optional[int] = ..., deterministic: _Optional[_Union[_policy_pb2.Deterministic, _Mapping]] = ..., sampled: _Optional[_Union[_policy_pb2.Sampled, _Mapping]] = ..., shielded: _Optional[_Union[_policy_pb2.Shielded, _Mapping]] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., fallback: _Optional[_Union[Fallback, _Mapping]] = ..., state: _Optional[bytes] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("flagged", "least_unsafe", "constant", "hold_last", "backup", "reasons", "recovery_steps")
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    LEAST_UNSAFE_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    HOLD_LAST_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    flagged: FlaggedAction
    least_unsafe: LeastUnsafeAction
    constant: ConstantAction
    hold_last: HoldLastAction
    backup: BackupPolicy
    reasons: _containers.RepeatedScalarFieldContainer[FallbackReason]
    recovery_steps: int
    def __init__(self, flagged: _Optional[_Union[FlaggedAction, _Mapping]] = ..., least_unsafe: _Optional[_Union[LeastUnsafeAction, _Mapping]] = ..., constant: _Optional[_Union[ConstantAction, _Mapping]] = ..., hold_last: _Optional[_Union[HoldLastAction, _Mapping]] = ..., backup: _Optional[_Union[BackupPolicy, _Mapping]] = ..., reasons: _Optional[_Iterable[_Union[FallbackReason, str]]] = ..., recovery_steps: _Optional[int] = ...) -> None: ...

class FlaggedAction(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeastUnsafeAction(_message.Message):
    __slots__ = ("candidates",)
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    candidates: int
    def __init__(self, candidates: _Optional[int] = ...) -> None: ...

class ConstantAction(_message.Message):
    __slots__ = ("action",)
    ACTION_FIELD_NUMBER: _ClassVar[int]
    action: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, action: _Optional[_Iterable[float]] = ...) -> None: ...

class HoldLastAction(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BackupPolicy(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: _policy_pb2.PolicySelector
    def __init__(self, policy: _Optional[_Union[_policy_pb2.PolicySelector, _Mapping]] = ...) -> None: ...

class ControlStep(_message.Message):
    __slots__ = ("step", "observation", "cost_total", "sent_at")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    COST_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    step: int
    observation: _containers.RepeatedScalarFieldContainer[float]
    cost_total: _containers.RepeatedScalarFieldContainer[float]
    sent_at: _timestamp_pb2.Timestamp
    def __init__(self, step: _Optional[int] = ..., observation: _Optional[_Iterable[float]] = ..., cost_total: _Optional[_Iterable[float]] = ..., sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ControlResponse(_message.Message):
    __slots__ = ("opened", "result", "error", "notice")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    opened: SessionOpened
    result: ControlResult
    error: StepError
    notice: Notice
    def __init__(self, opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., result: _Optional[_Union[ControlResult, _Mapping]] = ..., error: _Optional[_Union[StepError, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("session_id", "policy", "cost_budget", "extent_steps", "next_step", "idle_timeout", "state")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    COST_BUDGET_FIELD_NUMBER: _ClassVar[int]
    EXTENT_STEPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    policy: _policy_pb2.ServedPolicy
    cost_budget: _containers.RepeatedScalarFieldContainer[float]
    extent_steps: int
    next_step: int
    idle_timeout: _duration_pb2.Duration
    state: bytes
    def __init__(self, session_id: _Optional[str] = ..., policy: _Optional[_Union[_policy_pb2.ServedPolicy, _Mapping]] = ..., cost_budget: _Optional[_Iterable[float]] = ..., extent_steps: _Optional[int] = ..., next_step: _Optional[int] = ..., idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., state: _Optional[bytes] = ...) -> None: ...

class ControlResult(_message.Message):
    __slots__ = ("step", "action", "prediction", "feasible", "chosen", "fallback", "budgets", "steps_left", "policy", "timing", "sent_at", "state")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    STEPS_LEFT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    step: int
    action: _containers.RepeatedScalarFieldContainer[float]
    prediction: _policy_pb2.Prediction
    feasible: bool
    chosen: int
    fallback: FallbackTaken
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    steps_left: int
    policy: _policy_pb2.ServedPolicy
    timing: StepTiming
    sent_at: _timestamp_pb2.Timestamp
    state: bytes
    def __init__(self, step: _Optional[int] = ..., action: _Optional[_Iterable[float]] = ..., prediction: _Optional[_Union[_policy_pb2.Prediction, _Mapping]] = ..., feasible: bool = ..., chosen: _Optional[int] = ..., fallback: _Optional[_Union[FallbackTaken, _Mapping]] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ..., steps_left: _Optional[int] = ..., policy: _Optional[_Union[_policy_pb2.ServedPolicy, _Mapping]] = ..., timing: _Optional[_Union[StepTiming, _Mapping]] = ..., sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[bytes] = ...) -> None: ...

class FallbackTaken(_message.Message):
    __slots__ = ("reason", "steps", "backup")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    reason: FallbackReason
    steps: int
    backup: _policy_pb2.ServedPolicy
    def __init__(self, reason: _Optional[_Union[FallbackReason, str]] = ..., steps: _Optional[int] = ..., backup: _Optional[_Union[_policy_pb2.ServedPolicy, _Mapping]] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("name", "spent", "left", "exhausted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    EXHAUSTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    spent: float
    left: float
    exhausted: bool
    def __init__(self, name: _Optional[str] = ..., spent: _Optional[float] = ..., left: _Optional[float] = ..., exhausted: bool = ...) -> None: ...

class StepTiming(_message.Message):
    __slots__ = ("queued", "checked", "computed")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    queued: _duration_pb2.Duration
    checked: _duration_pb2.Duration
    computed: _duration_pb2.Duration
    def __init__(self, queued: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., checked: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., computed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StepError(_message.Message):
    __slots__ = ("step", "status", "next_step", "state")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    step: int
    status: _status_pb2.Status
    next_step: int
    state: bytes
    def __init__(self, step: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., next_step: _Optional[int] = ..., state: _Optional[bytes] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: NoticeKind
    message: str
    def __init__(self, kind: _Optional[_Union[NoticeKind, str]] = ..., message: _Optional[str] = ...) -> None: ...
