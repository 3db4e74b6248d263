"""What may still be spent now, and whether a policy or its fallback has control. Values in, values out.

Costs are float64 and undiscounted. Where a difference cannot be written exactly, what was spent is rounded up and what
is left is rounded down, so that rounding never allows more than the budget.
"""

import bisect
import math
import struct
from collections.abc import Collection
from typing import NamedTuple

from serve.codec import float32_below
from serve.control_values import REASONS_IN_ORDER, Account, FallbackReason

Costs = tuple[float, ...]  # one per constraint


# --- budgets -------------------------------------------------------------------------------------------------------


def horizon_account(budget: Costs, horizon_steps: int, step: int, cost_total: Costs) -> Account:
    """Tell what is spent and left at a step of a session that ends; this step is among those left."""
    return Account(
        spent=cost_total,
        left=tuple(map(_left, budget, cost_total)),
        steps_left=horizon_steps - step,
    )


def rolling_account(
    budget: Costs, steps_ahead: int, cost_total: Costs, cost_total_then: Costs, cost_total_first: Costs
) -> Account:
    """Tell what is spent and left in the one window that holds the next `steps_ahead` steps and those before.

    Nothing is left where the window that ends with the next step has nothing left: what comes unpredicted may break the
    budget of that one, while the window that looks further ahead has still room.

    Args:
        budget: of a window of W steps, [C].
        steps_ahead: h, steps that the prediction speaks of, 1 to W.
        cost_total: observed up to now, [C].
        cost_total_then: observed up to W - h steps ago, [C].
        cost_total_first: observed up to W - 1 steps ago, [C].
    """
    spent = tuple(map(_spent, cost_total, cost_total_then))
    at_once = map(_left, budget, map(_spent, cost_total, cost_total_first))
    ahead = map(_left, budget, spent)
    left = tuple([room if next_step > 0 else 0.0 for room, next_step in zip(ahead, at_once, strict=True)])
    return Account(spent, left, steps_ahead)


def _spent(total: float, then: float) -> float:
    return 0.0 - _minus(then, total)


def _left(budget: float, spent: float) -> float:
    return max(0.0, _minus(budget, spent))


def steps_ahead(rolling_window_steps: int, policy_window_steps: int) -> int:
    """Steps that the predictions of a rolling session speak of: those of the policy's window, half its own at most."""
    return min(policy_window_steps, (rolling_window_steps + 1) // 2)


def longest_window(constraints: int, history_bytes: int) -> int:
    """Steps of the longest rolling window whose CostHistory has at most so many bytes, whatever it costs."""
    return max(0, history_bytes) // _record(constraints).size + 1


def cost_allowed(account: Account) -> list[float]:
    """What is left as the policy's graphs take it, [C]: in float32, never rounded up."""
    return [float32_below(left) for left in account.left]


def _minus(a: float, b: float) -> float:
    """a - b, rounded down; infinity where a is infinite."""
    difference = a - b
    back = difference - a
    error = (a - (difference - back)) - (b + back)  # exact difference less the rounded one (Knuth, TwoSum)
    return math.nextafter(difference, -math.inf) if error < 0 else difference


def _record(constraints: int) -> struct.Struct:
    """Of a cost history: step and totals."""
    return struct.Struct(f"<Q{constraints}d")


class CostHistory:
    """Cost totals at the steps that changed them, as far back as a rolling window looks.

    Kept packed, since it travels in every answer's state: one record of step and totals per change, and no more of them
    than steps that the window looks back.
    """

    def __init__(self, constraints: int, steps_back: int, packed: bytes = b"") -> None:
        """Begin empty, or from what `packed` gave.

        Args:
            constraints: C.
            steps_back: how many steps the window looks back; 0: it needs no history.
            packed: an earlier history's.
        """
        self._record = _record(constraints)
        self._none: Costs = (0.0,) * constraints
        self._steps_back = steps_back
        self._packed = bytearray(packed)
        self._steps = [step for step, *_ in self._record.iter_unpack(packed)]  # one a record

    @property
    def packed(self) -> bytes:
        return bytes(self._packed)

    def cost_total_then(self, step: int, steps: int, cost_total: Costs) -> Costs:
        """The total so many steps before `step`, the one after the last that was recorded; zero before the first.

        Args:
            step: the step that is answered now.
            steps: at most those that the window looks back.
            cost_total: the total at it.
        """
        if steps == 0:
            return cost_total
        last = bisect.bisect_right(self._steps, step - steps) - 1
        return self._none if last < 0 else self._record.unpack_from(self._packed, last * self._record.size)[1:]

    def add(self, step: int, before: Costs, cost_total: Costs) -> None:
        """Record the total at a step, `before` that of the step before; forget what no later step looks back to."""
        if self._steps_back == 0:
            return
        if cost_total != before:
            self._packed += self._record.pack(step, *cost_total)
            self._steps.append(step)
        while len(self._steps) > 1 and self._steps[1] <= step + 1 - self._steps_back:
            del self._packed[: self._record.size], self._steps[0]


# --- who has control -----------------------------------------------------------------------------------------------


def first_reason(
    counted: Collection[FallbackReason], *, no_answer: bool, exhausted: bool, shifted: bool, flagged: bool
) -> FallbackReason | None:
    """Return the reason that is told, of those that apply and count; None: the policy's action may be taken."""
    for reason, applies in zip(REASONS_IN_ORDER, (no_answer, exhausted, shifted, flagged), strict=True):
        if applies and reason in counted:
            return reason
    return None


class Authority(NamedTuple):
    """Who has control: the policy, or the fallback and for how long."""

    fallback_steps: int = 0  # in a row that the fallback has had control; 0: the policy has
    clear_steps: int = 0  # of these the last ones, in a row, that had no reason

    def after(self, reason: FallbackReason | None, recovery_steps: int) -> tuple["Authority", FallbackReason | None]:
        """Decide a step: who has control of it, and the reason that is told where it is the fallback.

        A fallback that has control keeps it for `recovery_steps` steps in a row without a reason (RECOVERING); the step
        after them is the policy's.
        """
        if reason is not None:
            return Authority(self.fallback_steps + 1), reason
        if self.fallback_steps == 0 or self.clear_steps >= recovery_steps:
            return Authority(), None
        return Authority(self.fallback_steps + 1, self.clear_steps + 1), FallbackReason.RECOVERING
