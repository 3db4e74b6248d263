"""The probability over which a flag is raised, chosen for a stated miss rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvpo.calibration.sessions import Session

MOST_LEAD_STEPS = 20
# Share that is used of the misses that are right on average. With all of them a level would miss more than stated in
# every other calibration; with these it keeps what is stated in four of five.
HEADROOM = 0.4


@dataclass(frozen=True)
class Alarm:
    """The probability over which the flag is raised, and how it was found."""

    level: float
    note: str
    shortage: str | None = None  # why the miss rate is not claimed


def lead(window_steps: int) -> int:
    """How many steps before a budget is exceeded a flag counts: 20, or fewer where the window is short."""
    return max(1, min(MOST_LEAD_STEPS, window_steps // 5))


def alarms_needed(miss_rate: float) -> int:
    """Episodes n that exceed a budget without which no miss rate holds: 1/(n + 1) must be at most that."""
    return math.ceil(1 / miss_rate - 1 - 1e-9)


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
    needed = alarms_needed(miss_rate)
    enough = worth >= needed - 1e-9
    most = HEADROOM * (miss_rate * (worth + 1) - 1) / worth if enough else miss_rate
    kept = levels[missed <= most + 1e-9] if len(sizes) else np.ones(1)
    level = float(kept[-1]) if len(kept) else 0.0
    if enough:
        return Alarm(level, f"{level:.3g}, chosen on {len(announced)} sessions over budget of {len(sizes)} episodes")
    level = min(level, round(1 - confidence, 9))
    did = f"{len(sizes)} did, worth {worth:.3g}" if len(sizes) else "none did"
    return Alarm(
        level,
        f"{level:.3g}, kept low: the flag is raised at least wherever cost_upper exceeds what is allowed",
        f"No miss rate: {miss_rate:.0%} needs {needed} episodes that exceed budgets late enough to announce it, "
        f"{lead_steps} steps before; of the {len(episodes)} that choose the level {did}.",
    )
