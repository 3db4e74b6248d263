import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CalibrationStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALIBRATION_STATUS_UNSPECIFIED: _ClassVar[CalibrationStatus]
    CALIBRATION_STATUS_CALIBRATED: _ClassVar[CalibrationStatus]
    CALIBRATION_STATUS_NONE: _ClassVar[CalibrationStatus]
    CALIBRATION_STATUS_MODE: _ClassVar[CalibrationStatus]
    CALIBRATION_STATUS_EXTERNAL_ACTION: _ClassVar[CalibrationStatus]
    CALIBRATION_STATUS_SHIFTED: _ClassVar[CalibrationStatus]
CALIBRATION_STATUS_UNSPECIFIED: CalibrationStatus
CALIBRATION_STATUS_CALIBRATED: CalibrationStatus
CALIBRATION_STATUS_NONE: CalibrationStatus
CALIBRATION_STATUS_MODE: CalibrationStatus
CALIBRATION_STATUS_EXTERNAL_ACTION: CalibrationStatus
CALIBRATION_STATUS_SHIFTED: CalibrationStatus

class PolicySelector(_message.Message):
    __slots__ = ("name", "version", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    fingerprint: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Situation(_message.Message):
    __slots__ = ("observation", "steps_left", "cost_allowed")
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    STEPS_LEFT_FIELD_NUMBER: _ClassVar[int]
    COST_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    observation: _containers.RepeatedScalarFieldContainer[float]
    steps_left: int
    cost_allowed: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, observation: _Optional[_Iterable[float]] = ..., steps_left: _Optional[int] = ..., cost_allowed: _Optional[_Iterable[float]] = ...) -> None: ...

