"""How far predicted costs and flags can be trusted, measured on episodes of the policy as it will be served.

Four groups of episodes, none used twice: `fit` and `calibrate` make the map of costs (cvpo.conformal), `alarm` chooses
the probability over which the flag is raised, and `test` shows what came of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo.bundle import CalibratedMode, Calibration, CalibrationResult, Constraint
from cvpo.conformal import conformal_map, cost_values, float32, window_cost
from cvpo.costmap import CostMap
from cvpo.errors import ConfigError, ExportError, NonFiniteError
from cvpo.evaluate import Episode

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

MINIMUM_EPISODES = 8
DETERMINISTIC = CalibratedMode(mode="deterministic")

BUDGETS = (0.25, 0.5, 1.0, 2.0)  # of the limit: alarm levels must serve requests that allow more or less than it


@dataclass(frozen=True)
class CalibratedMap:
    """The map that goes into the graphs, and what the manifest says of it."""

    cost_map: CostMap
    record: Calibration


def calibrate(
    episodes: Sequence[Episode],
    constraints: Sequence[Constraint],
    *,
    seed: int,
    mode: CalibratedMode = DETERMINISTIC,
    confidence: float = 0.9,
    miss_rate: float = 0.05,
) -> CalibratedMap:
    """Measure the map of costs on episodes of the exported policy.

    What its bound and probabilities claim is said at `conformal_map`, what its alarm levels claim at `choose_level`.

    Args:
        episodes: in the mode that will be served, with the critic's `cost_value` of each action taken. Of 100, 30 fit,
            30 calibrate, 25 choose alarm levels, 15 test.
        constraints: C of them, in the order of the costs.
        seed: of the random split.
        mode: how the episodes' actions were chosen.
        confidence: of `cost_upper`.
        miss_rate: of the violations ahead of an episode's steps, the expected share that no flag announces.

    Raises:
        ConfigError: `confidence` or `miss_rate` is not between 0 and 1.
        ExportError: fewer episodes than MINIMUM_EPISODES, or without cost values.
        NonFiniteError: a cost or a cost value is NaN or infinite.
    """
    if not (0 < confidence < 1 and 0 < miss_rate < 1):
        raise ConfigError(f"confidence {confidence:g} and miss_rate {miss_rate:g} must lie between 0 and 1.")
    _check(episodes, len(constraints), constraints[0].horizon_steps)
    groups = _split(episodes, confidence, np.random.default_rng(seed))
    cost_map = conformal_map(groups["fit"], groups["calibrate"], constraints, confidence)
    trials = {name: [try_map(cost_map, episode, constraints) for episode in groups[name]] for name in ("alarm", "test")}
    alarms = [choose_level(trials["alarm"], index, confidence, miss_rate) for index in range(len(constraints))]
    notes = [f"{c.name}: {alarm.note}" for c, alarm in zip(constraints, alarms, strict=True)]
    record = Calibration(
        method=(
            "Conformal predictive distribution of the cost of the next steps, tabled over steps left and cost value; "
            "episodes weigh the same, each shared by its steps (Lee, Barber and Willett, arXiv 2306.06342). "
            f"Alarm levels: {'; '.join(notes)}."
        ),
        modes=(mode,),
        confidence=confidence,
        miss_rate=miss_rate,
        alarm_levels=tuple(alarm.level for alarm in alarms),
        episodes={name: len(group) for name, group in groups.items()},
        results=tuple(
            _result(cost_map, groups["test"], trials["test"], index, constraint, alarm.level)
            for index, (constraint, alarm) in enumerate(zip(constraints, alarms, strict=True))
        ),
        not_claimed=(
            *_no_bound(len(groups["calibrate"]), confidence),
            *(f"{c.name}: {alarm.shortage}" for c, alarm in zip(constraints, alarms, strict=True) if alarm.shortage),
        ),
    )
    return CalibratedMap(cost_map, record)


def _check(episodes: Sequence[Episode], num_costs: int, horizon: int) -> None:
    if len(episodes) < MINIMUM_EPISODES:
        raise ExportError(
            f"Calibration needs at least {MINIMUM_EPISODES} episodes and is of use from about 40; it got "
            f"{len(episodes)}. Give it more, or export without calibration."
        )
    for number, episode in enumerate(episodes):
        if len(episode.cost) > horizon:
            raise ExportError(f"Episode {number} has {len(episode.cost)} steps, more than the horizon of {horizon}.")
        if episode.cost_value is None or episode.cost_value.shape != (len(episode.cost), num_costs):
            raise ExportError(
                f"Episode {number} carries no cost value for each of its steps and {num_costs} constraints."
            )
        for name, value in {"cost": episode.cost, "cost_value": episode.cost_value}.items():
            if not np.isfinite(value).all():
                raise NonFiniteError(f"{name} of episode {number} is not finite; its critic cannot be calibrated.")


def _split(episodes: Sequence[Episode], confidence: float, generator: np.random.Generator) -> dict[str, list[Episode]]:
    """Groups by their use. To calibrate: three in ten, or as many as the confidence needs, but at most half."""
    count = len(episodes)
    calibrate = min(max(round(0.3 * count), _needed(confidence)), count // 2)
    alarm = round(0.36 * (count - calibrate))
    test = round(0.21 * (count - calibrate))
    order = [episodes[index] for index in generator.permutation(count)]
    ends = np.cumsum([calibrate, alarm, test])
    return {
        "fit": order[ends[2] :],
        "calibrate": order[: ends[0]],
        "alarm": order[ends[0] : ends[1]],
        "test": order[ends[1] : ends[2]],
    }


def _needed(confidence: float) -> int:
    """Episodes n without which no bound holds: n/(n + 1) must reach the confidence."""
    return math.ceil(confidence / (1 - confidence) - 1e-9)


def _no_bound(count: int, confidence: float) -> tuple[str, ...]:
    needed = _needed(confidence)
    if count >= needed:
        return ()
    return (
        f"No bound: confidence {confidence:g} needs {needed} calibrating episodes and there were {count}; "
        "cost_upper is infinite.",
    )


@dataclass(frozen=True)
class Trial:
    """What the map said of one episode, and what came, for Q spans of steps and BUDGETS of each."""

    covered: Bools  # [Q, C], the cost was within cost_upper
    probability: Array  # [Q · budgets, C]
    violated: Bools  # [Q · budgets, C], the cost exceeded what was allowed
    judged: Bools  # [Q · budgets, C]; not where nothing was limited, or the budget was spent already


def try_map(cost_map: CostMap, episode: Episode, constraints: Sequence[Constraint]) -> Trial:
    """Ask as the service is asked: over a window with its share of the limit, and over what is left of an episode."""
    horizon, window = constraints[0].horizon_steps, constraints[0].window_steps
    start = np.arange(len(episode.cost))
    limit = np.array([np.inf if c.cost_limit is None else c.cost_limit for c in constraints])
    budget = np.multiply.outer(BUDGETS, limit)[:, None]  # [budgets, 1, C]
    spent = episode.cost.cumsum(0) - episode.cost  # [L, C]
    covered, probability, violated, judged = [], [], [], []
    for steps, allowed in (
        (np.full(len(start), window), budget * window / horizon + np.zeros_like(spent)),
        (horizon - start, budget - spent),
    ):
        cost, observed = window_cost(episode, steps)
        realized = float32(cost[observed])
        cost_value = float32(cost_values(episode)[observed]).unsqueeze(-1)
        for number, some in enumerate(allowed[:, observed]):
            prediction = cost_map(cost_value, torch.from_numpy(steps[observed]), float32(some))
            if number == 0:
                covered.append((realized <= prediction.cost_upper[..., 0]).numpy())
            probability.append(prediction.violation_probability[..., 0].double().numpy())
            violated.append((realized > float32(some)).numpy())
            judged.append(np.isfinite(some) & (some >= 0))
    return Trial(*(np.concatenate(part) for part in (covered, probability, violated, judged)))


@dataclass(frozen=True)
class Alarm:
    """The probability over which the flag is raised, and how it was found."""

    level: float
    note: str
    shortage: str | None = None  # why the miss rate is not claimed


def choose_level(trials: Sequence[Trial], index: int, confidence: float, miss_rate: float) -> Alarm:
    """The highest level that keeps the expected share of missed violations in a fresh episode at most `miss_rate`.

    Conformal risk control (Angelopoulos et al., arXiv 2208.02814): the mean over n episodes with violations, and one
    more that misses them all, is at most `miss_rate`. That takes n >= 1/miss_rate - 1. With fewer, the mean over those
    there are must be, and the level is not above 1 - confidence: the flag is raised at least wherever cost_upper
    exceeds what is allowed.
    """
    announced = [trial.probability[trial.judged[:, index] & trial.violated[:, index], index] for trial in trials]
    announced = [probability for probability in announced if len(probability)]
    # Risk rises where a violation goes unannounced: what is worth trying lies just below, in the graphs' float32.
    announcements = np.unique(np.concatenate([[0.0], *announced])).astype(np.float32)
    levels = np.nextafter(announcements, np.float32(0), dtype=np.float32).astype(np.float64)
    missed = np.array([[(probability <= level).mean() for level in levels] for probability in announced])
    count = len(announced)
    needed = math.ceil(1 / miss_rate - 1 - 1e-9)
    enough = count >= needed
    risk = (missed.sum(0) + enough) / max(count + enough, 1)
    level = float(levels[risk <= miss_rate + 1e-9][-1]) if count else 1.0
    if enough:
        return Alarm(level, f"{level:.3g}, chosen on {count} episodes with violations")
    level = min(level, round(1 - confidence, 9))
    return Alarm(
        level,
        f"{level:.3g}, kept low: the flag is raised at least wherever cost_upper exceeds what is allowed",
        f"No miss rate: {miss_rate:.0%} needs {needed} episodes with violations and there were {count}.",
    )


def _result(
    cost_map: CostMap,
    episodes: Sequence[Episode],
    trials: Sequence[Trial],
    index: int,
    constraint: Constraint,
    alarm_level: float,
) -> CalibrationResult:
    """Means over test episodes, each of which counts the same however many of its steps were asked about."""
    coverage, missed, flagged = [], [], []
    for trial in trials:
        judged, violated = trial.judged[:, index], trial.violated[:, index]
        flags = trial.probability[:, index] > alarm_level
        coverage += _mean(trial.covered[:, index])
        missed += _mean(~flags[judged & violated])
        flagged += _mean(flags[judged & ~violated])
    first = torch.from_numpy(np.stack([cost_values(episode)[0] for episode in episodes]).astype(np.float32))
    _, cost_to_go = cost_map.atoms(first.unsqueeze(-1), torch.full((len(episodes),), constraint.horizon_steps))
    return CalibrationResult(
        constraint=constraint.name,
        test_episodes=len(episodes),
        coverage=float(np.mean(coverage)) if coverage else 0.0,
        missed_share=float(np.mean(missed)) if missed else None,
        flagged_share=float(np.mean(flagged)) if flagged else 0.0,
        cost_to_go_mean=float(cost_to_go[:, index].mean()),
        episode_cost_mean=float(np.mean([episode.cost[:, index].sum() for episode in episodes])),
    )


def _mean(values: Bools) -> list[float]:
    return [float(values.mean())] if len(values) else []
