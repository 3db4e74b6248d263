"""What goes into a control session and comes out of it, as plain values: the words that client and server share.

Shapes are for O observation and A action dimensions and C constraints. Costs are undiscounted, in the environment's
cost units, and in float64: they are sums over many steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from serve.values import Deterministic, Floats, Mode, Prediction, PredictionLists, ServedPolicy

DEFAULT_LEAST_UNSAFE_CANDIDATES = 16
DEFAULT_RECOVERY_STEPS = 10


class FallbackReason(IntEnum):
    """Why a fallback is taken; the numbers are those of the proto."""

    FLAGGED = 1  # a violation flag of the policy's action is raised
    BUDGET_EXHAUSTED = 2
    SHIFTED = 3  # the observation is outside what was seen in training
    NO_ANSWER = 4  # the policy gave nothing that may be sent
    RECOVERING = 5  # none of these now, but too few steps without one


# Those that make a fallback take control, the one that is told first where several apply.
REASONS_IN_ORDER = (
    FallbackReason.NO_ANSWER,
    FallbackReason.BUDGET_EXHAUSTED,
    FallbackReason.SHIFTED,
    FallbackReason.FLAGGED,
)


@dataclass(frozen=True)
class PolicySelector:
    """Says which policy is meant, and what the caller expects it to be."""

    name: str = ""  # may be empty where the server has only one
    version: int | None = None  # None: the served one
    fingerprint: str = ""  # empty: not checked


@dataclass(frozen=True)
class FlaggedAction:
    """The policy's own action, whatever its flags: no fallback."""


@dataclass(frozen=True)
class LeastUnsafeAction:
    """The safest of several candidates of the same policy, as a shielded policy chooses it."""

    candidates: int = DEFAULT_LEAST_UNSAFE_CANDIDATES  # K, at least 2


@dataclass(frozen=True)
class ConstantAction:
    """Always the same action."""

    action: tuple[float, ...] | None = None  # [A], environment units; None: the safe action of the policy's manifest


@dataclass(frozen=True)
class HoldLastAction:
    """The last action that was answered; the safe action of the policy's manifest where there was none."""


@dataclass(frozen=True)
class BackupPolicy:
    """The most likely action of another policy on the same server, with the same fingerprint; where that gives nothing,
    the safe action of the policy's manifest.
    """

    policy: PolicySelector


FallbackAction = FlaggedAction | LeastUnsafeAction | ConstantAction | HoldLastAction | BackupPolicy


@dataclass(frozen=True)
class Fallback:
    """What is done instead of the policy's own action, when, and for how long."""

    action: FallbackAction = FlaggedAction()
    reasons: frozenset[FallbackReason] = frozenset(REASONS_IN_ORDER)  # those that count
    recovery_steps: int = DEFAULT_RECOVERY_STEPS  # steps in a row without a reason that the fallback stays, at least 1


@dataclass(frozen=True)
class Horizon:
    """A session that ends; the budget must last for so many steps."""

    steps: int


@dataclass(frozen=True)
class RollingWindow:
    """A session without an end; the budget holds for every so many steps in a row."""

    steps: int


@dataclass(frozen=True)
class Opening:
    """What a session is opened with."""

    policy: PolicySelector = PolicySelector()
    cost_budget: tuple[float, ...] | None = None  # [C]; None: the policy's limits, in proportion to the steps
    extent: Horizon | RollingWindow | None = None  # None: a horizon as long as the policy's
    mode: Mode = Deterministic()  # noqa: RUF009  # frozen
    max_age_seconds: float | None = None  # how old a step may be when its computation begins
    fallback: Fallback = Fallback()


@dataclass(frozen=True)
class SessionOpened:
    """What a session begins with, or goes on with."""

    session_id: str
    policy: ServedPolicy
    cost_budget: tuple[float, ...]  # [C]
    extent_steps: int  # the horizon, or the rolling window
    next_step: int
    idle_timeout_seconds: float
    state: bytes = field(repr=False)


class Step(NamedTuple):
    """What the robot sees at one step, and what it has cost so far."""

    number: int  # 0 first
    observation: Sequence[float]  # [O], in the order and units of training
    cost_total: Sequence[float] = ()  # [C], observed since the session began; empty: not told


@dataclass(frozen=True)
class FallbackTaken:
    """A fallback at work."""

    reason: FallbackReason
    steps: int  # in a row that it has been in control, this one included
    backup: ServedPolicy | None = None  # the policy that answered, where it is a backup that gave something


class Account(NamedTuple):
    """What has been spent of a budget [C], observed and not predicted, and what that leaves for the steps to come."""

    spent: tuple[float, ...]
    left: tuple[float, ...]  # zero where no more may be spent, be it at the next step alone; infinity: unconstrained
    steps_left: int  # that what is left must last

    @property
    def exhausted(self) -> tuple[bool, ...]:
        """Whether nothing is left, [C]."""
        return tuple([left <= 0 for left in self.left])


class StepTiming(NamedTuple):
    """Where the time of one step went, in the server."""

    queued_seconds: float  # waiting: for its turn, and for others to share a run of the network with
    checked_seconds: float  # the step, and what is allowed
    computed_seconds: float  # the policy, and the fallback


class StepAnswer(NamedTuple):
    """Answers a step in the server; StepResult is what the client makes of it."""

    step: int
    action: list[float]  # [A], environment units, within the bounds
    prediction: PredictionLists | None  # [1, ...]
    feasible: bool
    chosen: int
    fallback: FallbackTaken | None
    constraints: tuple[str, ...]
    account: Account
    policy: ServedPolicy
    timing: StepTiming
    state: bytes

    @property
    def answered_by(self) -> ServedPolicy:
        """Who made the prediction: the session's policy, or its backup."""
        return self.policy if self.fallback is None or self.fallback.backup is None else self.fallback.backup


@dataclass(frozen=True)
class StepResult:
    """Answers a step. The action and its prediction have the axis N of one situation, as all others."""

    step: int
    action: Floats  # [1, A], environment units, within the bounds
    prediction: Prediction | None  # of this action; None: a fallback's action where nothing can be predicted
    feasible: bool  # this action raises no flag
    chosen: int  # index of the chosen candidate
    fallback: FallbackTaken | None  # None: the policy's own action
    constraints: tuple[str, ...]  # names, in the order of every axis C
    account: Account
    policy: ServedPolicy
    timing: StepTiming
    state: bytes = field(repr=False)  # to go on from here
