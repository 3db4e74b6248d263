"""Waiting times: percentiles, the share that came too late, and a histogram, in numbers and as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
_BAR = 50  # columns of the longest bar


def percentile(waits: Seconds, share: float) -> float:
    """The least of the waits that `share` of them do not exceed (nearest rank), so one that did occur."""
    return float(np.quantile(waits, share, method="inverted_cdf"))


@dataclass(frozen=True)
class Latency:
    """How long those who asked waited.

    Attributes:
        waits: of those that were answered, seconds, not empty.
        unanswered: how many were due and got no answer.
    """

    waits: Seconds
    unanswered: int = 0

    def late(self, period_seconds: float) -> float:
        """Share of all that were due and had no answer after so long; none at all is late, too."""
        late = int(np.count_nonzero(self.waits > period_seconds)) + self.unanswered
        return late / (len(self.waits) + self.unanswered)

    def figures(self, period_seconds: float | None) -> dict[str, float]:
        """Percentiles and maximum in microseconds, and the share that was late where a period is given."""
        values = {f"{name}_us": percentile(self.waits, share) * 1e6 for name, share in PERCENTILES.items()}
        values["max_us"] = float(self.waits.max()) * 1e6
        figures: dict[str, float] = {name: round(value, 1) for name, value in values.items()}
        if period_seconds is not None:
            figures["late_share"] = self.late(period_seconds)
        return figures

    def document(self, period_seconds: float | None) -> dict[str, Any]:
        """The figures, and what they are of."""
        return {"answered": len(self.waits), "unanswered": self.unanswered, **self.figures(period_seconds)}


def joined(parts: Sequence[Latency]) -> Latency:
    """The waits of several as those of one."""
    return Latency(np.concatenate([part.waits for part in parts]), sum(part.unanswered for part in parts))


def bins(waits: Seconds, count: int = 20) -> tuple[NDArray[np.int64], Seconds]:
    """Numbers of waits between edges that grow by the same factor: counts [n] and edges [n + 1], seconds.

    A wait of several times the median is what matters, and bins of one width would show a single bar beside it.
    """
    low, high = float(waits.min()), float(waits.max())
    edges = np.geomspace(low, max(high, low * 1.01), count + 1)
    edges[0], edges[-1] = low, max(high, float(edges[-1]))  # geomspace rounds, and nothing may fall out
    counts, _ = np.histogram(waits, edges)
    return counts.astype(np.int64), edges


def histogram(waits: Seconds) -> str:
    """Bars of text, one line a bin; any bin that is not empty has a bar."""
    counts, edges = bins(waits)
    largest = int(counts.max())
    lines = []
    for count, upper in zip(counts.tolist(), edges[1:].tolist(), strict=True):
        bar = "#" * max(round(_BAR * count / largest), 1 if count else 0)
        lines.append(f"{'up to ' + milliseconds(upper):>16} {bar:<{_BAR}} {count:,}")
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """With three digits: 0.231 ms, 12.5 ms, 1,230 ms."""
    value = seconds * 1e3
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} ms"
