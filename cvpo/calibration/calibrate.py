"""How far predicted costs and flags can be trusted, measured on episodes of the policy as it will be served.

Four groups of episodes, none used twice: `fit` and `calibrate` make the map of costs (`conformal`), `alarm` chooses the
probability over which the flag is raised, and `test` shows what came of it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from cvpo.bundle import CalibratedMode, Calibration, Constraint, ModeResult
from cvpo.calibration.alarm import Alarm, alarms_needed, choose_level, lead
from cvpo.calibration.budgets import sessions
from cvpo.calibration.conformal import conformal_map, covered
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.forecast_fit import ForecastEpisode, fit_forecast
from cvpo.calibration.results import Tested, example_of, result_of
from cvpo.defaults import CONFIDENCE, MISS_RATE
from cvpo.errors import ConfigError, ExportError, NonFiniteError
from cvpo.evaluate import Episode

Fit = Callable[[Sequence[Episode], Sequence[Constraint], Callable[[Tensor], Tensor], int], CostForecast]

MINIMUM_EPISODES = 8
DETERMINISTIC = CalibratedMode(mode="deterministic")

ENOUGH_CALIBRATE, ENOUGH_ALARM = 100, 80  # episodes: of those beyond, most fit
MOST_TEST = 50


@dataclass(frozen=True)
class CalibratedMap:
    """What goes into the graphs, what the manifest says of it, and what a further mode takes to say it anew."""

    forecast: CostForecast
    cost_map: CostMap
    record: Calibration
    alarms: tuple[Alarm, ...]  # of each constraint the lowest so far
    tested: tuple[Tested, ...]  # by mode


def calibrate(
    episodes: Sequence[Episode],
    constraints: Sequence[Constraint],
    normalize: Callable[[Tensor], Tensor],
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    miss_rate: float = MISS_RATE,
    fit: Fit = fit_forecast,
) -> CalibratedMap:
    """Fit the forecast and measure the map of costs on episodes of the exported policy.

    What the map's bound and probabilities claim is said at `conformal_map`, what the alarm levels do at `choose_level`.

    Args:
        episodes: of the deterministic policy, with the critic's `cost_value` of each action taken. Of 100, 30 fit,
            30 calibrate, 25 choose alarm levels, 15 test; of many, most fit.
        constraints: C of them, in the order of the costs.
        normalize: maps observations [N, O] to those that the networks see.
        seed: of the random split and of the fit.
        confidence: of `cost_upper`.
        miss_rate: of the sessions that exceed their budget, and not too soon, the expected share that no flag announces
            in time.
        fit: makes the forecast.

    Raises:
        ConfigError: `confidence` or `miss_rate` is not between 0 and 1.
        ExportError: fewer episodes than MINIMUM_EPISODES, or without cost values.
        NonFiniteError: a cost or a cost value is NaN or infinite.
    """
    if not (0 < confidence < 1 and 0 < miss_rate < 1):
        raise ConfigError(f"confidence {confidence:g} and miss_rate {miss_rate:g} must lie between 0 and 1.")
    _check(episodes, len(constraints), constraints[0].horizon_steps)
    split = _split(episodes, confidence, miss_rate, np.random.default_rng(seed))
    forecast = fit(split["fit"], constraints, normalize, seed)
    groups = {
        name: [ForecastEpisode(episode, forecast, normalize) for episode in group] for name, group in split.items()
    }
    cost_map = conformal_map(groups["fit"], groups["calibrate"], constraints, confidence)
    lead_steps = lead(constraints[0].window_steps)
    alarms = tuple(
        choose_level(
            [sessions(cost_map, episode, constraint, index) for episode in groups["alarm"]],
            lead_steps,
            confidence,
            miss_rate,
        )
        for index, constraint in enumerate(constraints)
    )
    tested = (Tested(DETERMINISTIC, {name: len(group) for name, group in groups.items()}, groups["test"]),)
    not_claimed = (
        *_no_bound(len(groups["calibrate"]), confidence),
        *(f"{c.name}: {alarm.shortage}" for c, alarm in zip(constraints, alarms, strict=True) if alarm.shortage),
    )
    record = _record(cost_map, alarms, tested, constraints, miss_rate, not_claimed)
    return CalibratedMap(forecast, cost_map, record, alarms, tested)


def calibrate_also(
    calibrated: CalibratedMap,
    mode: CalibratedMode,
    episodes: Sequence[Episode],
    constraints: Sequence[Constraint],
    normalize: Callable[[Tensor], Tensor],
    *,
    seed: int,
) -> CalibratedMap:
    """Make bounds and probabilities hold in a further mode, too, by episodes of it: of each the more careful counts.

    A shielded policy chooses by flags, with the map and the levels that stand before the first shield. It must have
    been rolled out with those, and they stay: its episodes make what is predicted of the chosen action more careful,
    and nothing else, so that shields of several K are all served as they were rolled out. Therefore they come last.
    Each of their episodes had the limits for its budgets, with which alone they are tested. A sampled policy's
    episodes may lower the alarm levels.

    Args:
        calibrated: so far; what the episodes were rolled out with, where they are shielded.
        mode: how the episodes' actions were chosen.
        episodes: of these, half are to calibrate, the others to test; where they are not shielded, a quarter is left
            for alarm levels.
        constraints, normalize, seed: as for `calibrate`.

    Raises:
        ExportError, NonFiniteError: as by `calibrate`.
    """
    _check(episodes, len(constraints), constraints[0].horizon_steps)
    record, shielded = calibrated.record, mode.mode == "shielded"
    assert shielded or record.modes[-1].mode != "shielded", "it would change what a shield was rolled out with"
    order = np.random.default_rng(seed).permutation(len(episodes))
    followed = [ForecastEpisode(episodes[i], calibrated.forecast, normalize) for i in order]
    ends = len(followed) // 2, len(followed) // 2 + (0 if shielded else len(followed) // 4)
    groups = {"calibrate": followed[: ends[0]], "alarm": followed[ends[0] : ends[1]], "test": followed[ends[1] :]}
    within = covered(groups["calibrate"], calibrated.cost_map, constraints[0])
    cost_map = calibrated.cost_map.also_covering(within, shielded)
    alarms = list(calibrated.alarms)
    not_claimed = [f"{mode}: {sentence}" for sentence in _no_bound(len(groups["calibrate"]), record.confidence)]
    if shielded:
        not_claimed.append(
            f"{mode}: no miss rate, for its alarm levels are those it chooses by; and nothing with another budget than "
            "the limit, which all its episodes had."
        )
    else:
        for index, constraint in enumerate(constraints):
            tried = [sessions(cost_map, episode, constraint, index) for episode in groups["alarm"]]
            alarm = choose_level(tried, record.lead_steps, record.confidence, record.miss_rate)
            if alarm.level < alarms[index].level:
                alarms[index] = replace(alarm, note=f"{alarm.note} ({mode})")
            not_claimed += [f"{mode}, {constraint.name}: {alarm.shortage}"] if alarm.shortage else []
    uses = {use: len(group) for use, group in groups.items() if group}
    tested = (*calibrated.tested, Tested(mode, uses, groups["test"]))
    further = _record(cost_map, alarms, tested, constraints, record.miss_rate, (*record.not_claimed, *not_claimed))
    return CalibratedMap(calibrated.forecast, cost_map, further, tuple(alarms), tested)


def _record(
    cost_map: CostMap,
    alarms: Sequence[Alarm],
    tested: Sequence[Tested],
    constraints: Sequence[Constraint],
    miss_rate: float,
    not_claimed: tuple[str, ...],
) -> Calibration:
    """What the manifest says. Every figure, of whichever mode, is of this map at these levels."""
    limited = list(enumerate(zip(constraints, alarms, strict=True)))
    first, *others = (
        ModeResult(
            mode=each.mode,
            episodes=each.uses,
            results=tuple(result_of(cost_map, each, index, c, alarm.level) for index, (c, alarm) in limited),
        )
        for each in tested
    )
    examples = [example_of(cost_map, tested[0].episodes, index, c) for index, (c, _) in limited]
    notes = [f"{c.name}: {alarm.note}" for _, (c, alarm) in limited]
    return Calibration(
        method=(
            "Conformal predictive distribution of the cost of the next steps, tabled over steps left and a forecast "
            "from observation and cost value; episodes weigh the same, each shared by its steps (Lee, Barber and "
            f"Willett, arXiv 2306.06342). Alarm levels: {'; '.join(notes)}."
        ),
        modes=tuple(each.mode for each in tested),
        confidence=cost_map.confidence,
        miss_rate=miss_rate,
        lead_steps=lead(constraints[0].window_steps),
        alarm_levels=tuple(alarm.level for alarm in alarms),
        episodes=first.episodes,
        results=tuple(
            result.model_copy(update={"example": example})
            for result, example in zip(first.results, examples, strict=True)
        ),
        other_modes=tuple(others),
        not_claimed=not_claimed,
    )


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


def least_episodes(confidence: float, miss_rate: float) -> tuple[int, int]:
    """How many episodes `calibrate` needs at least to claim a bound with this confidence, and to claim this miss rate.

    For the miss rate it may take more, since only those that exceed a budget speak of it, and fully if all do as often.
    """
    alarms = alarms_needed(miss_rate)
    counts = itertools.count(MINIMUM_EPISODES)
    return 2 * _needed(confidence), next(n for n in counts if _sizes(n, confidence, miss_rate)[1] >= alarms)


def _sizes(count: int, confidence: float, miss_rate: float) -> tuple[int, int, int]:
    """Of `count` episodes, how many calibrate, choose alarm levels, and test.

    To calibrate: three in ten, of many two in ten, or as many as the confidence needs, but at most half. Of many
    episodes most fit.
    """
    calibrate = max(min(round(0.3 * count), ENOUGH_CALIBRATE), round(0.2 * count))
    calibrate = min(max(calibrate, _needed(confidence)), count // 2)
    alarm = max(ENOUGH_ALARM, round(0.16 * count), alarms_needed(miss_rate))
    rest = count - calibrate
    return calibrate, min(round(0.36 * rest), alarm), min(round(0.21 * rest), MOST_TEST)


def _split(
    episodes: Sequence[Episode], confidence: float, miss_rate: float, generator: np.random.Generator
) -> dict[str, list[Episode]]:
    """Groups by their use."""
    calibrate, alarm, test = _sizes(len(episodes), confidence, miss_rate)
    order = [episodes[index] for index in generator.permutation(len(episodes))]
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
