"""95 % intervals of figures over episodes: what is independent are episodes, so it is they that are resampled."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cvpo.bundle import Interval

RESAMPLES = 2_000


def wilson(count: int, of: int) -> Interval:
    """A share of independent cases, with its Wilson interval."""
    low, high = stats.binomtest(count, of).proportion_ci(method="wilson")
    return Interval(mean=count / of, low=float(low), high=float(high))


def resampled(
    parts: Sequence[float] | NDArray[np.float64], of: Sequence[float] | NDArray[np.float64]
) -> Interval | None:
    """The share that the episodes' parts make up of all, with its bootstrap interval; None where there is nothing.

    Where all episodes agree on none or all, resampling knows no doubt: the interval is then Wilson's of as many cases.

    Args:
        parts: of each episode, [E], or [E, B] for a share that is a sum of B, each of the size of its parts' sum.
        of: what they are parts of, [E], not negative. An episode with 0 says nothing.
    """
    whole = np.asarray(of, np.float64)
    rows = np.asarray(parts, np.float64).reshape(len(whole), -1)
    rows, whole = rows[whole > 0], whole[whole > 0]
    count = len(whole)
    if not count:
        return None
    share = float(np.abs(rows.sum(0)).sum() / whole.sum())
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # [R, E], how often each
    found = np.abs(drawn @ rows).sum(1) / (drawn @ whole)
    low, high = (float(quantile) for quantile in np.quantile(found, [0.025, 0.975]))
    if low == high and share in (0, 1):
        return wilson(round(share) * count, count)
    return Interval(mean=share, low=min(low, share), high=max(high, share))
