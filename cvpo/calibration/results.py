"""What came of predictions and flags on test episodes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo.bundle import (
    BoundCoverage,
    CalibratedMode,
    CalibrationResult,
    Constraint,
    EpisodeExample,
    Interval,
    ReliabilityBin,
)
from cvpo.calibration.alarm import lead
from cvpo.calibration.budgets import BUDGETS, LIMIT_ALONE, budget_sessions, sessions
from cvpo.calibration.conformal import float32
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast_fit import ForecastEpisode
from cvpo.calibration.intervals import resampled, wilson
from cvpo.calibration.samples import example
from cvpo.calibration.sessions import Session

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

BINS = 10  # of probabilities, equally wide, and of bounds, equally full


@dataclass(frozen=True)
class Tested:
    """A mode, and the episodes that its figures are of."""

    mode: CalibratedMode
    uses: dict[str, int]  # how many of its episodes were for what
    episodes: Sequence[ForecastEpisode]


def result_of(
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


def example_of(
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
