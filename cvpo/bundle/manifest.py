"""What a bundle says of itself, `manifest.json`: everything the service must know of a policy, and a person should."""

import hashlib
import json
import math
from collections.abc import Sequence, Sized
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# 2: the golden request (golden.json, golden_tolerance). 1 is refused: nothing shows that it computes here what it did.
SCHEMA_VERSION: Literal[2] = 2
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

# What is kept to be drawn, `cvpo inspect --html`: enough for a picture, and a manifest stays small.
MOST_CURVE_POINTS, MOST_COSTS, MOST_EXAMPLE_STEPS = 100, 200, 200

Mode = Literal["deterministic", "sampled", "shielded"]
Precision = Literal["float32", "float16", "int8"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Step = Annotated[int, Field(ge=0, lt=2**31)]  # of an episode, counted from 0
Count = Annotated[int, Field(ge=0, lt=2**31)]  # of episodes, steps or candidates: messages have 32 bits for it


class _Model(BaseModel):
    # JSON has no infinity: in a training configuration it is written as text.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Space(_Model):
    """One vector space: names, and bounds where the environment has them (None: unbounded)."""

    names: tuple[str, ...] = Field(min_length=1)
    low: tuple[Finite | None, ...]
    high: tuple[Finite | None, ...]

    @property
    def size(self) -> int:
        return len(self.names)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if not len(self.low) == len(self.high) == len(self.names):
            raise ValueError(f"{len(self.names)} names, {len(self.low)} low and {len(self.high)} high bounds")
        if len(set(self.names)) < len(self.names):
            raise ValueError("two dimensions have the same name")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name}: the lower bound {low} is above the upper bound {high}")
        return self


class Constraint(_Model):
    """One cost and its limit, in the environment's cost units."""

    name: str = Field(min_length=1)
    unit: str = "cost"
    cost_limit: NonNegative | None  # expected undiscounted cost of one episode; None: unconstrained
    discount: Annotated[float, Field(gt=0, lt=1)]  # of the cost critic
    horizon_steps: Annotated[int, Field(gt=0, lt=2**31)]  # steps of one episode, T
    window_steps: Annotated[Count, Field(gt=0)]  # steps that a request without steps_left is judged over, W

    @property
    def limit_or_inf(self) -> float:
        """The cost limit as a number to compare with: infinite where there is none."""
        return math.inf if self.cost_limit is None else self.cost_limit

    def threshold(self) -> float:
        """Discounted threshold d·(1 − γ^T)/((1 − γ)·T) that stands for the episodic limit d.

        Exact where cost is spread evenly over an episode of T steps (Liu et al., 2022).
        """
        gamma, T = self.discount, self.horizon_steps
        return self.limit_or_inf * (1 - gamma**T) / ((1 - gamma) * T)


class Interval(_Model):
    """A mean over episodes, or a share of them, with its 95 % confidence interval."""

    mean: Finite
    low: Finite
    high: Finite

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"


class Evaluation(_Model):
    """What episodes of a policy in one mode came to.

    Those of a bundle are of its policy, and nothing was chosen or fitted on them. A run's are of its checkpoints, and
    `cvpo export --select` chooses by them.
    """

    mode: Mode
    episodes: Annotated[Count, Field(gt=0)]
    episode_return: Interval
    episode_cost: tuple[Interval, ...]  # [C]
    cost_cvar90: tuple[Finite, ...]  # [C], mean cost of the worst tenth of episodes
    over_limit_share: tuple[Probability, ...]  # [C], share of episodes over the limit
    costs: tuple[tuple[NonNegative, ...], ...] = Field(
        default=(), max_length=MOST_COSTS
    )  # [E, C], of the first E episodes

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(self.costs) > self.episodes:
            raise ValueError(f"{len(self.costs)} costs of {self.episodes} episodes")
        return self


class CalibratedMode(_Model):
    """A way of choosing actions whose rollouts the calibration saw."""

    mode: Mode
    candidates: Annotated[Count, Field(ge=1)] = 1  # K; 1 unless shielded

    def __str__(self) -> str:
        return self.mode if self.mode != "shielded" else f"shielded of {self.candidates}"

    @model_validator(mode="after")
    def _only_a_shield_chooses(self) -> Self:
        if (self.candidates > 1) != (self.mode == "shielded"):
            raise ValueError("a shielded mode has two candidates or more, and any other has one")
        return self


class ReliabilityBin(_Model):
    """What came of probabilities in one tenth of [0, 1]."""

    predicted: Probability  # their mean
    observed: Probability  # how often more was spent than allowed
    share: Probability  # of all that was predicted


class BoundCoverage(_Model):
    """How often bounds of about one size held."""

    cost_upper: NonNegative  # their mean
    coverage: Probability
    share: Probability  # of all bounds


