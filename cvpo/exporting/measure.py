"""Fresh episodes of an exported policy: what they show of its predictions, and of its return and cost."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from cvpo.bundle import CalibratedMode, Constraint, Evaluation
from cvpo.calibration.calibrate import CalibratedMap, calibrate, calibrate_also
from cvpo.calibration.samples import single_costs
from cvpo.defaults import CALIBRATION_EPISODES, CONFIDENCE, EVALUATION_EPISODES, MISS_RATE
from cvpo.envs import VectorEnv
from cvpo.evaluate import Episode, OnProgress, ServedActor, run_episodes, summarize


@dataclass(frozen=True)
class Plan:
    """How an exported policy is measured."""

    calibration_episodes: int = CALIBRATION_EPISODES  # in each mode; 0: predictions are left uncalibrated
    evaluation_episodes: int = EVALUATION_EPISODES
    seed: int = 0  # of what is drawn: in splitting the episodes, in fitting to them, and where actions are sampled
    modes: tuple[CalibratedMode, ...] = ()  # to calibrate beside the deterministic one
    confidence: float = CONFIDENCE  # of cost_upper
    miss_rate: float = MISS_RATE


@dataclass(frozen=True)
class Measured:
    """What was found."""

    calibrated: CalibratedMap | None
    evaluations: tuple[Evaluation, ...]
    calibrating: tuple[Episode, ...]  # deterministic ones
    fresh: tuple[Episode, ...]  # that nothing was fitted to


def measure(
    env: VectorEnv,
    bundle: Path,
    constraints: Sequence[Constraint],
    normalize: Callable[[Tensor], Tensor],
    plan: Plan,
    write: Callable[[Path, CalibratedMap], Path],
    *,
    say: Callable[[str], None],
    progress: OnProgress,
) -> Measured:
    """Run episodes of a bundle's deterministic policy, calibrate on some and evaluate on others; then further modes.

    Args:
        env: where.
        bundle: its policy is asked, calibrated or not.
        constraints: C of them, in the order of the costs.
        normalize: maps observations [N, O] to those that the networks see.
        plan: how many episodes, and what is to be claimed.
        write: writes a bundle of the same policy with what was measured so far, for further modes to run, to a new
            folder, and returns its path.
        say: is told what goes on.
        progress: is told how far the episodes of each mode are.

    Raises:
        BundleError, ExportError, NonFiniteError, EnvError, WorkerError: what cannot be done, and what to do.
    """
    wanted = plan.calibration_episodes, plan.evaluation_episodes
    say("rollout {} episodes to calibrate and {} to evaluate".format(*wanted))
    episodes = run_episodes(env, ServedActor.from_bundle(bundle), sum(wanted), "deterministic", progress)
    shuffled = [episodes[i] for i in np.random.default_rng(plan.seed).permutation(len(episodes))]
    fresh, calibrating = shuffled[: plan.evaluation_episodes], shuffled[plan.evaluation_episodes :]
    calibrated = None
    if calibrating:
        say(f"calibrate on {len(calibrating)} episodes")
        calibrated = calibrate(
            calibrating,
            constraints,
            normalize,
            seed=plan.seed,
            confidence=plan.confidence,
            miss_rate=plan.miss_rate,
        )
        # What samples comes first: its map and levels are those that every shield chooses by.
        for mode in sorted(plan.modes, key=lambda mode: (mode.mode == "shielded", mode.candidates)):
            say(f"rollout {plan.calibration_episodes} episodes, {mode}")
            with tempfile.TemporaryDirectory() as scratch:
                so_far = write(Path(scratch) / "1", calibrated)
                actor = ServedActor.from_bundle(so_far, mode.mode, mode.candidates, plan.seed)
                rolled_out = run_episodes(env, actor, plan.calibration_episodes, str(mode), progress)
            calibrated = calibrate_also(calibrated, mode, rolled_out, constraints, normalize, seed=plan.seed)
    for sentence in calibrated.record.not_claimed if calibrated else ():
        say(f"warning {sentence}")
    limits = [constraint.limit_or_inf for constraint in constraints]
    costs = single_costs([episode.cost for episode in fresh])
    evaluation = summarize(fresh, limits, "deterministic").model_copy(update={"costs": costs})
    return Measured(calibrated, (evaluation,), tuple(calibrating), tuple(fresh))
