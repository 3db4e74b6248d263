"""From a run to a bundle: choose a checkpoint, export it, measure it as it will be served, and write what was found."""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cvpo import seeds
from cvpo.bundle import NAME_PATTERN, CurvePoint, Evaluation, Manifest, Precision, Provenance, read_bundle
from cvpo.calibration.frozen import frozen_after_steps
from cvpo.calibration.samples import learning_curve
from cvpo.calibration.shift import FALSE_ALARM_RATE, choose_threshold, fit_shift_score
from cvpo.errors import BundleError, CheckpointError, ConfigError
from cvpo.evaluate import ENVS, Episode, OnProgress, TorchActor, environments, no_progress, run_episodes
from cvpo.exporting.export import NamedPolicy, ShiftMonitor, export_bundle
from cvpo.exporting.measure import Plan, measure
from cvpo.learning.networks import Model
from cvpo.training.checkpoint import TrainedPolicy, checkpoint_steps, checkpoint_written, load_policy
from cvpo.training.metrics import read_evaluations

SHIFT_EPISODES = 30  # that the shift score is fitted to; with ten, fresh ones of PointCircle go far outside
PACKAGES = ("cvpo", "torch", "numpy", "gymnasium", "safety-gymnasium", "mujoco", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Released:
    """A bundle that was written."""

    path: Path
    manifest: Manifest


def release(
    run: Path,
    out: Path,
    *,
    select: bool = False,
    steps: int | None = None,
    plan: Plan = Plan(),  # noqa: B008  # frozen
    precision: Precision = "float32",
    workers: int = 1,
    key: Ed25519PrivateKey | None = None,
    say: Callable[[str], None],
    progress: OnProgress = no_progress,
) -> Released:
    """Export a checkpoint of a run, with episodes of the exported policy behind every claim.

    Args:
        run: folder of the run.
        out: new folder, .../NAME/VERSION or .../NAME.
        select: take the checkpoint that `choose_checkpoint` chooses, instead of the last.
        steps: take the checkpoint of this step.
        plan: how many episodes, and what is to be claimed; without any to calibrate on, every answer is flagged. The
            seed is the run's, whatever it says.
        precision: that the networks' matrices are stored in; all that is measured is measured of these.
        workers: simulator processes.
        key: to sign the bundle with.
        say: is told what goes on.
        progress: is told how far episodes are.

    Raises:
        ConfigError, CheckpointError, ExportError, BundleError, EnvError: what cannot be done, and what to do.
    """
    torch.set_num_threads(1)  # as in open_target
    name, version = new_identity(out)
    if select:
        steps, selection = choose_checkpoint(run)
    else:
        last = checkpoint_steps(run)[-1]
        steps = last if steps is None else steps
        selection = "the last checkpoint" if steps == last else "the checkpoint asked for"
    trained = load_policy(run, steps)
    say(f"export  the policy at {steps:,} steps: {selection}")
    policy = NamedPolicy(
        name=name,
        version=version,
        model=trained.model,
        reward_scale=trained.reward_scale,
        spec=trained.spec,
        constraints=trained.constraints,
        provenance=provenance_of(
            trained,
            f"{selection}, at {steps} steps",
            _created(run, steps),
            learning_curve(read_evaluations(run), steps),
        ),
        precision=precision,
    )
    environment = trained.config.environment
    seed = trained.config.seed + seeds.EXPORT
    with environments(environment, num_envs=ENVS, workers=workers, seed=seed) as env:
        real = run_episodes(env, TorchActor(trained.model, trained.spec), SHIFT_EPISODES)
        observations = np.concatenate([episode.observation for episode in real])
        with tempfile.TemporaryDirectory() as scratch:
            plain = export_bundle(Path(scratch) / "1", policy, observations, calibrated=None)
            measured = measure(
                env,
                plain,
                trained.constraints,
                trained.model.normalizer,
                replace(plan, seed=trained.config.seed),
                lambda path, calibrated: export_bundle(path, policy, observations, calibrated=calibrated),
                say=say,
                progress=progress,
            )
    calibrating = measured.calibrating
    path = export_bundle(
        out,
        policy,
        np.concatenate([observations, *(episode.observation for episode in measured.fresh[:2])]),
        calibrated=measured.calibrated,
        shift=monitor_shift(trained.model, real, calibrating) if calibrating else None,
        evaluations=measured.evaluations,
        key=key,
    )
    return Released(path, read_bundle(path).manifest)


def monitor_shift(
    model: Model,
    fitting: Sequence[Episode],
    calibrating: Sequence[Episode],
) -> ShiftMonitor:
    """What tells observations outside of what was seen, and frozen ones, by episodes that the score was not fitted to.

    Args:
        model: the policy that is exported.
        fitting: episodes to fit the score to.
        calibrating: others, in the mode that is served, to set the threshold on, and how long a value may not change.
    """
    normalizer = model.normalizer
    score = fit_shift_score(normalizer, torch.from_numpy(np.concatenate([episode.observation for episode in fitting])))
    scores = [
        score(normalizer.standardize(torch.from_numpy(episode.observation))).double().numpy() for episode in calibrating
    ]
    frozen = frozen_after_steps([episode.observation for episode in calibrating])
    return ShiftMonitor(score, choose_threshold(scores, FALSE_ALARM_RATE), frozen)


def identity(out: Path) -> tuple[str, int]:
    """Name and version of a bundle by its folder: .../NAME/VERSION, or .../NAME for version 1.

    Raises:
        ConfigError: it would give the policy a name that none can have.
    """
    out = out.absolute()
    versioned = out.name.isdecimal() and int(out.name) > 0
    name, version = (out.parent.name, int(out.name)) if versioned else (out.name, 1)
    if not re.fullmatch(NAME_PATTERN, name):  # `$` would pass over a line's end
        raise ConfigError(
            f"{name!r} is no name for a policy, which has up to 63 letters, digits, dots, dashes and underscores. "
            "Choose another --out; its last folders are NAME/VERSION."
        )
    return name, version


def new_identity(out: Path) -> tuple[str, int]:
    """Name and version of a bundle that is to be written, before minutes are spent on what would go there.

    Raises:
        ConfigError: it would give the policy a name that none can have.
        BundleError: something is there already, or nothing can be written there.
    """
    name, version = identity(out)
    if out.exists():
        raise BundleError(f"{out} already exists, and bundles are immutable. Choose another --out.")
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise BundleError(f"Cannot write {out}: {nearest} is no folder that you may write to. Choose another --out.")
    return name, version


def choose_checkpoint(run: Path) -> tuple[int, str]:
    """The evaluated checkpoint with the highest return among those under every limit; its steps, and how it was chosen.

    "Under" is judged by the upper end of the cost's 95 % interval where any checkpoint passes that, else by the mean.
    Of equals the newest is taken: while a run holds its policy, evaluations are all the same, and the critics learn on.

    Raises:
        CheckpointError: none was evaluated, or none is under the limit.
    """
    saved = checkpoint_steps(run)
    limits = load_policy(run, saved[-1]).config.cost_limits
    evaluations = {s: e for s, e in read_evaluations(run).items() if s in saved}
    if not evaluations:
        raise CheckpointError(f"{run} has no evaluated checkpoint to choose from; export without --select.")

    def under(evaluation: Evaluation, end: str) -> bool:
        return all(getattr(c, end) <= limit for c, limit in zip(evaluation.episode_cost, limits, strict=True))

    for end, judged in (("high", "the upper end of its cost's interval"), ("mean", "its mean cost")):
        safe = {s: e for s, e in evaluations.items() if under(e, end)}
        if safe:
            steps = max(safe, key=lambda s: (safe[s].episode_return.mean, s))
            return steps, (
                f"the one with the highest return of {len(safe)} checkpoints under the limit by {judged}, "
                f"of {len(evaluations)} evaluated on {evaluations[steps].episodes} episodes each"
            )
    nearest = min(
        ([cost.mean for cost in e.episode_cost] for e in evaluations.values()),
        key=lambda costs: max(cost - limit for cost, limit in zip(costs, limits, strict=True)),
    )
    costs = ", ".join(f"{cost:.1f} / {limit:g}" for cost, limit in zip(nearest, limits, strict=True))
    raise CheckpointError(
        f"No evaluated checkpoint of {run} is under its limit (the nearest has cost / limit {costs}). Train longer, or "
        "export the last one without --select."
    )


def _created(run: Path, steps: int) -> str:
    """When the checkpoint was written, so that a second export of it is the same to the byte; or SOURCE_DATE_EPOCH.

    That is what reproducible builds agree on: https://reproducible-builds.org/specs/source-date-epoch/
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        seconds = checkpoint_written(run, steps) if given is None else int(given)
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"SOURCE_DATE_EPOCH is {given!r}, and not a number of seconds since 1970.") from error


def provenance_of(
    trained: TrainedPolicy, selection: str, created: str, curve: tuple[CurvePoint, ...] = ()
) -> Provenance:
    """Where a policy comes from: how its checkpoint was chosen, when that was written, and how the run came to it."""
    return Provenance(
        environment=trained.spec.env_id,
        seed=trained.config.seed,
        steps=trained.steps,
        selection=selection,
        created=created,
        packages=installed_packages(),
        config=trained.config.model_dump(mode="json"),
        learning_curve=curve,
    )


def installed_packages() -> dict[str, str]:
    """Versions of what computes a bundle, and of what its policy is measured in."""
    return {name: metadata.version(name) for name in PACKAGES if _installed(name)}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