class EpisodeExample(_Model):
    """What was said along the test episode that cost the most, before steps evenly spread over it."""

    budget: NonNegative  # that it had: the limit
    crossing: Step | None  # whose cost exceeded the budget; None: it stayed within it
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MOST_EXAMPLE_STEPS)
    spent: tuple[NonNegative, ...] = Field(max_length=MOST_EXAMPLE_STEPS)  # before each of them
    violation_probability: tuple[Probability, ...] = Field(max_length=MOST_EXAMPLE_STEPS)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if not len(self.steps) == len(self.spent) == len(self.violation_probability):
            raise ValueError("steps, spent and violation_probability differ in length")
        _check_increasing(self.steps)
        return self


class CalibrationResult(_Model):
    """What held on test episodes, for one constraint.

    Flags are tried in sessions: each episode with budgets from a quarter of the limit to twice the limit; a shielded
    one with the limit alone, which it was shielded for.
    """

    constraint: str
    test_episodes: Count
    coverage: Probability | None  # of test steps, those whose cost was within cost_upper; None: none was observed
    window_coverage: Probability | None = None  # the same of windows of W steps alone
    rest_coverage: Probability | None = None  # and of all the steps that were left
    coverage_by_bound: tuple[BoundCoverage, ...] = ()  # from low bounds to high ones
    missed_share: Probability | None  # of sessions over budget, not too soon, those without a flag in time; None: none
    limit_missed_share: Interval | None = None  # the same of sessions with the limit alone; None: there were none
    too_soon_share: Probability | None = None  # of sessions over budget, those over it within lead_steps of the start
    flagged_share: Probability | None  # of the steps of sessions within budget; None: there were none
    lead_steps_median: NonNegative | None = None  # from the first flag to exceeding the budget; None: no such flag
    reliability: tuple[ReliabilityBin, ...] = ()  # of violation_probability
    calibration_error: Probability | None = None  # its expected calibration error
    intervals: dict[str, tuple[Probability, Probability]] = Field(
        default_factory=dict
    )  # of those of the shares above, by name, that resampling the episodes gives a 95 % interval: its low and high end
    cost_to_go_mean: NonNegative  # predicted at the first step, for the whole episode
    episode_cost_mean: NonNegative  # realized
    example: EpisodeExample | None = None  # flags along an episode; None: no limit, or not of the first mode


class ModeResult(_Model):
    """What held in a mode that was calibrated beside the first one."""

    mode: CalibratedMode
    episodes: dict[str, Count]  # what each group of its rollouts was used for
    results: tuple[CalibrationResult, ...]  # [C]


class Calibration(_Model):
    """How far predicted costs and flags can be trusted, and on what evidence."""

    method: str
    modes: tuple[CalibratedMode, ...] = Field(min_length=1)  # bounds and probabilities hold in each of them
    confidence: Probability  # P(cost <= cost_upper) is at least this
    miss_rate: Probability  # of sessions over budget, not too soon to announce, what alarm_levels were chosen for
    lead_steps: Annotated[Count, Field(ge=1)] = 1  # before the budget is exceeded: a flag any later counts as missed
    alarm_levels: tuple[Probability, ...]  # [C]
    episodes: dict[str, Count]  # what each group of rollouts was used for, in the first mode
    results: tuple[CalibrationResult, ...]  # [C], in the first mode
    other_modes: tuple[ModeResult, ...] = ()
    not_claimed: tuple[str, ...] = ()  # what the episodes were too few to promise, in sentences


class ObservationStatistics(_Model):
    """What the policy saw in training; `shift_score` over `shift_threshold` means outside of it."""

    mean: tuple[Finite, ...]
    standard_deviation: tuple[NonNegative, ...]
    low: tuple[Finite, ...]
    high: tuple[Finite, ...]
    shift_threshold: NonNegative
    shift_false_alarm_rate: Probability | None = None  # of a fresh episode's steps, expected; None: nothing is claimed
    shift_episodes: Count = 0  # that the threshold was set on
    frozen_after_steps: tuple[Step | None, ...] = ()  # [O] that a value may repeat exactly; None: any, (): all of them


class StoredWeights(_Model):
    """Networks that are stored in fewer bits than they learned in: how far that moves them on real observations."""

    precision: Precision
    action_difference: Probability  # largest, in shares of the action's range
    value_difference: NonNegative  # largest of reward and cost values, in shares of the largest of each
    most_difference: Probability  # either may be at most that much; otherwise nothing is exported


class CurvePoint(_Model):
    """The evaluation of one checkpoint of the run."""

    steps: Annotated[int, Field(ge=0, lt=2**63)]
    episode_return: Interval
    episode_cost: tuple[Interval, ...]  # [C]


