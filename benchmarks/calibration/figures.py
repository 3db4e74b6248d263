"""The figures of one policy's predictions on fresh episodes: arrays in, numbers out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle import Interval
from cvpo.calibration.intervals import resampled, wilson
from cvpo.calibration.results import calibration_error, reliability, said
from cvpo.calibration.sessions import Session

Array = NDArray[np.float64]
RESAMPLES = 2_000


@dataclass(frozen=True)
class Bounds:
    """Costs of the next steps and what bounds them, for each fresh episode."""

    cost: Sequence[Array]  # [Q] each
    upper: Sequence[Array]  # [Q] each


def pinball(cost: Array, upper: Array, confidence: float) -> Array:
    """The loss of which a quantile is the least: what is too low costs `confidence`, what is too high the rest."""
    return np.maximum(confidence * (cost - upper), (confidence - 1) * (cost - upper))


def bound_figures(ours: Bounds, elapsed: Bounds, confidence: float) -> dict[str, Any]:
    """Coverage, and the pinball loss over that of the best constant and of time and elapsed cost alone.

    The best constant is the quantile of these very costs: no constant does better. Episodes weigh the same; intervals
    are of 95 %, by resampling episodes.
    """
    shares = [np.full(len(cost), 1 / len(cost)) for cost in ours.cost]
    every, share = np.concatenate(ours.cost), np.concatenate(shares)
    order = np.argsort(every, kind="stable")
    below = share[order].cumsum() / share.sum()
    best = every[order][np.searchsorted(below, confidence)]
    covered = np.array([(c.astype(np.float32) <= u).mean() for c, u in zip(ours.cost, ours.upper, strict=True)])
    loss = {
        name: np.array([pinball(c, u, confidence).mean() for c, u in zip(bounds.cost, bounds.upper, strict=True)])
        for name, bounds in {"ours": ours, "elapsed": elapsed}.items()
    }
    loss["constant"] = np.array([pinball(c, np.full(len(c), best), confidence).mean() for c in ours.cost])
    return {
        "coverage": _mean(covered),
        "zero_cost_share": float(np.mean([(c == 0).mean() for c in ours.cost])),
        "pinball_ratio_constant": _ratio(loss["ours"], loss["constant"]),
        "pinball_ratio_elapsed": _ratio(loss["ours"], loss["elapsed"]),
    }


def probability_figures(ours: Sequence[Session], elapsed: Sequence[Session]) -> dict[str, Any]:
    """Reliability of the probabilities; their Brier score, the base rate's, and that of time and elapsed cost."""
    found = {
        "calibration_error": calibration_error([[session] for session in ours]),
        "brier": _brier(ours),
        "brier_elapsed": _brier(elapsed),
    }
    _, happened, weight = said(ours)
    rate = float(np.average(happened, weights=weight))
    return {
        **_with_intervals(found),
        "brier_base_rate": rate * (1 - rate),
        "reliability": [each.model_dump() for each in reliability(ours)],
    }


def _brier(sessions: Sequence[Session]) -> Interval | None:
    each = [said([session]) for session in sessions]
    lost = [float((weight * (probability - happened) ** 2).sum()) for probability, happened, weight in each]
    return resampled(lost, [float(weight.sum()) for _, _, weight in each])


def _with_intervals(found: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Means by their names, and under `intervals` their ends; sessions are those of different episodes."""
    return {
        **{name: each.mean if each else None for name, each in found.items()},
        "intervals": {name: [each.low, each.high] for name, each in found.items() if each},
    }


def flag_figures(
    ours: Sequence[Session],
    at_limit: Sequence[Session],
    level: float,
    others: Mapping[str, Sequence[Session]],
    lead_steps: int,
) -> dict[str, Any]:
    """Misses, false alarms and lead of the flags, and the false alarms of others at a level with as many misses.

    Args:
        ours: a session of each fresh episode.
        at_limit: of each, the session with the limit for budget.
        level: over which the flag is raised.
        others: what others say in the sessions of `ours`.
        lead_steps: how many steps before the crossing a flag counts; where there are not so many, none does.
    """
    crossed = [session for session in ours if session.crossing is not None]
    missed = _missed(ours, level, lead_steps)
    leads = [steps for session in crossed if (steps := session.lead_steps(level)) is not None]
    alarms = {"false_alarm_rate": flagged(ours, level)}
    for name, sessions in others.items():
        alarms[f"false_alarm_rate_{name}"] = flagged(sessions, level_of_misses(sessions, missed, lead_steps))
    return {
        **_miss_figures(ours, level, lead_steps),
        "too_soon_sessions": sum(not session.announceable(lead_steps) for session in crossed),
        "at_limit": _miss_figures(at_limit, level, lead_steps),
        "clean_sessions": sum(session.clean for session in ours),
        "lead_steps_median": float(np.median(leads)) if leads else None,
        "lead_steps_quartiles": [float(q) for q in np.quantile(leads, [0.25, 0.5, 0.75])] if leads else None,
        **_with_intervals(alarms),
    }


def _missed(sessions: Sequence[Session], level: float, lead_steps: int) -> int:
    """How many exceed their budget without a flag in time."""
    return sum(s.announced(lead_steps) <= level for s in sessions if s.crossing is not None)


def _miss_figures(sessions: Sequence[Session], level: float, lead_steps: int) -> dict[str, Any]:
    """Of the sessions that exceed their budget, too soon or not, the share that is missed."""
    missed, violating = _missed(sessions, level, lead_steps), sum(s.crossing is not None for s in sessions)
    return {
        "violating_sessions": violating,
        "miss_rate": missed / max(violating, 1),
        "miss_rate_upper": wilson(missed, violating).high if violating else 1.0,
    }


def level_of_misses(sessions: Sequence[Session], missed: int, lead_steps: int) -> float:
    """The highest level at which no more than so many sessions are missed; below 0 where none is low enough."""
    announced = np.sort([session.announced(lead_steps) for session in sessions if session.crossing is not None])
    return float(np.nextafter(announced[missed], -1.0)) if missed < len(announced) else 1.0


def flagged(sessions: Sequence[Session], level: float) -> Interval | None:
    """Share of the steps that are flagged, mean over the sessions that stayed within their budget."""
    clean = [session for session in sessions if session.clean]
    return resampled([session.flagged_share(level) for session in clean], np.ones(len(clean)))


def _mean(values: Array) -> dict[str, float]:
    return _interval(values, lambda rows: float(rows.mean()))


def _ratio(values: Array, others: Array) -> dict[str, float]:
    both = np.stack([values, others], axis=1)
    return _interval(both, lambda rows: float(rows[:, 0].mean() / max(rows[:, 1].mean(), 1e-12)))


def _interval(rows: Array, statistic: Callable[[Array], float]) -> dict[str, float]:
    generator = np.random.default_rng(0)
    found = [statistic(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(found, [0.025, 0.975])
    return {"mean": statistic(rows), "low": float(low), "high": float(high)}
