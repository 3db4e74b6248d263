"""The calls of PolicyService as values: what is sent, and how to read what comes back. How it travels is not said."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from numpy.typing import ArrayLike

from serve.codec import (
    decode_act_response,
    decode_description,
    decode_evaluate_response,
    encode_act_request,
    encode_situated_actions,
    encode_situations,
)
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.values import ActResult, EvaluateActionResult, Mode, PolicyDescription

R = TypeVar("R")

CLOSED = "The client is closed; make another one."


@dataclass(frozen=True)
class Call(Generic[R]):
    """One call."""

    method: str  # of PolicyService
    request: Message
    decode: Callable[[Any], R]  # of its response


def act(
    selector: pb.PolicySelector,
    observation: ArrayLike,
    steps_left: ArrayLike | None,
    cost_allowed: ArrayLike | None,
    mode: Mode,
) -> Call[ActResult]:
    """Ask for actions; see PolicyCaller.act."""
    situations, single = encode_situations(observation, steps_left, cost_allowed)

    def decode(response: pb.ActResponse) -> ActResult:
        result = decode_act_response(response)
        return result.single() if single else result

    return Call("Act", encode_act_request(selector, situations, mode), decode)


def evaluate_action(
    selector: pb.PolicySelector,
    observation: ArrayLike,
    action: ArrayLike,
    steps_left: ArrayLike | None,
    cost_allowed: ArrayLike | None,
) -> Call[EvaluateActionResult]:
    """Ask what actions would cost; see PolicyCaller.evaluate_action."""
    situated_actions, single = encode_situated_actions(observation, action, steps_left, cost_allowed)

    def decode(response: pb.EvaluateActionResponse) -> EvaluateActionResult:
        result = decode_evaluate_response(response)
        return result.single() if single else result

    return Call("EvaluateAction", pb.EvaluateActionRequest(policy=selector, situated_actions=situated_actions), decode)


def list_policies() -> Call[tuple[PolicyDescription, ...]]:
    """Ask which policies are served."""

    def decode(response: pb.ListPoliciesResponse) -> tuple[PolicyDescription, ...]:
        return tuple(decode_description(policy) for policy in response.policies)

    return Call("ListPolicies", pb.ListPoliciesRequest(), decode)


def get_policy(selector: pb.PolicySelector) -> Call[PolicyDescription]:
    """Ask about one policy."""
    return Call("GetPolicy", pb.GetPolicyRequest(policy=selector), lambda response: decode_description(response.policy))
