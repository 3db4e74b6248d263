"""What a robot imports: PolicyClient, which asks a policy service and gets numpy arrays back.

It needs numpy, grpcio, protobuf and googleapis-common-protos, no more.

    with PolicyClient("127.0.0.1:50051", timeout_seconds=0.02) as policy:
        answer = policy.act(observation)
        robot.apply(answer.action)
"""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import ArrayLike

from serve.codec import (
    decode_act_response,
    decode_description,
    decode_evaluate_response,
    encode_act_request,
    encode_situated_actions,
    encode_situations,
)
from serve.errors import (
    DeadlineExceededError,
    FingerprintError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PolicyServiceError,
    ResourceExhaustedError,
    UnavailableError,
)
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.values import ActResult, Deterministic, EvaluateActionResult, Mode, PolicyDescription

M = TypeVar("M", bound=Message)

_CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),  # an answer that comes late is worth less than knowing at once
    ("grpc.enable_http_proxy", 0),  # a control loop does not go through a web proxy that happens to be set
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # is also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class PolicyCaller(ABC):
    """Turns arrays into requests and answers into arrays; how a request travels is its children's business."""

    def __init__(self, policy: str, version: int | None, fingerprint: str) -> None:
        self._selector = pb.PolicySelector(name=policy, version=version, fingerprint=fingerprint)

    def act(
        self,
        observation: ArrayLike,
        *,
        steps_left: ArrayLike | None = None,
        cost_allowed: ArrayLike | None = None,
        mode: Mode = Deterministic(),  # noqa: B008  # frozen
    ) -> ActResult:
        """Ask for an action.

        Args:
            observation: [O], or [N, O] for N robots; in the order and units of training.
            steps_left: coming steps that the predictions speak of; one number, or [N]. None: the policy's window.
            cost_allowed: undiscounted cost allowed over those steps, [C] or [N, C]; infinity: unconstrained. None: the
                limit's share of those steps.
            mode: how the action is chosen.

        Returns:
            The action and what is predicted of it; without the axis N for a single observation.

        Raises:
            PolicyServiceError: there is no answer; see the class.
        """
        situations, single = encode_situations(observation, steps_left, cost_allowed)
        request = encode_act_request(self._selector, situations, mode)
        result = decode_act_response(self._call("Act", request, pb.ActResponse))
        return result.single() if single else result

    def evaluate_action(
        self,
        observation: ArrayLike,
        action: ArrayLike,
        *,
        steps_left: ArrayLike | None = None,
        cost_allowed: ArrayLike | None = None,
    ) -> EvaluateActionResult:
        """Ask what an action from elsewhere would cost: a planner's, a person's, another policy's.

        Args:
            observation: [O] or [N, O].
            action: [A] or [N, A], environment units, within the bounds.
            steps_left: as for act.
            cost_allowed: as for act.

        Raises:
            PolicyServiceError: there is no answer; see the class.
        """
        situated_actions, single = encode_situated_actions(observation, action, steps_left, cost_allowed)
        request = pb.EvaluateActionRequest(policy=self._selector, situated_actions=situated_actions)
        result = decode_evaluate_response(self._call("EvaluateAction", request, pb.EvaluateActionResponse))
        return result.single() if single else result

    def list_policies(self) -> tuple[PolicyDescription, ...]:
        """Describe the served version of every policy, by name."""
        response = self._call("ListPolicies", pb.ListPoliciesRequest(), pb.ListPoliciesResponse)
        return tuple(decode_description(policy) for policy in response.policies)

    def get_policy(self) -> PolicyDescription:
        """Describe the policy that this object asks: spaces, constraints, calibration, safe action."""
        response = self._call("GetPolicy", pb.GetPolicyRequest(policy=self._selector), pb.GetPolicyResponse)
        return decode_description(response.policy)

    @abstractmethod
    def _call(self, method: str, request: Message, response_type: type[M]) -> M:
        """Bring a request to PolicyService and its answer back."""


class PolicyClient(PolicyCaller):
    """A policy service at an address. Safe to use from several threads; close it, or use it in a `with` block."""

    def __init__(
        self,
        address: str,
        policy: str = "",
        *,
        version: int | None = None,
        fingerprint: str = "",
        timeout_seconds: float = 0.5,
    ) -> None:
        """Prepare to ask; the connection is made with the first call.

        Args:
            address: HOST:PORT or unix:PATH.
            policy: name of the policy; may be empty where the server has only one.
            version: None for the served one.
            fingerprint: of the policy this robot was built for, as get_policy tells it; another one is refused. Empty:
                not checked.
            timeout_seconds: of every call. The default bears a first connection on a busy machine; a control loop sets
                its own, below its period.
        """
        super().__init__(policy, version, fingerprint)
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = PolicyServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, request: Message, response_type: type[M]) -> M:
        try:
            response: M = getattr(self._stub, method)(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            self._raise(error)
        return response

    def _raise(self, error: Any) -> NoReturn:
        """Raise the error that a status stands for."""
        code: grpc.StatusCode = error.code()
        message = str(error.details())
        match code:
            case grpc.StatusCode.INVALID_ARGUMENT:
                bad_request = _detail(error, error_details_pb2.BadRequest())
                violations = bad_request.field_violations if bad_request else ()
                if violations:
                    raise InvalidRequestError(violations[0].field, violations[0].description) from error
                raise InvalidRequestError("request", message) from error
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                # We never cancel: CANCELLED is what a stopping server says of calls that it has not taken up yet
                # (grpc/grpc issue 41785).
                retry = _detail(error, error_details_pb2.RetryInfo())
                if retry:
                    raise UnavailableError(
                        f"{self._address}: {message}", retry.retry_delay.ToTimedelta().total_seconds()
                    ) from error
                raise UnavailableError(
                    f"No server answers at {self._address}; start one with `cvpo serve BUNDLES`, or check the address "
                    f"({message})."
                ) from error
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceededError(
                    f"No answer from {self._address} within {self._timeout_seconds:g} s; allow more time with "
                    "timeout_seconds, or look at the server's load."
                ) from error
            case grpc.StatusCode.NOT_FOUND:
                raise NotFoundError(f"{self._address}: {message}") from error
            case grpc.StatusCode.FAILED_PRECONDITION:
                raise FingerprintError(f"{self._address}: {message}") from error
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise ResourceExhaustedError(
                    f"{self._address} takes no message of this size, or has too many calls at once ({message})."
                ) from error
            case grpc.StatusCode.INTERNAL:
                raise InternalError(f"{self._address}: {message}") from error
            case grpc.StatusCode.UNIMPLEMENTED:
                raise PolicyServiceError(
                    f"The server at {self._address} is no policy service of this version ({message})."
                ) from error
            case _:
                raise PolicyServiceError(f"{self._address} answered {code.name}: {message}") from error


def _detail(error: Any, wanted: M) -> M | None:
    """Fill `wanted` from the rich error's detail of its type and return it; None where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                details = status_pb2.Status.FromString(value).details
            except DecodeError:
                return None
            if any(detail.Unpack(wanted) for detail in details):
                return wanted
    return None
