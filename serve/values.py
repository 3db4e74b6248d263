"""What goes into a policy and comes out of it, as numpy arrays, and in the server as lists: the words that client and
server share.

Shapes are for N situations, O observation and A action dimensions, C constraints. For a single situation the client
leaves the first axis away. Costs are undiscounted unless said otherwise, in the environment's cost units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
Rows = list[list[float]]  # [N, ...]


class CalibrationStatus(IntEnum):
    """Whether a prediction is backed by measurement; the numbers are those of the proto."""

    CALIBRATED = 1
    NONE = 2  # no calibration in the bundle; every answer is flagged
    MODE = 3  # this mode, or this number of candidates, was not calibrated
    EXTERNAL_ACTION = 4  # the action is not the policy's own
    SHIFTED = 5  # the observation is outside what was seen in training, or frozen; the answer is flagged


@dataclass(frozen=True)
class Deterministic:
    """The most likely action."""


@dataclass(frozen=True)
class Sampled:
    """An action drawn from the policy."""

    seed: int | None = None  # None: the server draws one


@dataclass(frozen=True)
class Shielded:
    """The deterministic action; where it raises a flag, the safest of several candidates, of which it is the first."""

    candidates: int  # K, at least 2
    seed: int | None = None  # None: the server draws one


Mode = Deterministic | Sampled | Shielded


@dataclass(frozen=True)
class Frame:
    """What a request to one policy is measured against."""

    observation_size: int
    observation_bounds: tuple[Floats, Floats] | None  # low and high [O] of the space; None: it has no bound at all
    action_low: Floats  # [A]
    action_high: Floats  # [A]
    cost_limit: tuple[float, ...]  # [C], per episode; infinity: unconstrained
    horizon_steps: int
    window_steps: int  # steps that a situation without steps_left is judged over

    def outside(self, observation: Sequence[Sequence[float]]) -> Bools:
        """Return which of the observations [N, O] are outside of the observation space, [N, O]."""
        values = np.array(observation, np.float32)
        if self.observation_bounds is None:
            return np.zeros_like(values, np.bool_)
        low, high = self.observation_bounds
        return (values < low) | (values > high)

    def share(self, steps_left: int) -> list[float]:
        """The limit's share of so many steps, limit · steps/horizon, [C]: what is allowed by default."""
        return [limit * steps_left / self.horizon_steps for limit in self.cost_limit]


class Situations(NamedTuple):
    """What N robots see, and what each may still spend. In lists, as messages have it."""

    observation: Sequence[Sequence[float]]  # [N, O]
    steps_left: list[int]  # [N], 1 to the horizon
    cost_allowed: Rows  # [N, C], over those steps; infinity: unconstrained
    repeats: list[list[int]] | None = None  # [N, O], steps in a row that a value was exactly the same; None: not told


# What the server computes is in lists, with the fields and the axes of what the client makes of it, below.


class PredictionLists(NamedTuple):
    """As Prediction."""

    constraints: tuple[str, ...]
    cost_value: Rows
    cost_to_go: Rows
    cost_upper: Rows
    violation_probability: Rows
    violation: list[list[bool]]
    cost_allowed: Rows
    alarm_level: Sequence[float]
    steps_left: list[int]
    reward_value: list[float]
    shift_score: list[float]
    calibration_status: list[CalibrationStatus]

    @property
    def flagged(self) -> list[bool]:
        """Whether any constraint's violation flag is raised, [N]."""
        return [True in flags for flags in self.violation]


class ActLists(NamedTuple):
    """As ActResult."""

    policy: "ServedPolicy"
    action: Rows
    feasible: list[bool]
    chosen: list[int]
    prediction: PredictionLists
    compute_seconds: float


class EvaluateActionLists(NamedTuple):
    """As EvaluateActionResult."""

    policy: "ServedPolicy"
    prediction: PredictionLists
    compute_seconds: float


