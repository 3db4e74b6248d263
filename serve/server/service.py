"""PolicyService: decode, ask the policy, encode. Errors are raised as they are; the interceptor gives them a status."""

import secrets
from collections.abc import Iterable
from dataclasses import replace

from serve.codec import (
    Limits,
    decode_mode,
    decode_situated_actions,
    decode_situations,
    encode_act_response,
    encode_description,
    encode_evaluate_response,
)
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceServicer
from serve.server.repository import Repository
from serve.server.runtime import Asked, PolicyRuntime
from serve.server.shadow import Shadow
from serve.server.telemetry import Metrics
from serve.values import (
    ActLists,
    CalibrationDescription,
    ConstraintDescription,
    Deterministic,
    Mode,
    PolicyDescription,
    Space,
)


class PolicyServicer(PolicyServiceServicer):
    """Answers from a repository. A request comes with its id, which decides whether a version on trial answers it."""

    def __init__(self, repository: Repository, limits: Limits, metrics: Metrics, shadow: Shadow | None = None) -> None:
        self._repository = repository
        self._limits = limits
        self._metrics = metrics
        self._shadow = shadow

    def Act(self, request: pb.ActRequest, request_id: str | None) -> pb.ActResponse:  # noqa: N802
        asked = self.read_act(request, request_id)
        return self.answer_act(asked, asked.answer())

    def read_act(self, request: pb.ActRequest, request_id: str | None) -> Asked:
        """Return what an ActRequest asks; raises what is wrong with it."""
        policy = self._select(request.policy, request_id)
        mode = _with_seed(decode_mode(request, self._limits, situations=len(request.situations)))
        return Asked(policy, decode_situations(request.situations, policy.frame, self._limits), mode)

    def answer_act(self, asked: Asked, result: ActLists) -> pb.ActResponse:
        """Return the answer to an ActRequest, for which the policy gave this result."""
        self._metrics.count_predictions(result.policy, result.prediction)
        if self._shadow is not None:
            self._shadow.compare(asked.situations, asked.mode, result)
        return encode_act_response(result)

    def EvaluateAction(self, request: pb.EvaluateActionRequest, request_id: str | None) -> pb.EvaluateActionResponse:  # noqa: N802
        policy = self._select(request.policy, request_id)
        situations, action = decode_situated_actions(request.situated_actions, policy.frame, self._limits)
        result = policy.evaluate_action(situations, action)
        self._metrics.count_predictions(policy.served, result.prediction)
        return encode_evaluate_response(result)

    def ListPolicies(self, request: pb.ListPoliciesRequest, request_id: str | None) -> pb.ListPoliciesResponse:  # noqa: N802
        policies = self._repository.snapshot.policies.values()
        served = [(policy.served, policy.loaded) for policy in policies if policy.served is not None]
        return pb.ListPoliciesResponse(policies=[encode_description(_describe(*policy)) for policy in served])

    def GetPolicy(self, request: pb.GetPolicyRequest, request_id: str | None) -> pb.GetPolicyResponse:  # noqa: N802
        policy = self._select(request.policy, None)
        loaded = self._repository.snapshot.policies[policy.served.name].loaded
        return pb.GetPolicyResponse(policy=encode_description(_describe(policy, loaded)))

    def count_pace(self, policy: pb.ServedPolicy, seconds: float) -> None:
        """Count an answer that took so long in the server against the policy's control period."""
        served = self._repository.snapshot.policies.get(policy.name)
        runtime = None if served is None else served.loaded.get(policy.version)  # None: retired meanwhile
        if runtime is not None and runtime.manifest.control_period_ms is not None:
            late = seconds * 1000 > runtime.manifest.control_period_ms
            self._metrics.count_pace(policy.name, policy.version, late=late)

    def _select(self, selector: pb.PolicySelector, request_id: str | None) -> PolicyRuntime:
        version = selector.version if selector.HasField("version") else None
        return self._repository.select(selector.name, version, selector.fingerprint, request_id)


def _with_seed(mode: Mode) -> Mode:
    """Return the mode with a seed made here where the request has none: a shadow must draw what was drawn."""
    if isinstance(mode, Deterministic) or mode.seed is not None:
        return mode
    return replace(mode, seed=secrets.randbits(64))


def _describe(policy: PolicyRuntime, versions: Iterable[int]) -> PolicyDescription:
    manifest = policy.manifest
    calibration = manifest.calibration
    infinity = float("inf")
    spaces = [
        Space(
            space.names,
            low=tuple(-infinity if bound is None else bound for bound in space.low),
            high=tuple(infinity if bound is None else bound for bound in space.high),
        )
        for space in (manifest.observation, manifest.action)
    ]
    return PolicyDescription(
        policy=policy.served,
        environment=manifest.provenance.environment,
        observation=spaces[0],
        action=spaces[1],
        constraints=tuple(
            ConstraintDescription(
                name=c.name,
                unit=c.unit,
                cost_limit=c.limit_or_inf,
                discount=c.discount,
                cost_threshold=c.threshold(),
            )
            for c in manifest.constraints
        ),
        horizon_steps=manifest.horizon_steps,
        window_steps=manifest.window_steps,
        control_period_seconds=None if manifest.control_period_ms is None else manifest.control_period_ms / 1000,
        safe_action=manifest.safe_action,
        calibration=None
        if calibration is None
        else CalibrationDescription(
            method=calibration.method,
            modes=tuple(m.mode if m.candidates == 1 else f"{m.mode}({m.candidates})" for m in calibration.modes),
            confidence=calibration.confidence,
            miss_rate=calibration.miss_rate,
            alarm_levels=calibration.alarm_levels,
            episodes=calibration.episodes,
        ),
        shift_threshold=manifest.observation_statistics.shift_threshold,
        versions=tuple(versions),
    )
