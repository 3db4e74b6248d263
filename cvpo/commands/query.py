"""Asking a policy service from a shell, as a robot would, and saying the answer to people."""

import dataclasses

import numpy as np

from cvpo.bundle import Mode
from cvpo.commands.document import json_text
from cvpo.errors import ServiceError
from serve.client import PolicyClient
from serve.client.channel import Tls
from serve.errors import PolicyServiceError
from serve.values import ActResult, CalibrationStatus, Deterministic, PolicyDescription, Sampled, Shielded
from serve.values import Mode as ServedMode

_STATUS = {
    CalibrationStatus.CALIBRATED: "calibrated",
    CalibrationStatus.NONE: "NOT calibrated",
    CalibrationStatus.MODE: "NOT calibrated for this mode and number of candidates",
    CalibrationStatus.SHIFTED: "NOT calibrated for this observation, which is outside of what training saw",
}


def describe(address: str, timeout_seconds: float, as_json: bool, tls: Tls | None = None) -> str:
    """What a server serves.

    Raises:
        ServiceError: no answer, and what to do.
    """
    try:
        with PolicyClient(address, timeout_seconds=timeout_seconds, tls=tls) as client:
            policies = client.list_policies()
    except PolicyServiceError as error:
        raise ServiceError(str(error)) from error
    if as_json:
        return json_text([dataclasses.asdict(policy) for policy in policies])
    return "\n".join(_description(policy) for policy in policies)


def ask(
    address: str,
    observation: list[float],
    *,
    policy: str,
    steps_left: int | None,
    cost_allowed: list[float] | None,
    mode: Mode,
    candidates: int,
    seed: int | None,
    timeout_seconds: float,
    as_json: bool,
    tls: Tls | None = None,
) -> str:
    """The action for one observation, and what is predicted of it.

    Raises:
        ServiceError: no answer, or a refusal that names the field.
    """
    served_mode: ServedMode = Deterministic()
    if mode == "sampled":
        served_mode = Sampled(seed=seed)
    elif mode == "shielded":
        served_mode = Shielded(candidates=candidates, seed=seed)
    try:
        with PolicyClient(address, policy, timeout_seconds=timeout_seconds, tls=tls) as client:
            result = client.act(observation, steps_left=steps_left, cost_allowed=cost_allowed, mode=served_mode)
    except PolicyServiceError as error:
        raise ServiceError(str(error)) from error
    if not as_json:
        return _answer(result)
    document = dataclasses.asdict(result)
    document["prediction"]["calibration_status"] = CalibrationStatus(int(result.prediction.calibration_status)).name
    return json_text(document)


def _description(policy: PolicyDescription) -> str:
    constraints = ", ".join(
        f"{c.name} <= {c.cost_limit:g} an episode" if np.isfinite(c.cost_limit) else f"{c.name} without a limit"
        for c in policy.constraints
    )
    return (
        f"{policy.policy.name} version {policy.policy.version} (fingerprint {policy.policy.fingerprint}): "
        f"{policy.environment}, observation [{len(policy.observation.names)}], action [{len(policy.action.names)}]; "
        f"{constraints}; {'calibrated' if policy.calibration else 'NOT calibrated: every answer is flagged'}"
    )


def _answer(result: ActResult) -> str:
    prediction = result.prediction
    status = _STATUS[CalibrationStatus(int(prediction.calibration_status))]
    lines = [
        f"action  {np.array2string(np.asarray(result.action), precision=4, separator=', ')}",
        f"policy  {result.policy.name} version {result.policy.version}; {1e3 * result.compute_seconds:.2f} ms",
        f"over the next {int(prediction.steps_left)} steps, {status}:",
    ]
    for i, name in enumerate(prediction.constraints):
        flag = "VIOLATION PREDICTED" if prediction.violation[i] else "no violation predicted"
        if prediction.violation[i] and prediction.violation_probability[i] <= prediction.alarm_level[i]:
            flag = "FLAGGED, since nothing measured backs this"
        lines.append(
            f"  {name}: expected {prediction.cost_to_go[i]:.3g}, at most {prediction.cost_upper[i]:.3g}; allowed "
            f"{prediction.cost_allowed[i]:.3g}, probability {prediction.violation_probability[i]:.3g}: {flag}"
        )
    return "\n".join(lines)
