"""Holding a measured episode cost at its limit: how much change of cost one E-step is asked for.

A bounded PI controller per constraint. It asks for a share of what one KL ball can reach, so the E-step stays feasible
and its multiplier finite; the critics tell how the cost changes, and what is measured how high it is.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cvpo.learning.config import LimitConfig, TrainConfig

Array = NDArray[np.float64]
# A cost of nothing under a limit of zero counts as a gap of this much below the limit. With less, what the integral
# asks for stays for longer, at reward's expense; with more, it is gone before a cost can come back.
LETTING_GO = 0.1
# A gap is told in units of the limit, or of what so many steps that cost come to where the limit is below that. With
# fewer, one such step is a large gap under a small limit; with more, gaps look small under limits of many steps, too.
FEW_STEPS = 10
# Yet that least unit is no more than this part of the costliest episode. With more, gaps look small where an episode
# has a step or two that cost, as a crash that ends it; with less, one such step is a large gap again.
SMALL_PART = 0.2


@dataclass(frozen=True)
class LimitController:
    """State of the controller of each constraint, [C]."""

    integral: Array  # part of the share
    # Running means:
    past_prediction: Array  # as old as the measured cost is; NaN: nothing was seen yet
    mean_prediction: Array  # of that, over long
    mean_measured: Array  # as long
    costly_steps: Array  # number of steps that cost
    step_cost: Array  # their mean cost
    episode_cost: Array  # the largest that was measured; infinite before the first

    @classmethod
    def start(cls, unit_threshold: Array) -> "LimitController":
        """Begin with what a value stands for where cost is spread evenly.

        Args:
            unit_threshold: of the critics' values for an episode cost of 1, [C].
        """
        return cls(
            integral=np.zeros_like(unit_threshold),
            past_prediction=np.full_like(unit_threshold, np.nan),
            mean_prediction=unit_threshold,
            mean_measured=np.ones_like(unit_threshold),
            costly_steps=np.zeros_like(unit_threshold),
            step_cost=np.zeros_like(unit_threshold),
            episode_cost=np.full_like(unit_threshold, np.inf),
        )

    def having_seen(self, cost: Array, measured_cost: Array | None) -> "LimitController":
        """Take in the costs of one step, [N, C], and the measured episode cost, [C]; None: too little to measure by."""
        costly_steps = self.costly_steps + np.count_nonzero(cost, axis=0)
        total = self.step_cost * self.costly_steps + cost.sum(0)
        seen = replace(self, costly_steps=costly_steps, step_cost=total / np.maximum(costly_steps, 1))
        if measured_cost is None:
            return seen
        first = np.isinf(self.episode_cost)
        return replace(seen, episode_cost=np.where(first, measured_cost, np.maximum(self.episode_cost, measured_cost)))

    def gap(self, episode_cost: Array, cost_limit: Array) -> Array:
        """(J − d)/max(d, least), [C]; an unconstrained cost counts as far below its limit, -1.

        Under a small limit a gap of the limit's own size is an accident of single steps. So there is a least unit, in
        what the environment's costs were seen to be: whatever unit they are counted in, a run is the same.
        """
        finite = np.isfinite(cost_limit)
        limit = np.where(finite, cost_limit, 0.0)
        unit = np.maximum(limit, np.minimum(FEW_STEPS * self.step_cost, SMALL_PART * self.episode_cost))
        relative = np.divide(episode_cost - limit, unit, out=np.zeros_like(limit), where=unit > 0)  # 0: no cost ever
        return np.where(finite, relative, -1.0)

    def seeing(self, predicted_cost: Array, measured_cost: Array, age: float, config: LimitConfig) -> "LimitController":
        """Take what is predicted and measured now into the running means; what is seen first takes their place.

        Args:
            predicted_cost: what the critics say of the present policy, [C].
            measured_cost: episode cost, [C].
            age: mean age of what the measured cost is of, in calls.
            config: of the controller.
        """
        first = np.isnan(self.past_prediction)
        past = np.where(first, predicted_cost, _towards(self.past_prediction, predicted_cost, 1 / age))
        rate = np.where(first, 1.0, 1 / (2 * age * config.level_windows))
        return replace(
            self,
            past_prediction=past,
            mean_prediction=_towards(self.mean_prediction, past, rate),
            mean_measured=_towards(self.mean_measured, measured_cost, rate),
        )

    def present_cost(self, predicted_cost: Array) -> Array:
        """Episode cost of the present policy, [C]: what the critics predict, at the level that was measured.

        What is measured is of policies that have changed since, and has much noise; what the critics predict is off by
        a factor, which changes slowly: the mean of the measured cost over that of what was predicted of it.
        """
        return np.asarray(predicted_cost * self.mean_measured / np.maximum(self.mean_prediction, 1e-12))

    def advanced(self, gap: Array, steps: int, config: LimitConfig) -> "LimitController":
        """Integrate the gap over environment steps; no further than to a share at its bound, so that it cannot wind up.

        What the gap itself asks for fills a part of the share: a long fall from far above the limit leaves an integral
        that is soon undone.
        """
        rate = config.integral_gain * np.clip(gap, -1, 1) * steps / config.integral_steps
        proportional = _proportional(gap, config)
        low, high = -1.0 - proportional, config.max_share - proportional
        integral = np.clip(self.integral + rate, np.minimum(self.integral, low), np.maximum(self.integral, high))
        return replace(self, integral=np.clip(integral, config.integral_low, config.integral_high))

    def taken_back(self, at_rest: NDArray[np.bool_], steps: int, config: LimitConfig) -> "LimitController":
        """Over environment steps take back what the integral asks for, and no more, of costs that are at rest, [C].

        That is a cost of nothing under a limit of zero. There is no gap below such a limit that would ever take it
        back, and reward would be forgotten for the rest of a run.
        """
        fall = LETTING_GO * config.integral_gain * steps / config.integral_steps
        return replace(self, integral=self.integral - np.where(at_rest, np.clip(self.integral, 0, fall), 0.0))

    def share(self, gap: Array, config: LimitConfig) -> Array:
        """Share of the reachable cost change to ask for, [C]: positive lowers the cost, negative lets it grow.

        Args:
            gap: of `present_cost`, [C].
            config: of the controller.
        """
        return np.clip(_proportional(gap, config) + self.integral, -1.0, config.max_share)

    def exhausted(self, gap: Array, config: LimitConfig) -> NDArray[np.bool_]:
        """Whether no more can be asked for of a measured gap, [C]: the share or its integral part is at its bound."""
        return (self.share(gap, config) >= config.max_share) | (self.integral >= config.integral_high)


def _towards(mean: Array, value: Array, rate: Array | float) -> Array:
    """A running mean with the newest value in it."""
    return np.asarray(mean + np.minimum(rate, 1.0) * (value - mean))


def _proportional(gap: Array, config: LimitConfig) -> Array:
    return np.where(gap > 0, config.gain_above * np.minimum(gap, 1), config.gain_below * np.maximum(gap, -2))


def limit_at(config: TrainConfig, steps: int) -> Array:
    """The cost limits that hold at a step of the environment, [C]: those of `limit.schedule`, in the end `cost_limits`.

    Linear between the points of the schedule; before its first, that one's.
    """
    schedule = config.limit.schedule
    if not schedule or steps >= schedule[-1].steps:
        return np.array(config.cost_limits)
    at, limits = [point.steps for point in schedule], np.array([point.cost_limits for point in schedule])
    return np.array([np.interp(steps, at, column) for column in limits.T])


def advantage_threshold(share: Array, least_cost: Array, reward_only_cost: Array, cost_limit: Array) -> Array:
    """Bound on mean_s E_q[A_c], [C].

    Args:
        share: of `LimitController.share`, [C].
        least_cost: the least E_q[A_c] in the KL ball, [C], <= 0.
        reward_only_cost: E_q[A_c] of the q that looks at reward alone, [C].
        cost_limit: [C]; +inf stays unconstrained.
    """
    threshold = np.where(share > 0, share * least_cost, -share * np.maximum(reward_only_cost, 0.0))
    return np.where(np.isfinite(cost_limit), threshold, np.inf)


@dataclass
class CostMeter:
    """The measured episode cost: that of the newest steps of each environment, per horizon, mean over environments.

    A window of steps, not of episodes: an episode that ends early does not look cheap.
    """

    window: Array  # [W, N, C], a ring
    count: int = 0

    @classmethod
    def start(cls, steps: int, num_envs: int, num_costs: int) -> "CostMeter":
        return cls(np.zeros((steps, num_envs, num_costs)))

    def add(self, cost: Array) -> None:
        """Take the costs of one step, [N, C]."""
        self.window[self.count % len(self.window)] = cost
        self.count += 1

    @property
    def full(self) -> bool:
        """Whether every step of the window has been."""
        return self.count >= len(self.window)

    def measured(self, horizon_steps: int) -> Array:
        """Cost per horizon of steps, [C]; zero before the first step."""
        steps = min(self.count, len(self.window))
        total = self.window[:steps].sum((0, 1)) / self.window.shape[1]
        return np.asarray(total * (horizon_steps / max(steps, 1)))
