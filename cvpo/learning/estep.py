"""The E-step: the best reweighting of sampled actions under cost thresholds and a KL bound, by its convex dual."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from cvpo.errors import NonFiniteError

Array = NDArray[np.float64]

TOLERANCE = 1e-8  # of the scaled KKT residuals that end the solver
MET_TOLERANCE = 1e-6  # scaled excess of a solution that is called feasible
FEASIBILITY_MARGIN = 1e-9  # scaled excess that still counts as met
NOTHING = 1e-9  # scaled change of a cost that counts as none: the mean over actions is rounded
MAX_NEWTON_STEPS = 60
NEAR_STEPS = 12  # from a similar batch's solution; more than that, and feasibility is asked first
MIN_TEMPERATURE = 1e-4  # relative to the spread of the values; below it the KL bound does not bind


@dataclass(frozen=True)
class DualSolution:
    """The E-step's distribution q and the proof that it keeps its promises.

    `kl_residual` and `cost_residual` are relative: mean KL over its bound minus 1, and (E_q[Q_c] − d) in standard
    deviations of Q_c over actions. Neither is above the solver's tolerance when `feasible`.
    """

    temperature: float  # eta > 0
    cost_multiplier: Array  # lambda >= 0, [C]
    weights: Array  # q on the sampled actions, [B, K], rows sum to 1
    kl: float  # mean_s KL(q || behavior policy), nats
    cost: Array  # mean_s E_q[Q_c], [C]
    kl_residual: float
    cost_residual: Array  # [C]; -inf where unconstrained
    infeasibility: Array  # max(0, mean_s E_q[Q_c] − d) where no q meets every threshold, else 0, [C], cost units
    feasible: bool
    newton_steps: int


def solve_dual(
    reward_value: Array,
    cost_value: Array,
    cost_threshold: Array,
    kl_bound: float,
    start: tuple[float, Array] | None = None,
) -> DualSolution:
    """Find the temperature and cost multipliers of the E-step (Liu et al., 2022, E-step dual).

    Minimizes  eta·kl_bound + lambda·d + eta·mean_s log mean_a exp((Q_r − lambda·Q_c)/eta)  over eta > 0 and
    lambda >= 0, where it is jointly convex, by Newton's method with its exact derivatives. Adding a constant per state
    to Q_r changes nothing but the minimum.

    Args:
        reward_value: Q_r of the sampled actions, [B, K].
        cost_value: Q_c of the sampled actions, [B, K, C], environment cost units.
        cost_threshold: d, [C]; +inf leaves a constraint out.
        kl_bound: bound on mean_s KL(q || behavior policy), nats. At log K or above it cannot bind.
        start: temperature and multipliers [C] of a similar batch, to start from.

    Returns:
        The solution. When no distribution inside the KL ball meets every threshold, `feasible` is False and the
        weights are those whose largest excess, in standard deviations of Q_c, is least (see `least_excess`).

    Raises:
        NonFiniteError: a value is NaN or infinite; names the argument.
        ValueError: shapes do not fit, or kl_bound is not positive.
    """
    _check(reward_value, cost_value, cost_threshold, kl_bound)
    constrained = np.isfinite(cost_threshold)
    problem = _Problem.scaled(reward_value, cost_value[..., constrained], cost_threshold[constrained], kl_bound)
    near = None if start is None else _newton(problem, problem.scale(start[0], start[1][constrained]), NEAR_STEPS)
    if near is not None:  # a KKT point: no need to ask whether there is one
        return _unscale(problem, near.x, True, near.steps, constrained, cost_threshold, cost_value)
    unconstrained = _minimize(problem.without_costs(), np.array([1 / math.sqrt(2 * kl_bound)]))
    x = np.concatenate([unconstrained.x[:1], np.zeros(len(problem.cost))])
    steps = unconstrained.steps
    if np.any(problem.excess(x) > TOLERANCE):
        probe = _least_excess(problem, np.ones(len(problem.cost)))
        steps += probe.steps
        if probe.value > FEASIBILITY_MARGIN:
            return _unscale(problem, probe.x, False, steps, constrained, cost_threshold, cost_value)
        x[1:] = 1.0
        solution = _minimize(problem, x)
        x, steps = solution.x, steps + solution.steps
        if np.any(
            problem.excess(x) > MET_TOLERANCE
        ):  # a fallback may have ended early; feasible is proven, not assumed
            return _unscale(problem, probe.x, False, steps, constrained, cost_threshold, cost_value)
    return _unscale(problem, x, True, steps, constrained, cost_threshold, cost_value)


def least_excess(cost_value: Array, cost_threshold: Array, kl_bound: float) -> tuple[float, Array]:
    """Find how far the thresholds can be met inside the KL ball.

    Solves  min_q max_i (mean_s E_q[Q_ci] − d_i)/s_i  with mean KL(q) <= kl_bound and s_i the standard deviation of
    Q_ci over actions; it is positive exactly when no distribution in the ball meets every threshold.

    Args:
        cost_value: Q_c of the sampled actions, [B, K, C].
        cost_threshold: d, finite, [C].
        kl_bound: nats.

    Returns:
        The least largest excess in standard deviations, and the cost E_q[Q_c] it is reached with, [C].

    Raises:
        NonFiniteError, ValueError: as `solve_dual`.
    """
    no_reward = np.zeros(cost_value.shape[:2])
    _check(no_reward, cost_value, cost_threshold, kl_bound)
    problem = _Problem.scaled(no_reward, cost_value, cost_threshold, kl_bound)
    probe = _least_excess(problem, np.ones(len(cost_threshold)))
    weights = problem.weights(probe.x)
    return probe.value, np.asarray(np.einsum("bk,bkc->c", weights, cost_value) / len(weights))


def reachable_share(advantage: Array, change: Array, kl_bound: float) -> float:
    """Find what share of a change of several costs the KL ball can reach.

    Solves  max f  such that some q with mean KL(q) <= kl_bound has mean_s E_q[A_ci] <= f·change_i for every i. It is 0
    or more, since q = behavior policy changes nothing.

    Args:
        advantage: A_c of the sampled actions, [B, K, C]; its mean over actions is 0.
        change: what is asked of E_q[A_c], finite, [C]; below 0 at least once, or every share is within reach. Where it
            is nothing beside the spread of A_c, that cost is asked not to rise.
        kl_bound: nats.

    Raises:
        NonFiniteError, ValueError: as `solve_dual`, or nothing is asked for.
    """
    if not (change < 0).any():
        raise ValueError(f"change {change} asks no cost to fall: there is no largest share of it")
    no_reward = np.zeros(advantage.shape[:2])
    _check(no_reward, advantage, change, kl_bound)
    problem = _Problem.scaled(no_reward, advantage, change, kl_bound)
    # Not the threshold of the problem, from which a mean of 0, and with it a rounding error, was taken.
    asked = np.where(np.abs(change) > NOTHING * problem.cost_scale, change / problem.cost_scale, 0.0)
    if not (asked < 0).any():
        return 1.0
    # A share of 1 − t leaves an excess of −t·change over all of it.
    return 1 - _least_excess(replace(problem, threshold=asked), -asked).value


@dataclass(frozen=True)
class _Problem:
    """The dual in scaled units: values centred per state and divided by their standard deviation over actions.

    States come last here, so that sums over the few actions of a state run along rows of states.
    """

    reward: Array  # [K, B]
    cost: Array  # [C, K, B]
    threshold: Array  # [C]
    kl_bound: float
    reward_scale: float
    cost_scale: Array  # [C]
    # Adds ½ (allowance·lambda)², which makes it the dual of  min ½ t²  with E_q[Q_c] − d <= t·allowance; [C].
    allowance: Array | None = None

    @classmethod
    def scaled(cls, reward_value: Array, cost_value: Array, threshold: Array, kl_bound: float) -> "_Problem":
        reward = np.ascontiguousarray(reward_value.T)
        reward = reward - reward.mean(0)
        cost = np.ascontiguousarray(cost_value.T)
        level = cost.mean(1)
        cost = cost - level[:, None]
        reward_scale = float(np.sqrt(np.square(reward).mean())) or 1.0
        cost_scale = np.sqrt(np.square(cost).mean((1, 2)))
        cost_scale = np.where(cost_scale > 0, cost_scale, 1.0)
        threshold = (threshold - level.mean(1)) / cost_scale
        return cls(
            reward / reward_scale, cost / cost_scale[:, None, None], threshold, kl_bound, reward_scale, cost_scale
        )

    def without_costs(self) -> "_Problem":
        return replace(self, cost=self.cost[:0], threshold=self.threshold[:0])

    def without_reward(self) -> "_Problem":
        return replace(self, reward=np.zeros_like(self.reward), reward_scale=1.0)

    def scale(self, temperature: float, multiplier: Array) -> Array:
        return np.concatenate([[temperature / self.reward_scale], multiplier * self.cost_scale / self.reward_scale])

    def _tilt(self, x: Array) -> tuple[Array, Array, Array]:
        """Logits z [K, B], weights q [K, B], and log mean_a exp z [B]."""
        z = self.reward - np.dot(x[1:], self.cost.reshape(len(self.cost), self.reward.size)).reshape(self.reward.shape)
        z /= x[0]
        peak = z.max(0)
        w = np.exp(z - peak)
        total = w.sum(0)
        w /= total
        return z, w, np.log(total / len(w)) + peak

    def weights(self, x: Array) -> Array:
        """q, [B, K]."""
        return np.ascontiguousarray(self._tilt(x)[1].T)

    def excess(self, x: Array) -> Array:
        """mean_s E_q[Q_c] − d, scaled, [C]."""
        _, w, _ = self._tilt(x)
        return np.asarray((self.cost * w).sum((1, 2)) / w.shape[1] - self.threshold)

    def derivatives(self, x: Array) -> tuple[float, Array, Array]:
        """Value, gradient [1 + C] and Hessian [1 + C, 1 + C] in (eta, lambda)."""
        B = self.reward.shape[1]
        z, w, log_mean = self._tilt(x)
        level = self.kl_bound + log_mean.sum() / B
        # Derivatives of eta·log_mean: features f = (z, Q_c) enter through their mean and covariance under q.
        features = np.concatenate([z[None], self.cost])
        mean = (features * w).sum(1)
        gradient = np.concatenate([[level], self.threshold]) - mean.sum(1) / B
        features -= mean[:, None]
        flat = features.reshape(len(x), -1)
        hessian = (features * w).reshape(len(x), -1) @ flat.T / (B * x[0])
        value = float(x[0] * level + x[1:] @ self.threshold)
        if self.allowance is not None:
            total = float(self.allowance @ x[1:])
            value += total**2 / 2
            gradient[1:] += total * self.allowance
            hessian[1:, 1:] += np.outer(self.allowance, self.allowance)
        return value, gradient, hessian


@dataclass(frozen=True)
class _Minimum:
    x: Array
    value: float
    steps: int


def _newton(problem: _Problem, start: Array, max_steps: int) -> _Minimum | None:
    """Minimize the dual over eta >= MIN_TEMPERATURE and lambda >= 0 by projected Newton steps (Bertsekas, 1982).

    None if the KKT conditions do not hold to TOLERANCE after that many steps.
    """
    lower = _lower(start)
    tolerance = np.full(len(start), TOLERANCE)
    tolerance[0] *= problem.kl_bound
    x = np.maximum(start, lower)
    value, gradient, hessian = problem.derivatives(x)
    for step in range(max_steps):
        bound = (x <= lower) & (gradient > 0)
        if np.all(bound | (np.abs(gradient) <= tolerance)):
            return _Minimum(x, value, step)
        free = np.flatnonzero(~bound)
        direction = np.zeros(len(x))
        direction[free] = _newton_direction(gradient, hessian, free)
        change = min(max(direction[0], -0.9 * x[0]), 9 * x[0])
        if change != direction[0]:
            # Far from the minimum the quadratic model misleads: the temperature may change tenfold a step at most,
            # the multipliers as suits that change.
            rest = free[free > 0]
            direction[0] = change
            direction[rest] = _newton_direction(gradient + hessian[0] * change, hessian, rest)
        length = 1.0
        while True:
            candidate = np.maximum(x + length * direction, lower)
            new_value, new_gradient, new_hessian = problem.derivatives(candidate)
            if new_value <= value + 1e-4 * float(gradient @ (candidate - x)) + 1e-14 * abs(value):
                break
            length /= 2
            if length * np.abs(direction).max() < 1e-12 * x.max():
                return None
        x, value, gradient, hessian = candidate, new_value, new_gradient, new_hessian
    return None


def _minimize(problem: _Problem, start: Array) -> _Minimum:
    """Newton's method; should it not converge, SciPy's L-BFGS-B."""
    minimum = _newton(problem, start, MAX_NEWTON_STEPS)
    if minimum is not None:
        return minimum

    def objective(x: Array) -> tuple[float, Array]:
        value, gradient, _ = problem.derivatives(x)
        return value, gradient

    result = optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(bound, None) for bound in _lower(start)],
        options={"ftol": 0.0, "gtol": TOLERANCE * min(1.0, problem.kl_bound), "maxiter": 1000},
    )
    return _Minimum(np.asarray(result.x), float(result.fun), MAX_NEWTON_STEPS + int(result.nit))


def _newton_direction(gradient: Array, hessian: Array, free: NDArray[np.intp]) -> Array:
    """Newton's step in the free coordinates; a trace of the identity keeps it defined where the dual is flat."""
    H = hessian[free[:, None], free]
    H.flat[:: len(free) + 1] += 1e-12 * H.trace() + 1e-30
    return np.asarray(-np.linalg.solve(H, gradient[free]))


