"""Flags against what came: an episode with a budget, as the service sees it, and how early it was announced."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Session:
    """An episode with a budget for one constraint, and what was said before each of its steps."""

    probability: Array  # [L], that more will be spent than is left
    crossing: int | None  # the step whose cost exceeded the budget; None: none did, as far as it went
    cut: bool = False  # truncated before its horizon: what followed is unknown

    @property
    def decided(self) -> bool:
        """Whether it is known that the budget was exceeded, or that it was not."""
        return self.crossing is not None or not self.cut

    @property
    def clean(self) -> bool:
        """Whether it is known that the budget was not exceeded."""
        return self.crossing is None and not self.cut

    def announceable(self, lead_steps: int) -> bool:
        """Whether the budget is exceeded, and not so soon that no flag can come so many steps before."""
        return self.crossing is not None and self.crossing >= lead_steps

    def announced(self, lead_steps: int) -> float:
        """The highest probability that was said so many steps before the crossing, or earlier; 0 where that is never.

        Raises:
            ValueError: there is no crossing.
        """
        if self.crossing is None:
            raise ValueError("a session within its budget has nothing to announce")
        early = self.probability[: max(self.crossing - lead_steps + 1, 0)]
        return float(early.max(initial=0.0))

    def lead_steps(self, level: float) -> int | None:
        """Steps from the first flag, a probability over the level, to the crossing; None: there was none before it."""
        if self.crossing is None:
            return None
        flagged = np.flatnonzero(self.probability[: self.crossing + 1] > level)
        return self.crossing - int(flagged[0]) if len(flagged) else None

    def flagged_share(self, level: float) -> float:
        """Share of the steps that are flagged."""
        return float((self.probability > level).mean())


def crossing(cost: Array, budget: float) -> int | None:
    """The first step after which more than the budget is spent, of costs [L]; None: there is none."""
    over = np.flatnonzero(cost.cumsum() > budget)
    return int(over[0]) if len(over) else None
