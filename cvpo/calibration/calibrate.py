"""How far predicted costs and flags can be trusted, measured on episodes of the policy as it will be served.

Four groups of episodes, none used twice: `fit` and `calibrate` make the map of costs (`conformal`), `alarm` chooses the
probability over which the flag is raised, and `test` shows what came of it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvpo.bundle import (
    BoundCoverage,
    CalibratedMode,
    Calibration,
    CalibrationResult,
    Constraint,
    EpisodeExample,
    Interval,
    ModeResult,
    ReliabilityBin,
)
from cvpo.calibration.conformal import conformal_map, covered, float32
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.forecast_fit import ForecastEpisode, fit_forecast
from cvpo.calibration.intervals import resampled, wilson
from cvpo.calibration.samples import example
from cvpo.calibration.sessions import Session, crossing
from cvpo.defaults import CONFIDENCE, MISS_RATE
from cvpo.errors import ConfigError, ExportError, NonFiniteError
from cvpo.evaluate import Episode

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

Fit = Callable[[Sequence[Episode], Sequence[Constraint], Callable[[Tensor], Tensor], int], CostForecast]

MINIMUM_EPISODES = 8
DETERMINISTIC = CalibratedMode(mode="deterministic")

# Of the limit, log-uniform from a quarter to twice: alarm levels must serve sessions that may spend less or more.
BUDGETS = 0.25 * 8 ** ((np.arange(21) + 0.5) / 21)
LIMIT_ALONE = np.ones(1)  # of the limit: what most sessions may spend, and what shielded episodes were rolled out with
MOST_LEAD_STEPS = 20
# Share that is used of the misses that are right on average. With all of them a level would miss more than stated in
# every other calibration; with these it keeps what is stated in four of five.
HEADROOM = 0.4
ENOUGH_CALIBRATE, ENOUGH_ALARM = 100, 80  # episodes: of those beyond, most fit
MOST_TEST = 50
BINS = 10  # of probabilities, equally wide, and of bounds, equally full


@dataclass(frozen=True)
class Alarm:
    """The probability over which the flag is raised, and how it was found."""

    level: float
    note: str
    shortage: str | None = None  # why the miss rate is not claimed


@dataclass(frozen=True)
class Tested:
    """A mode, and the episodes that its figures are of."""

    mode: CalibratedMode
    uses: dict[str, int]  # how many of its episodes were for what
    episodes: Sequence[ForecastEpisode]


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
    for index, constraint in enumerate(constraints):
        if shielded:
            continue
        tried = [sessions(cost_map, episode, constraint, index) for episode in groups["alarm"]]
        alarm = choose_level(tried, record.lead_steps, record.confidence, record.miss_rate)
        if alarm.level < alarms[index].level:
            alarms[index] = replace(alarm, note=f"{alarm.note} ({mode})")
        not_claimed += [f"{mode}, {constraint.name}: {alarm.shortage}"] if alarm.shortage else []
    if shielded:
        not_claimed.append(
            f"{mode}: no miss rate, for its alarm levels are those it chooses by; and nothing with another budget than "
            "the limit, which all its episodes had."
        )
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
            results=tuple(_result(cost_map, each, index, c, alarm.level) for index, (c, alarm) in limited),
        )
        for each in tested
    )
    examples = [_example(cost_map, tested[0].episodes, index, c) for index, (c, _) in limited]
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


def lead(window_steps: int) -> int:
    """How many steps before a budget is exceeded a flag counts: 20, or fewer where the window is short."""
    return max(1, min(MOST_LEAD_STEPS, window_steps // 5))


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
    alarms = _alarms_needed(miss_rate)
    counts = itertools.count(MINIMUM_EPISODES)
    return 2 * _needed(confidence), next(n for n in counts if _sizes(n, confidence, miss_rate)[1] >= alarms)


def _sizes(count: int, confidence: float, miss_rate: float) -> tuple[int, int, int]:
    """Of `count` episodes, how many calibrate, choose alarm levels, and test.

    To calibrate: three in ten, of many two in ten, or as many as the confidence needs, but at most half. Of many
    episodes most fit.
    """
    calibrate = max(min(round(0.3 * count), ENOUGH_CALIBRATE), round(0.2 * count))
    calibrate = min(max(calibrate, _needed(confidence)), count // 2)
    alarm = max(ENOUGH_ALARM, round(0.16 * count), _alarms_needed(miss_rate))
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


def _alarms_needed(miss_rate: float) -> int:
    """Episodes n that exceed a budget without which no miss rate holds: 1/(n + 1) must be at most that."""
    return math.ceil(1 / miss_rate - 1 - 1e-9)


def _no_bound(count: int, confidence: float) -> tuple[str, ...]:
    needed = _needed(confidence)
    if count >= needed:
        return ()
    return (
        f"No bound: confidence {confidence:g} needs {needed} calibrating episodes and there were {count}; "
        "cost_upper is infinite.",
    )


def sessions(
    cost_map: CostMap, episode: ForecastEpisode, constraint: Constraint, index: int, budgets: Array = BUDGETS
) -> list[Session]:
    """The episode with each budget, a share of the limit, asked as the service asks: what is left, over the steps left.

    None without a limit.
    """
    if constraint.cost_limit is None:
        return []
    return budget_sessions(cost_map, episode, constraint, index, constraint.cost_limit * budgets)


def budget_sessions(
    cost_map: CostMap, episode: ForecastEpisode, constraint: Constraint, index: int, budgets: Array
) -> list[Session]:
    """The episode with each of some budgets, in the environment's cost units.

    Args:
        cost_map: says the probabilities.
        episode: of L steps.
        constraint: the one that is limited.
        index: its place among the costs.
        budgets: for the episode.
    """
    cost = episode.cost[:, index]
    steps = constraint.horizon_steps - np.arange(len(cost))
    forecast = float32(episode.forecast(steps)).unsqueeze(-1)  # [L, C, 1]
    cut = len(cost) < constraint.horizon_steps and not episode.terminated
    found = []
    for budget in budgets:
        allowed = torch.full(forecast.shape[:2], torch.inf)
        allowed[:, index] = float32(budget - (cost.cumsum() - cost))
        probability = cost_map(forecast, torch.from_numpy(steps), allowed).violation_probability[:, index, 0]
        found.append(Session(np.asarray(probability.double()), crossing(cost, budget), cut))
    return found


def choose_level(episodes: Sequence[Sequence[Session]], lead_steps: int, confidence: float, miss_rate: float) -> Alarm:
    """The highest level that keeps the expected share of missed sessions, of all together, under `miss_rate`.

    A session that exceeds its budget is missed if no flag came `lead_steps` before or earlier; one that exceeds it
    sooner than that cannot be announced, and does not count here. Sessions of one episode are alike: those of episodes
    that have k[1], k[2], ... of them say as much as n = (sum k)^2 / sum k^2 independent ones (Kish, Survey Sampling,
    1965). Of these n a number m, the missed share of all sessions, may be missed where (m + 1)/(n + 1) <= miss_rate, as
    in conformal risk control (Angelopoulos et al., arXiv 2208.02814). That takes n >= 1/miss_rate - 1. It is right on
    average over the episodes that a level might be chosen on, so this one is too high half of the time; therefore only
    a HEADROOM of that m is missed. With less than such an n, a share of `miss_rate` is missed, and the level is not
    above 1 - confidence: the flag is raised at least wherever cost_upper exceeds what is allowed.

    Args:
        episodes: for each its sessions.
        lead_steps: see above.
        confidence: of `cost_upper`.
        miss_rate: see above.
    """
    late = [[s.announced(lead_steps) for s in some if s.announceable(lead_steps)] for some in episodes]
    sizes = np.array([len(announced) for announced in late if announced], np.float64)
    announced = np.sort(np.concatenate([[], *late]))
    # Risk rises where a session goes unannounced: what is worth trying lies just below, in the graphs' float32.
    announcements = np.unique([0.0, *announced]).astype(np.float32)
    levels = np.maximum(np.nextafter(announcements, np.float32(-1), dtype=np.float32), 0).astype(np.float64)
    missed = np.searchsorted(announced, levels, side="right") / max(len(announced), 1)
    worth = float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0
    needed = _alarms_needed(miss_rate)
    enough = worth >= needed - 1e-9
    most = HEADROOM * (miss_rate * (worth + 1) - 1) / worth if enough else miss_rate
    kept = levels[missed <= most + 1e-9] if len(sizes) else np.ones(1)
    level = float(kept[-1]) if len(kept) else 0.0
    if enough:
        return Alarm(level, f"{level:.3g}, chosen on {len(announced)} sessions over budget of {len(sizes)} episodes")
    level = min(level, round(1 - confidence, 9))
    return Alarm(
        level,
        f"{level:.3g}, kept low: the flag is raised at least wherever cost_upper exceeds what is allowed",
        f"No miss rate: {miss_rate:.0%} needs {needed} episodes that exceed budgets late enough to announce it, "
        f"{lead_steps} steps before; there were {len(sizes)}, worth {worth:.3g}.",
    )


def _result(
    cost_map: CostMap,
    tested: Tested,
    index: int,
    constraint: Constraint,
    alarm_level: float,
) -> CalibrationResult:
    """Shares on test episodes, with intervals. For coverage each of these counts the same, however many its steps."""
    episodes, budgets = tested.episodes, LIMIT_ALONE if tested.mode.mode == "shielded" else BUDGETS
    lead_steps, horizon = lead(constraint.window_steps), constraint.horizon_steps
    windows = [bound_coverage(cost_map, e, np.full(len(e), constraint.window_steps), index) for e in episodes]
    rests = [bound_coverage(cost_map, e, horizon - np.arange(len(e)), index) for e in episodes]
    bounds = [(np.concatenate(upper), np.concatenate(within)) for upper, within in map(zip, windows, rests)]
    by_episode = [sessions(cost_map, episode, constraint, index, budgets) for episode in episodes]
    tried = list(itertools.chain(*by_episode))
    crossed = [session for session in tried if session.crossing is not None]
    leads = [steps for session in crossed if (steps := session.lead_steps(alarm_level)) is not None]
    alone = [session for episode in episodes for session in sessions(cost_map, episode, constraint, index, LIMIT_ALONE)]
    missed_alone = _misses(alone, alarm_level, lead_steps)
    missed = [_misses(some, alarm_level, lead_steps) for some in by_episode]
    over = [[s.announceable(lead_steps) for s in some if s.crossing is not None] for some in by_episode]
    flagged = [[s.flagged_share(alarm_level) for s in some if s.clean] for some in by_episode]
    shares = {
        "coverage": _covered_share(bounds),
        "window_coverage": _covered_share(windows),
        "rest_coverage": _covered_share(rests),
        "missed_share": resampled([sum(some) for some in missed], [len(some) for some in missed]),
        "too_soon_share": resampled([len(some) - sum(some) for some in over], [len(some) for some in over]),
        "flagged_share": resampled([sum(some) for some in flagged], [len(some) for some in flagged]),
        "calibration_error": calibration_error(by_episode),
    }
    mean = {name: share.mean if share else None for name, share in shares.items()}
    first = np.stack([episode.forecast(horizon - np.arange(len(episode)))[0] for episode in episodes])
    _, cost_to_go = cost_map.atoms(float32(first).unsqueeze(-1), torch.full((len(episodes),), horizon))
    return CalibrationResult(
        constraint=constraint.name,
        test_episodes=len(episodes),
        coverage=mean["coverage"],
        window_coverage=mean["window_coverage"],
        rest_coverage=mean["rest_coverage"],
        coverage_by_bound=coverage_by_bound(bounds),
        missed_share=mean["missed_share"],
        limit_missed_share=wilson(sum(missed_alone), len(missed_alone)) if missed_alone else None,
        too_soon_share=mean["too_soon_share"],
        flagged_share=mean["flagged_share"],
        lead_steps_median=float(np.median(leads)) if leads else None,
        reliability=reliability(tried),
        calibration_error=mean["calibration_error"],
        intervals={name: (share.low, share.high) for name, share in shares.items() if share},
        cost_to_go_mean=float(cost_to_go[:, index].mean()),
        episode_cost_mean=float(np.mean([episode.cost[:, index].sum() for episode in episodes])),
    )


def _covered_share(bounds: Sequence[tuple[Array, Bools]]) -> Interval | None:
    """Of the bounds of each episode, mean over episodes with something observed."""
    observed = [len(within) > 0 for _, within in bounds]
    return resampled([within.mean() if len(within) else 0.0 for _, within in bounds], observed)


def _misses(tried: Sequence[Session], level: float, lead_steps: int) -> list[bool]:
    """Of sessions that exceed their budget late enough to announce it, which are missed."""
    return [session.announced(lead_steps) <= level for session in tried if session.announceable(lead_steps)]


def _example(
    cost_map: CostMap, episodes: Sequence[ForecastEpisode], index: int, constraint: Constraint
) -> EpisodeExample | None:
    """The episode that cost the most, with the limit for its budget. None without a limit."""
    if constraint.cost_limit is None:
        return None
    costliest = max(episodes, key=lambda episode: float(episode.cost[:, index].sum()))
    (session,) = budget_sessions(cost_map, costliest, constraint, index, np.array([constraint.cost_limit]))
    return example(costliest.cost[:, index], session, constraint.cost_limit)


def bound_coverage(
    cost_map: CostMap, episode: ForecastEpisode, steps: NDArray[np.int64], index: int
) -> tuple[Array, Bools]:
    """`cost_upper` [Q] of the cost of the next `steps` [L], where that was observed, and whether it held, [Q]."""
    cost, observed = episode.window_cost(steps)
    upper = cost_upper(cost_map, episode, steps)[observed, index]
    return upper, cost[observed, index].astype(np.float32) <= upper


def cost_upper(cost_map: CostMap, episode: ForecastEpisode, steps: NDArray[np.int64]) -> Array:
    """The bound on the cost of the next steps[t] steps from step t on, [L, C]."""
    forecast = float32(episode.forecast(steps)).unsqueeze(-1)
    nothing = torch.zeros(forecast.shape[:2])
    return np.asarray(cost_map(forecast, torch.from_numpy(steps), nothing).cost_upper[..., 0].double())


def coverage_by_bound(bounds: Sequence[tuple[Array, Bools]]) -> tuple[BoundCoverage, ...]:
    """Coverage where the bound is low and where it is high: BINS groups of as many steps, fewer if bounds are equal."""
    upper, within = (np.concatenate(part) for part in zip(*bounds, strict=True))
    finite = np.isfinite(upper)
    upper, within = upper[finite], within[finite]
    edges = np.unique(np.quantile(upper, np.linspace(0, 1, BINS + 1)[1:-1])) if len(upper) else np.empty(0)
    group = np.searchsorted(edges, upper)
    return tuple(
        BoundCoverage(
            cost_upper=float(upper[group == g].mean()),
            coverage=float(within[group == g].mean()),
            share=float((group == g).mean()),
        )
        for g in np.unique(group)
    )


def reliability(tried: Sequence[Session]) -> tuple[ReliabilityBin, ...]:
    """What came of each tenth of probability, over the steps of sessions before their budget was exceeded."""
    probability, happened, weight = said(tried)
    bins = _bins(probability)
    return tuple(
        ReliabilityBin(
            predicted=float(np.average(probability[bins == b], weights=weight[bins == b])),
            observed=float(np.average(happened[bins == b], weights=weight[bins == b])),
            share=float(weight[bins == b].sum() / weight.sum()),
        )
        for b in np.unique(bins)
    )


def said(tried: Sequence[Session]) -> tuple[Array, Bools, Array]:
    """Each probability that was said before the budget was exceeded, [Q]; whether it came to that, [Q]; its weight.

    A session's weight is shared by all its steps, for it is a random one of them that a probability speaks of. Sessions
    that were cut before it was decided are left out.
    """
    tried = [session for session in tried if session.decided]
    spans = [len(s.probability) if s.crossing is None else s.crossing + 1 for s in tried]
    probability = [session.probability[:span] for session, span in zip(tried, spans, strict=True)]
    happened = [np.full(span, session.crossing is not None) for session, span in zip(tried, spans, strict=True)]
    weight = [np.full(span, 1 / len(session.probability)) for span, session in zip(spans, tried, strict=True)]
    if not tried:
        return np.empty(0), np.empty(0, np.bool_), np.empty(0)
    return np.concatenate(probability), np.concatenate(happened), np.concatenate(weight)


def calibration_error(episodes: Sequence[Sequence[Session]]) -> Interval | None:
    """Expected calibration error: how far predicted and observed are apart in each bin, mean over what was said.

    Of the sessions of each episode, with the interval of resampled episodes: on the high side, for chance adds to it.
    """
    apart, weights = np.zeros((len(episodes), BINS)), np.zeros(len(episodes))
    for row, tried in enumerate(episodes):
        probability, happened, weight = said(tried)
        apart[row] = np.bincount(_bins(probability), weight * (probability - happened), BINS)
        weights[row] = weight.sum()
    return resampled(apart, weights)


def _bins(probability: Array) -> NDArray[np.int64]:
    return np.minimum((probability * BINS).astype(np.int64), BINS - 1)