class Deterministic(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("seed",)
    SEED_FIELD_NUMBER: _ClassVar[int]
    seed: int
    def __init__(self, seed: _Optional[int] = ...) -> None: ...

class Shielded(_message.Message):
    __slots__ = ("candidates", "seed")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    candidates: int
    seed: int
    def __init__(self, candidates: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class ActRequest(_message.Message):
    __slots__ = ("policy", "situations", "deterministic", "sampled", "shielded")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SITUATIONS_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    SHIELDED_FIELD_NUMBER: _ClassVar[int]
    policy: PolicySelector
    situations: _containers.RepeatedCompositeFieldContainer[Situation]
    deterministic: Deterministic
    sampled: Sampled
    shielded: Shielded
    def __init__(self, policy: _Optional[_Union[PolicySelector, _Mapping]] = ..., situations: _Optional[_Iterable[_Union[Situation, _Mapping]]] = ..., deterministic: _Optional[_Union[Deterministic, _Mapping]] = ..., sampled: _Optional[_Union[Sampled, _Mapping]] = ..., shielded: _Optional[_Union[Shielded, _Mapping]] = ...) -> None: ...

class ActResponse(_message.Message):
    __slots__ = ("policy", "results", "compute_time")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    policy: ServedPolicy
    results: _containers.RepeatedCompositeFieldContainer[ActResult]
    compute_time: _duration_pb2.Duration
    def __init__(self, policy: _Optional[_Union[ServedPolicy, _Mapping]] = ..., results: _Optional[_Iterable[_Union[ActResult, _Mapping]]] = ..., compute_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ActResult(_message.Message):
    __slots__ = ("action", "prediction", "feasible", "chosen")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    action: _containers.RepeatedScalarFieldContainer[float]
    prediction: Prediction
    feasible: bool
    chosen: int
    def __init__(self, action: _Optional[_Iterable[float]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., feasible: bool = ..., chosen: _Optional[int] = ...) -> None: ...

class EvaluateActionRequest(_message.Message):
    __slots__ = ("policy", "situated_actions")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SITUATED_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    policy: PolicySelector
    situated_actions: _containers.RepeatedCompositeFieldContainer[SituatedAction]
    def __init__(self, policy: _Optional[_Union[PolicySelector, _Mapping]] = ..., situated_actions: _Optional[_Iterable[_Union[SituatedAction, _Mapping]]] = ...) -> None: ...

class SituatedAction(_message.Message):
    __slots__ = ("situation", "action")
    SITUATION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    situation: Situation
    action: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, situation: _Optional[_Union[Situation, _Mapping]] = ..., action: _Optional[_Iterable[float]] = ...) -> None: ...

class EvaluateActionResponse(_message.Message):
    __slots__ = ("policy", "predictions", "compute_time")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    policy: ServedPolicy
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    compute_time: _duration_pb2.Duration
    def __init__(self, policy: _Optional[_Union[ServedPolicy, _Mapping]] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., compute_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ServedPolicy(_message.Message):
    __slots__ = ("name", "version", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    fingerprint: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("constraints", "violation", "steps_left", "calibration_status", "reward_value", "shift_score")
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    VIOLATION_FIELD_NUMBER: _ClassVar[int]
    STEPS_LEFT_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_STATUS_FIELD_NUMBER: _ClassVar[int]
    REWARD_VALUE_FIELD_NUMBER: _ClassVar[int]
    SHIFT_SCORE_FIELD_NUMBER: _ClassVar[int]
    constraints: _containers.RepeatedCompositeFieldContainer[ConstraintPrediction]
    violation: bool
    steps_left: int
    calibration_status: CalibrationStatus
    reward_value: float
    shift_score: float
    def __init__(self, constraints: _Optional[_Iterable[_Union[ConstraintPrediction, _Mapping]]] = ..., violation: bool = ..., steps_left: _Optional[int] = ..., calibration_status: _Optional[_Union[CalibrationStatus, str]] = ..., reward_value: _Optional[float] = ..., shift_score: _Optional[float] = ...) -> None: ...

class ConstraintPrediction(_message.Message):
    __slots__ = ("name", "cost_value", "cost_to_go", "cost_upper", "violation_probability", "violation", "cost_allowed", "alarm_level")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COST_VALUE_FIELD_NUMBER: _ClassVar[int]
    COST_TO_GO_FIELD_NUMBER: _ClassVar[int]
    COST_UPPER_FIELD_NUMBER: _ClassVar[int]
    VIOLATION_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    VIOLATION_FIELD_NUMBER: _ClassVar[int]
    COST_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    ALARM_LEVEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    cost_value: float
    cost_to_go: float
    cost_upper: float
    violation_probability: float
    violation: bool
    cost_allowed: float
    alarm_level: float
    def __init__(self, name: _Optional[str] = ..., cost_value: _Optional[float] = ..., cost_to_go: _Optional[float] = ..., cost_upper: _Optional[float] = ..., violation_probability: _Optional[float] = ..., violation: bool = ..., cost_allowed: _Optional[float] = ..., alarm_level: _Optional[float] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyDescription]
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyDescription, _Mapping]]] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicySelector
    def __init__(self, policy: _Optional[_Union[PolicySelector, _Mapping]] = ...) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyDescription
    def __init__(self, policy: _Optional[_Union[PolicyDescription, _Mapping]] = ...) -> None: ...

class PolicyDescription(_message.Message):
    __slots__ = ("policy", "observation", "action", "constraints", "horizon_steps", "window_steps", "control_period", "safe_action", "calibration", "environment", "versions", "shift_threshold")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    HORIZON_STEPS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_STEPS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PERIOD_FIELD_NUMBER: _ClassVar[int]
    SAFE_ACTION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SHIFT_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    policy: ServedPolicy
    observation: Space
    action: Space
    constraints: _containers.RepeatedCompositeFieldContainer[ConstraintDescription]
    horizon_steps: int
    window_steps: int
    control_period: _duration_pb2.Duration
    safe_action: _containers.RepeatedScalarFieldContainer[float]
    calibration: CalibrationDescription
    environment: str
    versions: _containers.RepeatedScalarFieldContainer[int]
    shift_threshold: float
    def __init__(self, policy: _Optional[_Union[ServedPolicy, _Mapping]] = ..., observation: _Optional[_Union[Space, _Mapping]] = ..., action: _Optional[_Union[Space, _Mapping]] = ..., constraints: _Optional[_Iterable[_Union[ConstraintDescription, _Mapping]]] = ..., horizon_steps: _Optional[int] = ..., window_steps: _Optional[int] = ..., control_period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., safe_action: _Optional[_Iterable[float]] = ..., calibration: _Optional[_Union[CalibrationDescription, _Mapping]] = ..., environment: _Optional[str] = ..., versions: _Optional[_Iterable[int]] = ..., shift_threshold: _Optional[float] = ...) -> None: ...

class Space(_message.Message):
    __slots__ = ("names", "low", "high")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    low: _containers.RepeatedScalarFieldContainer[float]
    high: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., low: _Optional[_Iterable[float]] = ..., high: _Optional[_Iterable[float]] = ...) -> None: ...

class ConstraintDescription(_message.Message):
    __slots__ = ("name", "unit", "cost_limit", "discount", "cost_threshold")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    COST_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DISCOUNT_FIELD_NUMBER: _ClassVar[int]
    COST_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    cost_limit: float
    discount: float
    cost_threshold: float
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., cost_limit: _Optional[float] = ..., discount: _Optional[float] = ..., cost_threshold: _Optional[float] = ...) -> None: ...

class CalibrationDescription(_message.Message):
    __slots__ = ("method", "modes", "confidence", "miss_rate", "alarm_levels", "episodes")
    class EpisodesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    MISS_RATE_FIELD_NUMBER: _ClassVar[int]
    ALARM_LEVELS_FIELD_NUMBER: _ClassVar[int]
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    method: str
    modes: _containers.RepeatedScalarFieldContainer[str]
    confidence: float
    miss_rate: float
    alarm_levels: _containers.RepeatedScalarFieldContainer[float]
    episodes: _containers.ScalarMap[str, int]
    def __init__(self, method: _Optional[str] = ..., modes: _Optional[_Iterable[str]] = ..., confidence: _Optional[float] = ..., miss_rate: _Optional[float] = ..., alarm_levels: _Optional[_Iterable[float]] = ..., episodes: _Optional[_Mapping[str, int]] = ...) -> None: ...