@dataclass(frozen=True)
class Prediction:
    """What is predicted after an action, if the policy goes on from there."""

    constraints: tuple[str, ...]  # names, in the order of every axis C
    cost_value: Floats  # [N, C], expected discounted cost from here on
    cost_to_go: Floats  # [N, C], expected cost of the next steps_left steps
    cost_upper: Floats  # [N, C], bound on that cost at the calibration's confidence; infinity: none can be stated
    violation_probability: Floats  # [N, C], that the cost of the next steps_left steps exceeds cost_allowed
    violation: Bools  # [N, C], that probability is over alarm_level, or nothing measured backs it
    cost_allowed: Floats  # [N, C]
    alarm_level: Floats  # [C]
    steps_left: Integers  # [N]
    reward_value: Floats  # [N], expected discounted reward from here on
    shift_score: Floats  # [N], standard deviations outside of what was seen in training; 0 inside
    calibration_status: Integers  # [N], compare with CalibrationStatus

    @property
    def flagged(self) -> Bools:
        """Whether any constraint's violation flag is raised, [N]."""
        return np.asarray(self.violation.any(axis=-1))

    def single(self) -> "Prediction":
        """The first situation's prediction, without the axis N."""
        return Prediction(
            constraints=self.constraints,
            cost_value=self.cost_value[0],
            cost_to_go=self.cost_to_go[0],
            cost_upper=self.cost_upper[0],
            violation_probability=self.violation_probability[0],
            violation=self.violation[0],
            cost_allowed=self.cost_allowed[0],
            alarm_level=self.alarm_level,
            steps_left=self.steps_left[0, ...],
            reward_value=self.reward_value[0, ...],
            shift_score=self.shift_score[0, ...],
            calibration_status=self.calibration_status[0, ...],
        )


@dataclass(frozen=True)
class ServedPolicy:
    """Who answered."""

    name: str
    version: int
    fingerprint: str  # of its spaces and constraints


@dataclass(frozen=True)
class ActResult:
    """Actions, and what is predicted of them."""

    policy: ServedPolicy
    action: Floats  # [N, A], environment units, within the bounds
    feasible: Bools  # [N], the chosen action raises no flag
    chosen: Integers  # [N], index of the chosen candidate
    prediction: Prediction
    compute_seconds: float  # spent in the server

    def single(self) -> "ActResult":
        """The first situation's answer, without the axis N."""
        return replace(
            self,
            action=self.action[0],
            feasible=self.feasible[0, ...],
            chosen=self.chosen[0, ...],
            prediction=self.prediction.single(),
        )


@dataclass(frozen=True)
class EvaluateActionResult:
    """What is predicted of actions that come from elsewhere."""

    policy: ServedPolicy
    prediction: Prediction
    compute_seconds: float  # spent in the server

    def single(self) -> "EvaluateActionResult":
        """The first action's judgement, without the axis N."""
        return replace(self, prediction=self.prediction.single())


@dataclass(frozen=True)
class Space:
    """A vector space: names, and bounds that are infinite where there are none."""

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class ConstraintDescription:
    """One cost and its limit."""

    name: str
    unit: str
    cost_limit: float  # expected undiscounted cost of one episode; infinity: unconstrained
    discount: float  # of cost_value
    cost_threshold: float  # discounted, stands for the limit


@dataclass(frozen=True)
class CalibrationDescription:
    """How the predictions were calibrated."""

    method: str
    modes: tuple[str, ...]  # such as "deterministic" or "shielded(8)"
    confidence: float  # probability with which cost_upper holds, at least
    miss_rate: float  # share of violations that the alarm levels were chosen to miss, at most
    alarm_levels: tuple[float, ...]  # [C]
    episodes: dict[str, int]  # number of episodes of each use


@dataclass(frozen=True)
class PolicyDescription:
    """What a client must know of a policy."""

    policy: ServedPolicy
    environment: str
    observation: Space
    action: Space
    constraints: tuple[ConstraintDescription, ...]
    horizon_steps: int  # of one episode
    window_steps: int  # that predictions speak of where a request does not say
    control_period_seconds: float | None
    safe_action: tuple[float, ...]  # environment units; what to do when no answer comes
    calibration: CalibrationDescription | None  # None: every answer is flagged
    shift_threshold: float
    versions: tuple[int, ...]  # on the server, oldest first
