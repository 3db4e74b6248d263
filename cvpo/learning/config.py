"""Every setting of a training run, its default, and what it means."""

import math
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cvpo.defaults import STEP_TIMEOUT_SECONDS
from cvpo.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, lt=2**31)]  # beyond, sizes of arrays and dates overflow
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Discount = Annotated[float, Field(gt=0, lt=1)]
CostLimit = Annotated[float, Field(ge=0)]  # per episode, undiscounted; inf: unconstrained


class _Group(BaseModel):
    # JSON has no infinity: a limit of inf is written as text, and read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class EnvironmentConfig(_Group):
    """What is learned in."""

    env_id: str
    cost_names: tuple[str, ...] = ()  # keys of info; empty: the total cost
    # Needed where the environment has no time limit of its own; bundles hold none of 2**31 or more.
    max_episode_steps: Count | None = None
    num_envs: Annotated[int, Field(gt=0, le=100_000)] = 5  # each is an object, and takes its steps by itself
    workers: CountOrZero = 1  # simulator processes; 0: none, simulate in the learner's process
    step_timeout_seconds: Positive = STEP_TIMEOUT_SECONDS  # one that takes longer for a step counts as hung


class ScheduleConfig(_Group):
    """How much is collected, learned, saved and evaluated."""

    steps: Count
    warmup_steps: Count = 5_000  # of uniform random actions
    warmup_updates: CountOrZero = 500  # when the warm-up ends
    updates_per_step: Annotated[float, Field(gt=0, le=1e6)] = 0.2
    checkpoint_every: Count = 10_000  # steps; each checkpoint is evaluated
    evaluation_episodes: Count = 10
    evaluation_workers: CountOrZero = 1


class ReplayConfig(_Group):
    capacity: Count = 1_000_000
    batch_size: Annotated[int, Field(ge=4, lt=2**31)] = 256
    recent_episodes: Positive = 5.0  # the newest part, of which half of each batch is drawn


class NetworkConfig(_Group):
    hidden: Count = 128
    reward_heads: Count = 1
    cost_heads: Count = 2  # averaged
    covariance: Literal["diagonal", "full"] = "diagonal"  # of the policy


class CriticConfig(_Group):
    discount: Discount = 0.99
    cost_discounts: tuple[Discount, ...] = ()  # one per cost, in the order of the limits; none: as the reward's
    n_step: Count = 5
    learning_rate: Positive = 1e-3
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    # What the cost critics judge: an action followed by the policy as it is served, deterministic, or as it explores.
    cost_policy: Literal["served", "behavior"] = "served"
    # What follows the last step before the time limit: the state that was reached, as if the episode went on, or the
    # first of the next one. Where a state tells the time (a robot that runs along a line), what comes after the last is
    # never visited, and critics make it up.
    after_time_limit: Literal["state", "next_episode"] = "state"


class LimitPoint(NamedTuple):
    """The cost limits at one step of a schedule."""

    steps: Annotated[int, Field(ge=0)]
    cost_limits: tuple[CostLimit, ...]  # one per cost


class LimitConfig(_Group):
    """The controller that holds the measured cost at its limit (cvpo/learning/limit.py)."""

    # Limits on the way to `cost_limits`: linear between these points, `cost_limits` from the last one on. What is
    # reported of a policy speaks of `cost_limits` throughout.
    schedule: tuple[LimitPoint, ...] = ()
    # Environments (at most all but one) that take the deterministic action, as the served policy will, and whose cost
    # alone is measured; 0: all are measured as they explore. A swimmer held at its limit as it explores did nothing
    # when served: return -0.9 and cost 0.2, against 36 and 24 with two (20,000 steps, limit 25, one seed).
    deterministic_envs: CountOrZero = 2
    aim: Annotated[float, Field(gt=0, le=1)] = 0.7  # share of the limit that the cost is held at: room for error
    # The measured cost is that of an episode, mean over so many episodes' worth of each environment's newest steps.
    # Fewer tell of a change sooner, with more noise; more tell of it later, with less.
    window_episodes: Annotated[float, Field(gt=0, le=1e9)] = 2.0
    gain_above: Positive = 0.5
    gain_below: Positive = 0.5
    integral_gain: Positive = 0.3
    integral_steps: Count = 10_000
    integral_low: Finite = -0.3
    integral_high: Finite = 0.8
    # The proportional part answers to what the critics predict, at the level that was measured over so many windows;
    # the integral part to the measured cost alone.
    level_windows: Positive = 2.0
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.9


class EStepConfig(_Group):
    kl_bound: Positive = 0.1
    samples: Annotated[int, Field(ge=4, lt=2**31, multiple_of=2)] = 16  # K
    # measured: a controller on the measured episode cost asks for a share of what the KL ball can reach.
    # critic: E_q[Q_c] under the discounted threshold, the paper's own form, on recent states.
    constraint: Literal["measured", "critic"] = "measured"


class MStepConfig(_Group):
    kl_mean_bound: Positive = 0.03
    kl_covariance_bound: Positive = 1e-3
    learning_rate: Positive = 1e-3
    period: Count = 50  # updates between two copies to the behavior policy


