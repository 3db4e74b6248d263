from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServingPlan(_message.Message):
    __slots__ = ("pinned", "canary", "shadow")
    PINNED_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    pinned: int
    canary: Canary
    shadow: int
    def __init__(self, pinned: _Optional[int] = ..., canary: _Optional[_Union[Canary, _Mapping]] = ..., shadow: _Optional[int] = ...) -> None: ...

class Canary(_message.Message):
    __slots__ = ("version", "share")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    version: int
    share: float
    def __init__(self, version: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class PolicyServing(_message.Message):
    __slots__ = ("name", "plan", "served", "loaded", "problem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    plan: ServingPlan
    served: int
    loaded: _containers.RepeatedScalarFieldContainer[int]
    problem: str
    def __init__(self, name: _Optional[str] = ..., plan: _Optional[_Union[ServingPlan, _Mapping]] = ..., served: _Optional[int] = ..., loaded: _Optional[_Iterable[int]] = ..., problem: _Optional[str] = ...) -> None: ...

class RefusedBundle(_message.Message):
    __slots__ = ("path", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    reason: str
    def __init__(self, path: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GetServingRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetServingResponse(_message.Message):
    __slots__ = ("policies", "refused")
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyServing]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedBundle]
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyServing, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[RefusedBundle, _Mapping]]] = ...) -> None: ...

class SetServingRequest(_message.Message):
    __slots__ = ("name", "plan")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    name: str
    plan: ServingPlan
    def __init__(self, name: _Optional[str] = ..., plan: _Optional[_Union[ServingPlan, _Mapping]] = ...) -> None: ...

class SetServingResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyServing
    def __init__(self, policy: _Optional[_Union[PolicyServing, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyServing
    def __init__(self, policy: _Optional[_Union[PolicyServing, _Mapping]] = ...) -> None: ...