def _lower(x: Array) -> Array:
    return np.concatenate([[MIN_TEMPERATURE], np.zeros(len(x) - 1)])


def _least_excess(problem: _Problem, allowance: Array) -> _Minimum:
    """The least t for which some q in the KL ball has E_q[Q_c] − d <= t·allowance, and the dual's x at it.

    Minus t is the minimum of the dual without reward over allowance·lambda = 1. The dual is linear along each ray from
    the origin, so with ½ (allowance·lambda)² added its minimum lies in the same direction, at allowance·lambda = t,
    wherever t is positive. A shift of the thresholds sees to that.
    """
    pure_cost = problem.without_reward()
    if len(problem.cost) == 1:  # lambda is 1/allowance: one dimension is left
        only = replace(pure_cost.without_costs(), reward=-problem.cost[0])
        minimum = _minimize(only, np.array([1 / math.sqrt(2 * problem.kl_bound)]))
        value = -(minimum.value + float(problem.threshold[0])) / float(allowance[0])
        return _Minimum(np.array([minimum.x[0], 1.0]) / allowance[0], value, minimum.steps)
    asked = allowance > 0
    cheapest = problem.cost[asked].min(1).mean(1)  # no q costs less
    shift = 1 - float(((cheapest - problem.threshold[asked]) / allowance[asked]).max())
    shifted = replace(pure_cost, threshold=problem.threshold - shift * allowance, allowance=allowance)
    multiplier = np.zeros(len(allowance))
    multiplier[asked] = 1 / (asked.sum() * allowance[asked])
    minimum = _minimize(shifted, np.concatenate([[multiplier.sum() / math.sqrt(2 * problem.kl_bound)], multiplier]))
    x = minimum.x / (allowance @ minimum.x[1:])
    return _Minimum(x, -pure_cost.derivatives(x)[0], minimum.steps)