class SettleConfig(_Group):
    """The end of a run: smaller and smaller steps, so that its last policy is no accident of the last update."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.3  # of the planned steps
    floor: Annotated[float, Field(gt=0, le=1)] = 0.03  # of the policy's learning rate and KL bounds, at the last step
    # The last part of the planned steps, in which the policy is held as it is while its measured cost is within the
    # limits: a proof of it, in which the critics go on learning (cvpo/training/proof.py).
    proof: Annotated[float, Field(ge=0, lt=1)] = 0.1


class ComputeConfig(_Group):
    """What a run computes on. Nothing here changes what is learned, but for rounding."""

    # auto: where a CUDA device is found, what is faster at the run's sizes, measured as the run begins.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(gt=0, le=1024)] = 1  # of the learner, on a CPU; the other cores simulate
    # Of the target critics' matrix products, which are most of an update's arithmetic. All else is float32, and the
    # dual float64.
    precision: Literal["float32", "bfloat16"] = "float32"


class TrainConfig(_Group):
    """A training run.

    On the CPU, two runs with the same config, on the same machine with the same package versions, are the same. On CUDA
    they are not, to the bit; and where there is such a device, `compute.device` auto takes it or the CPU by a timing.
    """

    environment: EnvironmentConfig
    cost_limits: tuple[CostLimit, ...] = Field(min_length=1)
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0  # torch's have 64 bits
    schedule: ScheduleConfig
    replay: ReplayConfig = ReplayConfig()
    network: NetworkConfig = NetworkConfig()
    critic: CriticConfig = CriticConfig()
    limit: LimitConfig = LimitConfig()
    estep: EStepConfig = EStepConfig()
    mstep: MStepConfig = MStepConfig()
    settle: SettleConfig = SettleConfig()
    compute: ComputeConfig = ComputeConfig()

    @property
    def cost_discounts(self) -> tuple[float, ...]:
        """Of each cost."""
        return self.critic.cost_discounts or (self.critic.discount,) * len(self.cost_limits)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        names, limits = self.environment.cost_names, self.cost_limits
        if names and len(names) != len(limits):
            raise ValueError(f"{len(limits)} cost limits for {len(names)} costs {names}; give one limit per cost")
        discounts = self.critic.cost_discounts
        if discounts and len(discounts) != len(limits):
            raise ValueError(f"{len(limits)} cost limits for {len(discounts)} critic.cost_discounts; give one per cost")
        if self.limit.integral_low > self.limit.integral_high:
            raise ValueError(
                f"limit.integral_low is {self.limit.integral_low}, over limit.integral_high "
                f"{self.limit.integral_high}; the integral part is held between the two"
            )
        if self.replay.batch_size > self.replay.capacity:
            raise ValueError(
                f"replay.batch_size is {self.replay.batch_size}, over replay.capacity {self.replay.capacity}; a batch "
                f"is drawn from what the replay holds"
            )
        first_return = self.critic.n_step * self.environment.num_envs
        if self.schedule.warmup_steps < first_return:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}, but the first returns over "
                f"{self.critic.n_step} steps of {self.environment.num_envs} environments take {first_return}"
            )
        warmup = -(-self.schedule.warmup_steps // self.environment.num_envs) * self.environment.num_envs
        if self.schedule.steps <= warmup:
            raise ValueError(
                f"schedule.steps is {self.schedule.steps}, but nothing is learned in the first {warmup}, of uniform "
                f"random actions (schedule.warmup_steps is {self.schedule.warmup_steps}); give more steps, or a "
                f"shorter warm-up"
            )
        return self

    @model_validator(mode="after")
    def _limits_can_be_scheduled(self) -> Self:
        points, limits = self.limit.schedule, self.cost_limits
        for before, after in pairwise(points):
            if after.steps <= before.steps:
                raise ValueError(
                    f"limit.schedule goes from {before.steps} steps to {after.steps}; each point comes after the "
                    f"one before it"
                )
        for point in points:
            if len(point.cost_limits) != len(limits):
                raise ValueError(
                    f"limit.schedule has {len(point.cost_limits)} limits at {point.steps} steps, but there are "
                    f"{len(limits)} cost limits; give one limit per cost"
                )
            if [math.isinf(limit) for limit in point.cost_limits] != [math.isinf(limit) for limit in limits]:
                raise ValueError(
                    f"limit.schedule is {list(point.cost_limits)} at {point.steps} steps and the cost limits are "
                    f"{list(limits)}, but no line leads from inf to a number; a limit that is inf stays inf (a large "
                    f"number does for a time without one)"
                )
        if points and points[-1].steps >= self.schedule.steps:
            raise ValueError(
                f"limit.schedule ends at {points[-1].steps} steps, but the run at {self.schedule.steps}: cost_limits "
                f"would never hold; end it before"
            )
        return self


def parse_config(document: object) -> TrainConfig:
    """Check a config, as parsed from a file or put together from flags.

    Raises:
        ConfigError: names the setting, and says what is wrong with it.
    """
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, [...]")
        if not first["loc"]:  # settings that do not fit each other: the message names them
            raise ConfigError(f"{message}.") from error
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {message} (got {first['input']!r}).") from error