class Provenance(_Model):
    """Where the policy comes from: enough to train it again."""

    environment: str
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    steps: Annotated[int, Field(ge=0, lt=2**63)]
    selection: str  # which checkpoint was taken, and how
    created: str  # ISO 8601, UTC
    packages: dict[str, str]
    config: dict[str, object]
    calibrated_from: str | None = None  # SHA-256 of the manifest of the bundle whose networks were measured again
    measured_in: str | None = None  # environment of calibration and evaluations; None: the one above, trained in
    learning_curve: tuple[CurvePoint, ...] = Field(default=(), max_length=MOST_CURVE_POINTS)  # up to this checkpoint

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        _check_increasing([point.steps for point in self.learning_curve])
        if self.learning_curve and self.learning_curve[-1].steps > self.steps:
            raise ValueError(f"learning_curve goes on after {self.steps} steps")
        return self


class FileEntry(_Model):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: Annotated[int, Field(ge=0)]


class Manifest(_Model):
    """Everything the service must know of a policy, and everything a person should."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: Annotated[int, Field(gt=0, lt=2**63)]
    observation: Space
    action: Space  # environment units, bounded
    fingerprint: str = ""  # see compute_fingerprint; filled in when empty, else checked
    control_period_ms: Annotated[float, Field(gt=0)] | None
    safe_action: tuple[Finite, ...]  # environment units
    constraints: tuple[Constraint, ...] = Field(min_length=1)
    calibration: Calibration | None
    observation_statistics: ObservationStatistics
    evaluations: tuple[Evaluation, ...]
    provenance: Provenance
    stored_weights: StoredWeights | None = None  # None: in float32, as they learned
    golden_tolerance: Annotated[float, Field(gt=0, le=0.1)] = 1e-4  # share of an output's largest value; kernels differ
    files: dict[str, FileEntry] = Field(default_factory=dict)  # but this one and the signature; by write_bundle

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the axes O, A and C."""
        return {"O": self.observation.size, "A": self.action.size, "C": len(self.constraints)}

    @property
    def horizon_steps(self) -> int:
        return self.constraints[0].horizon_steps

    @property
    def window_steps(self) -> int:
        return self.constraints[0].window_steps

    @property
    def alarm_levels(self) -> tuple[float, ...]:
        """Level of each constraint, [C]; 0 without calibration: every possible violation raises the flag."""
        return self.calibration.alarm_levels if self.calibration else (0.0,) * len(self.constraints)

    def compute_fingerprint(self) -> str:
        """Hash of what a client must agree on: spaces with their bounds and names, constraints' names and units."""
        agreed = {
            "observation": self.observation.model_dump(mode="json"),
            "action": self.action.model_dump(mode="json"),
            "constraints": [(c.name, c.unit) for c in self.constraints],
        }
        return hashlib.sha256(canonical(agreed)).hexdigest()[:16]

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        action_size, observation_size = self.action.size, self.observation.size
        if any(bound is None for bound in (*self.action.low, *self.action.high)):
            raise ValueError("action: every bound must be finite")
        if len(self.safe_action) != action_size:
            raise ValueError(f"safe_action has {len(self.safe_action)} entries, the action has {action_size}")
        for low, safe, high in zip(self.action.low, self.safe_action, self.action.high, strict=True):
            if low is not None and high is not None and not low <= safe <= high:
                raise ValueError(f"safe_action: {safe} is outside the action's bounds, {low} to {high}")
        if len({(c.horizon_steps, c.window_steps) for c in self.constraints}) > 1:
            raise ValueError("constraints: horizon_steps and window_steps must be the same for all")
        if self.window_steps > self.horizon_steps:
            raise ValueError(f"window_steps {self.window_steps} is longer than horizon_steps {self.horizon_steps}")
        if len({c.name for c in self.constraints}) < len(self.constraints):
            raise ValueError("constraints: two have the same name")
        statistics = self.observation_statistics
        for field in ("mean", "standard_deviation", "low", "high"):
            if len(getattr(statistics, field)) != observation_size:
                raise ValueError(f"observation_statistics.{field} must have {observation_size} entries")
        if statistics.frozen_after_steps and len(statistics.frozen_after_steps) != observation_size:
            raise ValueError(f"observation_statistics.frozen_after_steps must have {observation_size} entries, or none")
        calibration = self.calibration
        if calibration and not len(calibration.alarm_levels) == len(calibration.results) == len(self.constraints):
            raise ValueError("calibration: alarm_levels and results need one entry for each constraint")
        rows: list[Sized] = [point.episode_cost for point in self.provenance.learning_curve]
        for evaluation in self.evaluations:
            rows += [evaluation.episode_cost, evaluation.cost_cvar90, evaluation.over_limit_share, *evaluation.costs]
        if any(len(row) != len(self.constraints) for row in rows):
            raise ValueError("evaluations and provenance.learning_curve need one cost for each constraint")
        fingerprint = self.compute_fingerprint()
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", fingerprint)
        elif self.fingerprint != fingerprint:
            raise ValueError("fingerprint does not belong to these spaces and constraints")
        return self


def _check_increasing(steps: Sequence[int]) -> None:
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError("steps do not increase")


def canonical(document: object) -> bytes:
    """A JSON document as the bytes that are hashed: sorted, without spaces."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
