"""From a bundle to its next version: the same networks, with predictions that are measured again."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from cvpo import seeds
from cvpo.bundle import GRAPHS, Bundle, CalibratedMode, Manifest, TrustedKeys, read_bundle
from cvpo.calibration.calibrate import DETERMINISTIC, MINIMUM_EPISODES, CalibratedMap
from cvpo.calibration.frozen import frozen_after_steps
from cvpo.calibration.shift import choose_threshold
from cvpo.envs import EnvSpec, VectorEnv
from cvpo.errors import ConfigError
from cvpo.evaluate import ENVS, OnProgress, ServedActor, no_progress, run_episodes
from cvpo.exporting.export import write_graphs
from cvpo.exporting.exported import ExportedAnswering, ExportedNetworks
from cvpo.exporting.graphs import graph_again
from cvpo.exporting.measure import Plan, measure
from cvpo.exporting.release import Released, installed_packages, new_identity
from cvpo.exporting.verify import verify_bundle


def recalibrate(
    path: Path,
    out: Path,
    *,
    env_id: str | None = None,
    plan: Plan,
    workers: int = 1,
    trusted: TrustedKeys | None = None,
    key: Ed25519PrivateKey | None = None,
    say: Callable[[str], None],
    progress: OnProgress = no_progress,
) -> Released:
    """Calibrate and evaluate the policy of a bundle on fresh episodes, and write what was found to a new bundle.

    Args:
        path: the bundle, calibrated or not; it stays as it is.
        out: new folder, .../NAME/VERSION or .../NAME.
        env_id: where to measure, in an environment with the same spaces and costs; None: where it was measured before.
        plan: how many episodes, and what is to be claimed; its seed is that of the episodes, too, and its modes come
            to those that the bundle is calibrated for.
        workers: simulator processes.
        trusted: the keys one of which must have signed the bundle; None: it need not be signed.
        key: to sign the new bundle with.
        say: is told what goes on.
        progress: is told how far the episodes of each mode are.

    Raises:
        ConfigError, BundleError, ExportError, EnvError, WorkerError: what cannot be done, and what to do.
    """
    if plan.calibration_episodes < MINIMUM_EPISODES:
        raise ConfigError(f"{plan.calibration_episodes} episodes are too few to calibrate; give {MINIMUM_EPISODES}.")
    torch.set_num_threads(1)  # as in open_target
    name, version = new_identity(out)
    bundle = verify_bundle(path, trusted)
    manifest, source = bundle.manifest, bundle.manifest.provenance
    networks = ExportedNetworks(bundle)
    env_id = env_id or source.measured_in or source.environment
    say(f"measure {manifest.name}, version {manifest.version}, in {env_id}")
    with VectorEnv(
        env_id,
        num_envs=ENVS,
        workers=workers,
        seed=plan.seed + seeds.RECALIBRATION,
        cost_names=tuple(constraint.name for constraint in manifest.constraints),
        max_episode_steps=manifest.horizon_steps,
    ) as env:
        _check_spaces(env.spec, manifest)
        real = run_episodes(env, ServedActor.from_bundle(path), 2)
        observations = np.concatenate([episode.observation for episode in real])
        measured = measure(
            env,
            path,
            manifest.constraints,
            networks.normalize,
            replace(plan, modes=_further_modes(manifest, plan)),
            lambda folder, so_far: _write(folder, bundle, networks, so_far, manifest, observations),
            say=say,
            progress=progress,
        )
    provenance = source.model_copy(
        update={
            "packages": installed_packages(),
            "calibrated_from": hashlib.sha256(bundle.manifest_data).hexdigest(),
            "measured_in": None if env_id == source.environment else env_id,
        }
    )
    scores = [networks.shift_score(torch.from_numpy(each.observation)) for each in measured.calibrating]
    shift = choose_threshold([score.double().numpy() for score in scores])
    updated = {
        "name": name,
        "version": version,
        "evaluations": measured.evaluations,
        "provenance": provenance,
        "observation_statistics": manifest.observation_statistics.model_copy(
            update={
                "shift_threshold": shift.value,
                "shift_false_alarm_rate": shift.false_alarm_rate,
                "shift_episodes": shift.episodes,
                "frozen_after_steps": frozen_after_steps([each.observation for each in measured.calibrating]),
            }
        ),
    }
    assert measured.calibrated is not None, "the plan has episodes to calibrate on"
    _write(
        out,
        bundle,
        networks,
        measured.calibrated,
        manifest.model_copy(update=updated),
        np.concatenate([observations, *(episode.observation for episode in measured.fresh[:2])]),
        key,
    )
    return Released(out, read_bundle(out).manifest)


def _further_modes(manifest: Manifest, plan: Plan) -> tuple[CalibratedMode, ...]:
    """Those that it is calibrated for, and those that are asked for, but for the deterministic one."""
    before = manifest.calibration.modes if manifest.calibration else ()
    return tuple(dict.fromkeys(mode for mode in (*before, *plan.modes) if mode != DETERMINISTIC))


def _write(
    out: Path,
    bundle: Bundle,
    networks: ExportedNetworks,
    calibrated: CalibratedMap,
    manifest: Manifest,
    observations: NDArray[np.float32],
    key: Ed25519PrivateKey | None = None,
) -> Path:
    """A bundle of the same networks with what was measured of them; otherwise it says what `manifest` does."""
    low, high = (np.array(bound, np.float64) for bound in (manifest.action.low, manifest.action.high))
    answering = ExportedAnswering(networks, calibrated.forecast, calibrated.cost_map, low, high)
    graphs = {name: graph_again(name, bundle.graph(name), answering) for name in GRAPHS}
    updated = manifest.model_copy(update={"calibration": calibrated.record})
    return write_graphs(out, updated, answering, graphs, observations, key=key)


def _check_spaces(spec: EnvSpec, manifest: Manifest) -> None:
    found = spec.observation_size, tuple(spec.action_low.tolist()), tuple(spec.action_high.tolist())
    made_for = manifest.observation.size, manifest.action.low, manifest.action.high
    if found != made_for:
        has, needs = (
            f"{size} values observed and actions from {[*low]} to {[*high]}" for size, low, high in (found, made_for)
        )
        raise ConfigError(
            f"{spec.env_id} has {has}; {manifest.name} is made for {needs}. Name an environment with the same spaces."
        )