def _unscale(
    problem: _Problem,
    x: Array,
    feasible: bool,
    steps: int,
    constrained: NDArray[np.bool_],
    cost_threshold: Array,
    cost_value: Array,
) -> DualSolution:
    """Back to the units of the caller, with the primal residuals."""
    weights = (problem if feasible else problem.without_reward()).weights(x)
    B, K = weights.shape
    log_ratio = np.log(np.maximum(weights * K, 1e-300))
    kl = float((weights * log_ratio).sum(1).mean())
    cost = np.einsum("bk,bkc->c", weights, cost_value) / B
    cost_residual = np.full(len(cost_threshold), -np.inf)
    cost_residual[constrained] = (cost[constrained] - cost_threshold[constrained]) / problem.cost_scale
    multiplier = np.zeros(len(cost_threshold))
    multiplier[constrained] = x[1:] * problem.reward_scale / problem.cost_scale
    temperature = float(x[0]) * problem.reward_scale
    infeasibility = np.zeros(len(cost)) if feasible else np.maximum(cost - cost_threshold, 0.0)
    return DualSolution(
        temperature,
        multiplier,
        weights,
        kl,
        cost,
        kl / problem.kl_bound - 1,
        cost_residual,
        infeasibility,
        feasible,
        steps,
    )


def _check(reward_value: Array, cost_value: Array, cost_threshold: Array, kl_bound: float) -> None:
    if reward_value.ndim != 2 or cost_value.shape != (*reward_value.shape, len(cost_threshold)):
        raise ValueError(
            f"reward_value {reward_value.shape}, cost_value {cost_value.shape} and cost_threshold "
            f"{cost_threshold.shape} must be [B, K], [B, K, C] and [C]"
        )
    if not (kl_bound > 0 and math.isfinite(kl_bound)):
        raise ValueError(f"kl_bound must be positive and finite, not {kl_bound}")
    for name, value in (("reward_value", reward_value), ("cost_value", cost_value)):
        if not np.isfinite(value).all():
            raise NonFiniteError(f"{name} has a NaN or infinite entry; the critics have diverged.")
    if np.isnan(cost_threshold).any() or np.isneginf(cost_threshold).any():
        raise NonFiniteError(f"cost_threshold {cost_threshold} must be finite, or +inf for no constraint.")
