"""From a learned model to a bundle: graphs, parity check, manifest, model card; all of it or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from pydantic import ValidationError

from cvpo.bundle import (
    CRITIC_GRAPH,
    POLICY_GRAPH,
    Constraint,
    Evaluation,
    Manifest,
    ObservationStatistics,
    Precision,
    Provenance,
    Space,
    check_graph,
    write_bundle,
)
from cvpo.calibration.calibrate import CalibratedMap
from cvpo.calibration.costmap import uncalibrated_map
from cvpo.calibration.shift import ShiftScore, ShiftThreshold, fit_shift_score
from cvpo.envs.base import EnvSpec
from cvpo.errors import ExportError
from cvpo.exporting.card import model_card
from cvpo.exporting.graphs import critic_graph, policy_graph
from cvpo.exporting.parity import check_parity
from cvpo.exporting.precision import compare, rounded
from cvpo.exporting.record import record
from cvpo.exporting.served import Answering, Served
from cvpo.learning.networks import VARIANCE_FLOOR, Model

UNMEASURED_SHIFT = 1.0  # standard deviations outside of what was seen
PARITY_OBSERVATIONS = 256  # of those given, evenly spread: enough to meet every mode in many places, within seconds


@dataclass(frozen=True)
class NamedPolicy:
    """What is exported, and where it comes from."""

    name: str
    version: int
    model: Model
    reward_scale: float
    """The learner saw rewards divided by it."""
    spec: EnvSpec
    constraints: tuple[Constraint, ...]
    provenance: Provenance
    precision: Precision = "float32"
    """That the matrices of its networks are stored in."""


@dataclass(frozen=True)
class ShiftMonitor:
    """What tells observations that are outside of what was seen."""

    score: ShiftScore
    threshold: ShiftThreshold
    frozen_after_steps: tuple[int | None, ...]  # see `cvpo.calibration.frozen`


def export_bundle(
    path: Path,
    policy: NamedPolicy,
    observations: NDArray[np.float32],
    *,
    calibrated: CalibratedMap | None,
    shift: ShiftMonitor | None = None,
    evaluations: Sequence[Evaluation] = (),
    key: Ed25519PrivateKey | None = None,
) -> Path:
    """Write the bundle of a policy to a new folder and return its path.

    The safe action is zero, or the nearest to it that the bounds admit.

    Args:
        path: must not exist.
        policy: what to export.
        observations: real ones, [N, O], on which the graphs are held against torch, and networks in fewer bits against
            those in float32.
        calibrated: what was measured of its predicted costs; None: nothing, and the bundle says so.
        shift: what tells observations outside of what was seen; None: it is fitted to `observations`, and the bundle
            claims nothing of it.
        evaluations: episodes of this policy that nothing was chosen or fitted on.
        key: to sign the bundle with.

    Raises:
        ExportError: the graphs differ from torch, or networks in fewer bits too much from those in float32; or the
            parts do not make a valid manifest.
        BundleError: `path` exists or cannot be written, or the graphs are more than a bundle may hold.
    """
    cost_map = calibrated.cost_map if calibrated else uncalibrated_map(policy.constraints)
    spec = policy.spec
    forecast = calibrated.forecast if calibrated else None
    threshold = shift.threshold if shift else ShiftThreshold(UNMEASURED_SHIFT)
    frozen_after_steps = shift.frozen_after_steps if shift else ()
    manifest = make_manifest(policy, calibrated, threshold, frozen_after_steps, tuple(evaluations))
    _check_shape(observations, manifest)
    model, precision = policy.model, policy.precision
    if precision != "float32":
        model = rounded(model, precision)
        stored = compare(policy.model, model, precision, torch.from_numpy(_picked(observations)))
        manifest = manifest.model_copy(update={"stored_weights": stored})
    score = shift.score if shift else fit_shift_score(policy.model.normalizer, torch.from_numpy(observations))
    low, high = spec.action_low, spec.action_high
    served = Served(model, forecast, cost_map, low, high, policy.reward_scale, score).eval()
    graphs = {POLICY_GRAPH: policy_graph(served, precision), CRITIC_GRAPH: critic_graph(served, precision)}
    return write_graphs(path, manifest, served, graphs, observations, key=key)


def write_graphs(
    path: Path,
    manifest: Manifest,
    answering: Answering,
    graphs: Mapping[str, bytes],
    observations: NDArray[np.float32],
    *,
    key: Ed25519PrivateKey | None = None,
) -> Path:
    """Write a bundle of these graphs, once they are found to compute what they were made to.

    Args:
        path: must not exist.
        manifest: without its files.
        answering: what the graphs were made of.
        graphs: by file name.
        observations: real ones, [N, O], on which the graphs are held against torch.
        key: to sign the bundle with.

    Raises:
        ExportError: the graphs differ from torch.
        BundleError: `path` exists or cannot be written, or the graphs are more than a bundle may hold.
    """
    _check_shape(observations, manifest)
    seen = _picked(observations)
    check_parity(answering, graphs[POLICY_GRAPH], graphs[CRITIC_GRAPH], seen, manifest)
    for name, graph in graphs.items():
        check_graph(name, graph, manifest.sizes)
    return write_bundle(
        path,
        manifest,
        policy_graph=graphs[POLICY_GRAPH],
        critic_graph=graphs[CRITIC_GRAPH],
        model_card=model_card(manifest, {name: len(graph) for name, graph in graphs.items()}),
        golden=record(graphs, seen, manifest),
        key=key,
    )


def make_manifest(
    policy: NamedPolicy,
    calibrated: CalibratedMap | None,
    shift: ShiftThreshold,
    frozen_after_steps: tuple[int | None, ...],
    evaluations: tuple[Evaluation, ...],
) -> Manifest:
    """The manifest of a policy, without its files.

    Raises:
        ExportError: the parts do not make a valid one.
    """
    spec, seen = policy.spec, policy.model.normalizer
    size = spec.observation_size
    unbounded = (None,) * size
    try:
        return Manifest(
            name=policy.name,
            version=policy.version,
            observation=Space(names=_names("observation", size), low=unbounded, high=unbounded),
            action=Space(
                names=_names("action", spec.action_size),
                low=tuple(spec.action_low.tolist()),
                high=tuple(spec.action_high.tolist()),
            ),
            control_period_ms=spec.control_period_ms,
            safe_action=tuple(np.clip(0.0, spec.action_low, spec.action_high).tolist()),
            constraints=policy.constraints,
            calibration=calibrated.record if calibrated else None,
            observation_statistics=ObservationStatistics(
                mean=tuple(seen.mean[:size].tolist()),
                standard_deviation=tuple((seen.variance[:size] + VARIANCE_FLOOR).sqrt().tolist()),
                low=tuple(seen.low.tolist()),
                high=tuple(seen.high.tolist()),
                shift_threshold=shift.value,
                shift_false_alarm_rate=shift.false_alarm_rate,
                shift_episodes=shift.episodes,
                frozen_after_steps=frozen_after_steps,
            ),
            evaluations=evaluations,
            provenance=policy.provenance,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "parts"
        raise ExportError(f"{policy.name} cannot be exported: {error.title}, {where}: {first['msg']}.") from error


def _names(what: str, size: int) -> tuple[str, ...]:
    return tuple(f"{what}_{index}" for index in range(size))


def _picked(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most PARITY_OBSERVATIONS of them, evenly spread."""
    rows = np.linspace(0, len(observations) - 1, min(len(observations), PARITY_OBSERVATIONS), dtype=np.int64)
    return observations[rows].astype(np.float32)


def _check_shape(observations: NDArray[np.float32], manifest: Manifest) -> None:
    size = manifest.observation.size
    if observations.ndim != 2 or observations.shape[1] != size or not len(observations):
        raise ExportError(
            f"An export needs real observations of {manifest.provenance.environment} [N, {size}], "
            f"not {list(observations.shape)}."
        )
