"""What a robot does when no answer comes in time: hold the last action for a while, then take a safe one."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from serve.codec import UINT32_MAX, check_action_space, in_range, seconds, vector
from serve.errors import InvalidRequestError
from serve.values import Floats, PolicyDescription


class WatchdogReason(Enum):
    """Why there is no answer."""

    LATE = "late"  # none came in time
    DISCONNECTED = "disconnected"  # there is no connection now; one is being sought
    REFUSED = "refused"  # the server answers without an action: overloaded, too late, or it could not compute one
    SESSION_LOST = "session lost"  # no server goes on with the session; open another one


@dataclass(frozen=True)
class Watchdog:
    """When to give up on an answer, and what to do instead."""

    timeout_seconds: float | None = (
        None  # of a step; None: half the policy's control period, without one as long as the client's calls
    )
    safe_action: tuple[float, ...] | None = None  # [A], environment units; None: that of the description at the opening
    hold_steps: int = 0  # steps in a row that the last answered action is held, before the safe action is taken


@dataclass(frozen=True)
class WatchdogTaken:
    """The watchdog at work."""

    reason: WatchdogReason
    message: str  # for a person: what happened, where
    steps: int  # in a row that there was no answer, this one and those that raised or were left included
    held: bool  # the action is the last one that was answered; else it is the safe one


class StandIn:
    """Chooses the action where there is no answer."""

    def __init__(self, watchdog: Watchdog, description: PolicyDescription) -> None:
        """Check the options against the policy.

        Raises:
            InvalidRequestError: a safe action of another length or out of bounds, or a number of steps that is none.
        """
        given = description.safe_action if watchdog.safe_action is None else watchdog.safe_action
        safe_action = np.array(vector("watchdog.safe_action", given), np.float32)  # as the bounds are
        space = description.action
        if len(safe_action) != len(space.names):
            raise InvalidRequestError(
                "watchdog.safe_action", f"has {len(safe_action)} values; the policy's action has {len(space.names)}"
            )
        check_action_space([safe_action], space.low, space.high, "watchdog.safe_action")
        self._safe_action = safe_action
        self._hold_steps = in_range("watchdog.hold_steps", watchdog.hold_steps, UINT32_MAX)
        self._last_action: Floats | None = None
        self._steps = 0  # since the last answer

    def asked(self) -> None:
        """A step begins."""
        self._steps += 1

    def answered(self, action: Floats) -> None:
        """An answer came in time, with this action [A]."""
        self._last_action = action.copy()  # the robot may do with it what it likes
        self._steps = 0

    def act(self, reason: WatchdogReason, message: str) -> tuple[Floats, WatchdogTaken]:
        """Return the action [A] of a step without an answer."""
        held = self._last_action is not None and self._steps <= self._hold_steps
        action = self._last_action if self._last_action is not None and held else self._safe_action
        return action.copy(), WatchdogTaken(reason, message, self._steps, held)


def step_timeout_seconds(watchdog: Watchdog, description: PolicyDescription, otherwise: float) -> float:
    """How long a step may take: as asked for, else half the control period, which leaves the robot the other half.

    Raises:
        InvalidRequestError: what is given is no watchdog, or its timeout none.
    """
    if not isinstance(watchdog, Watchdog):
        raise InvalidRequestError("watchdog", f"is {watchdog!r}; give Watchdog(timeout_seconds)")
    if watchdog.timeout_seconds is not None:
        return seconds("watchdog.timeout_seconds", watchdog.timeout_seconds)
    period = description.control_period_seconds
    return otherwise if period is None else period / 2
