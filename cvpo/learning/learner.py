"""One update of CVPO: the order of its steps, on the state that a checkpoint holds."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvpo.bundle import Constraint
from cvpo.errors import NonFiniteError
from cvpo.learning.config import TrainConfig
from cvpo.learning.critics import bootstrap_target, critic_loss, follow
from cvpo.learning.estep import DualSolution, least_excess, reachable_share, solve_dual
from cvpo.learning.gaussian import Gaussian
from cvpo.learning.limit import LimitController, advantage_threshold, limit_at
from cvpo.learning.mstep import TrustRegion, gaussian_kl, interpolate, weighted_likelihood
from cvpo.learning.networks import Critics, GaussianPolicy, Model, build_model
from cvpo.learning.replay import Batch

Array = NDArray[np.float64]
PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class LearnerState:
    """Everything that learning changes; what is not here is not restored.

    `unit_threshold` and `measured_age` never change: they follow from the config and the constraints, by which `create`
    makes them again.
    """

    model: Model  # normalizer, policy, and the critics that learn
    behavior_policy: GaussianPolicy  # what actions and E-step samples are drawn from
    target_critics: Critics
    optimizer: torch.optim.Adam  # of policy and critics, each with its own rate
    mean_region: TrustRegion
    covariance_region: TrustRegion
    controller: LimitController
    generator: torch.Generator
    unit_threshold: Array  # of the critics' values for each unit of a limit, discounted
    measured_age: float  # mean age of what the measured cost is of, in updates
    reward_scale: float = 1.0  # learning sees reward / reward_scale
    updates: int = 0
    infeasible_updates: int = 0
    pulled_back_periods: int = 0
    dual_start: tuple[float, Array] | None = None  # of the last feasible E-step

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """An array where the networks are."""
        return torch.from_numpy(array).to(self.generator.device)


@dataclass(frozen=True)
class UpdateMetrics:
    """What one update did; see cvpo/training/metrics.py for units and meaning."""

    critic_loss: float
    temperature: float
    cost_multiplier: Array  # [C]
    kl_residual: float
    cost_residual: Array  # [C]
    infeasibility: Array  # [C]
    feasible: bool
    share: Array | None  # [C]; None where the constraint is the critics'
    cost_value: Array  # [C], mean over recent states, under the policy that `critic.cost_policy` names
    standard_deviation: float  # of the behavior policy before tanh, mean over states and dimensions
    kl_mean: float | None = None  # achieved by the M-step and not pulled back, over the bound that held; once a period
    kl_covariance: float | None = None  # the same
    kept_share: float | None = None  # below 1: the step was pulled back
    projection_gap: Array | None = None  # between the policy that the M-step ended in and q, [C]


def create(
    config: TrainConfig,
    observation_size: int,
    action_size: int,
    constraints: Sequence[Constraint],
    device: str = "cpu",
    closeness: Sequence[int] = (),
) -> LearnerState:
    """Make a fresh learner; everything random in it comes from the config's seed. For `closeness` see `Normalizer`."""
    num_costs = len(constraints)
    unit_threshold = np.array([c.model_copy(update={"cost_limit": 1.0}).threshold() for c in constraints])
    generator = torch.Generator(device).manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config.network, observation_size, action_size, num_costs, closeness).to(device)
    return LearnerState(
        model=model,
        behavior_policy=copy.deepcopy(model.policy).requires_grad_(False),
        target_critics=copy.deepcopy(model.critics).requires_grad_(False),
        optimizer=torch.optim.Adam(
            [
                {"params": list(model.policy.parameters()), "lr": config.mstep.learning_rate},
                {"params": list(model.critics.parameters()), "lr": config.critic.learning_rate},
            ],
            fused=True,
        ),
        mean_region=TrustRegion(config.mstep.kl_mean_bound),
        covariance_region=TrustRegion(config.mstep.kl_covariance_bound),
        controller=LimitController.start(unit_threshold),
        generator=generator,
        unit_threshold=unit_threshold,
        measured_age=max(1.0, _measured_age(config, constraints[0].horizon_steps)),
    )


def _measured_age(config: TrainConfig, horizon_steps: int) -> float:
    """Half the window of the measured cost."""
    window = config.limit.window_episodes * horizon_steps * config.environment.num_envs
    return window / 2 * config.schedule.updates_per_step


def update(
    state: LearnerState, batch: Batch, measured_cost: Array, steps: int, config: TrainConfig, *, held: bool = False
) -> UpdateMetrics:
    """Advance the state by one update: E-step, then a gradient step of the critics and of the policy (M-step).

    Args:
        state: changed in place.
        batch: its first `batch.recent` rows are of states that the current policy visits; the dual is solved on
            them and applied to all.
        measured_cost: undiscounted episode cost of the newest episodes, [C], environment units.
        steps: of the environment so far; limits that are scheduled and the pace of the policy depend on it.
        config: of the run.
        held: the policy stays as it is; the critics learn what it is worth and what it costs.

    Raises:
        NonFiniteError: a network has diverged. The state is of no use any more.
    """
    judged = _judge(state, batch, config)
    cost_limit, pace = limit_at(config, steps), pace_at(config, steps)
    if state.updates >= config.schedule.warmup_updates:  # before, what the critics predict says nothing yet
        state.controller = state.controller.seeing(judged.mean_cost, measured_cost, state.measured_age, config.limit)
    present_gap = state.controller.gap(state.controller.present_cost(judged.mean_cost), held_at(cost_limit, config))
    share = state.controller.share(present_gap, config.limit)
    dual, asked = _solve(state, judged, share, cost_limit, pace * config.estep.kl_bound, config)
    weights = _weights(dual, judged.reward_value, judged.cost_value)
    loss = _descend(state, batch, judged, weights, 0.0 if held else pace, config)

    state.updates += 1
    state.infeasible_updates += not dual.feasible
    if dual.feasible:
        state.dual_start = (dual.temperature, dual.cost_multiplier)
    metrics = UpdateMetrics(
        critic_loss=loss,
        temperature=dual.temperature,
        cost_multiplier=dual.cost_multiplier,
        kl_residual=dual.kl_residual,
        cost_residual=dual.cost_residual,
        infeasibility=dual.infeasibility,
        feasible=dual.feasible,
        share=asked,
        cost_value=judged.mean_cost,
        standard_deviation=judged.old.standard_deviation().mean().item(),
    )
    if held or state.updates % config.mstep.period:
        return metrics
    moved_mean, moved_covariance, kept = _end_period(state, judged.observation, pace)
    recent = (value[: batch.recent] for value in (judged.observation, judged.sample, weights, judged.noise))
    gap = _projection_gap(state, *recent)
    return replace(metrics, kl_mean=moved_mean, kl_covariance=moved_covariance, kept_share=kept, projection_gap=gap)


@torch.no_grad()
def act(state: LearnerState, observation: NDArray[np.float32], deterministic: int) -> Array:
    """Draw actions [N, A], in [-1, 1], for raw observations [N, O]; the first `deterministic` are the policy's mean.

    Raises:
        NonFiniteError: the policy has diverged.
    """
    policy = state.behavior_policy(state.model.normalizer(state.tensor(observation)))
    noise = torch.randn(policy.mean.shape, generator=state.generator, device=state.generator.device)
    noise[:deterministic] = 0.0
    action = np.asarray(policy.sample(noise.unsqueeze(1)).squeeze(1).tanh().double().cpu().numpy())
    _require_finite("action of the policy", action, observation)
    return action


@torch.no_grad()
def cost_values(state: LearnerState, observation: NDArray[np.float32], action: NDArray[np.float32]) -> Array:
    """What the target critics themselves say of actions [B, A], in [-1, 1], in raw observations [B, O]: [B, C]."""
    seen = state.model.normalizer(state.tensor(observation))
    cost_heads = state.target_critics(seen, state.tensor(action).unsqueeze(1))[1]
    return np.asarray(cost_heads.mean(0)[:, 0].double().cpu().numpy())


def require_finite_parameters(state: LearnerState) -> None:
    """Raise NonFiniteError where a parameter of any network is NaN or infinite; names it."""
    networks = {"policy": state.model.policy, "critics": state.model.critics}
    copies = {"behavior_policy": state.behavior_policy, "target_critics": state.target_critics}
    for network, module in (networks | copies).items():
        for name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(f"{network}.{name} has a NaN or infinite entry.")


def held_at(cost_limit: Array, config: TrainConfig) -> Array:
    """The episode cost that the controller aims at, `limit.aim` of the limit, [C]."""
    return config.limit.aim * cost_limit


def pace_at(config: TrainConfig, steps: int) -> float:
    """Share of the learning rate and the KL bounds of the policy that an update takes: falls from 1 to `settle.floor`
    over the last `settle.share` of the run, by the same factor each step."""
    settle, total = config.settle, config.schedule.steps
    left = max(total - steps, 0) / total
    return 1.0 if left >= settle.share else settle.floor ** (1 - left / settle.share)


def state_dict(state: LearnerState) -> dict[str, Any]:
    """Everything in the state, as tensors and plain values."""
    return {
        "model": state.model.state_dict(),
        "behavior_policy": state.behavior_policy.state_dict(),
        "target_critics": state.target_critics.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "log_multipliers": [state.mean_region.log_multiplier, state.covariance_region.log_multiplier],
        "controller": {field.name: getattr(state.controller, field.name).tolist() for field in fields(LimitController)},
        "generator": state.generator.get_state(),
        "reward_scale": state.reward_scale,
        "counters": [state.updates, state.infeasible_updates, state.pulled_back_periods],
        "dual_start": None if state.dual_start is None else [state.dual_start[0], state.dual_start[1].tolist()],
    }


def load_state_dict(state: LearnerState, saved: dict[str, Any]) -> None:
    """Put back what `state_dict` gave, into a state created with the same config."""
    state.model.load_state_dict(saved["model"])
    state.behavior_policy.load_state_dict(saved["behavior_policy"])
    state.target_critics.load_state_dict(saved["target_critics"])
    state.optimizer.load_state_dict(saved["optimizer"])
    mean, covariance = saved["log_multipliers"]
    state.mean_region = replace(state.mean_region, log_multiplier=mean)
    state.covariance_region = replace(state.covariance_region, log_multiplier=covariance)
    state.controller = LimitController(**{name: np.array(value) for name, value in saved["controller"].items()})
    state.generator.set_state(saved["generator"])
    state.reward_scale = saved["reward_scale"]
    state.updates, state.infeasible_updates, state.pulled_back_periods = saved["counters"]
    start = saved["dual_start"]
    state.dual_start = None if start is None else (start[0], np.array(start[1]))


def antithetic_noise(batch: int, samples: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise [B, K, A] in pairs (z, −z), scaled to a second moment of 1 per state and dimension.

    So the samples of a state have exactly the mean and variance of the policy, and the weights see no accident of the
    draw.
    """
    half = torch.randn((batch, samples // 2, dimensions), generator=generator, device=generator.device)
    half = half * torch.rsqrt(half.square().mean(1, keepdim=True))
    return torch.cat([half, -half], dim=1)


def _require_finite(what: str, value: Array, observation: NDArray[np.float32]) -> None:
    """Raise NonFiniteError where a value [B, ...] is NaN or infinite; names it and its observation, a row of [B, O]."""
    if np.isfinite(value).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
    seen = np.array2string(observation[index[0]], precision=4, separator=", ", threshold=20, max_line_width=1_000)
    raise NonFiniteError(f"The {what} is {value[index]} for the observation {seen}.")


@dataclass(frozen=True)
class _Judged:
    """Actions of the behavior policy in the next states of a batch, and what the target critics say of them."""

    observation: Tensor  # as the networks see it, [B, F]
    old: Gaussian  # the behavior policy there
    noise: Tensor  # that the samples were made of, [B, K, A]
    sample: Tensor  # actions before tanh, [B, K, A]
    reward_value: Tensor  # [B, K]
    cost_value: Tensor  # [B, K, C]
    reward_target: Tensor  # of the critics that learn, [B]
    cost_target: Tensor  # [B, C]
    recent_reward: Array  # values of the recent states, R of the B: [R, K]
    recent_cost: Array  # [R, K, C]
    mean_cost: Array  # mean over the recent states, under the policy that `critic.cost_policy` names, [C]


@torch.no_grad()
def _judge(state: LearnerState, batch: Batch, config: TrainConfig) -> _Judged:
    """Draw actions in the next states of a batch, and ask the target critics about them."""
    observation = state.model.normalizer(state.tensor(batch.next_observation))
    old = state.behavior_policy(observation)
    noise = antithetic_noise(len(old.mean), config.estep.samples, old.mean.shape[1], state.generator)
    sample = old.sample(noise)
    action = torch.cat([sample, old.mean.unsqueeze(1)], 1).tanh()  # the last one is what the served policy does
    precision = PRECISION[config.compute.precision]
    reward_heads, cost_heads = state.target_critics.evaluate(observation, action, precision)
    reward_value, all_cost_value = reward_heads.mean(0)[:, :-1], cost_heads.mean(0)
    cost_value = all_cost_value[:, :-1]
    following = all_cost_value[:, -1] if config.critic.cost_policy == "served" else cost_value.mean(1)
    reward = state.tensor(batch.reward) / state.reward_scale
    reward_target = bootstrap_target(reward, state.tensor(batch.discount), reward_value.mean(1))
    cost_target = bootstrap_target(state.tensor(batch.cost), state.tensor(batch.cost_discount), following)

    sampled_reward, sampled_cost = (value.cpu().double().numpy() for value in (reward_value, all_cost_value))
    _require_finite("reward_value of the target critics", sampled_reward, batch.next_observation)
    _require_finite("cost_value of the target critics", sampled_cost, batch.next_observation)
    return _Judged(
        observation=observation,
        old=old,
        noise=noise,
        sample=sample,
        reward_value=reward_value,
        cost_value=cost_value,
        reward_target=reward_target,
        cost_target=cost_target,
        recent_reward=sampled_reward[: batch.recent],
        recent_cost=sampled_cost[: batch.recent, :-1],
        mean_cost=following[: batch.recent].mean(0).cpu().double().numpy(),
    )


def _solve(
    state: LearnerState, judged: _Judged, share: Array, cost_limit: Array, kl_bound: float, config: TrainConfig
) -> tuple[DualSolution, Array | None]:
    """Solve the dual on recent states, under the critics' threshold or a share of the reachable cost change.

    What several constraints can each reach alone may be out of reach for all of them together. So those that are to
    fall ask for less, by one factor: for the largest of their shares of what all can reach together. The shares asked
    are returned, too: None under the critics' threshold.
    """
    reward_value, cost_value = judged.recent_reward, judged.recent_cost
    if config.estep.constraint == "critic":
        threshold = cost_limit * state.unit_threshold
        return solve_dual(reward_value, cost_value, threshold, kl_bound, state.dual_start), None
    advantage = cost_value - cost_value.mean(1, keepdims=True)
    least, reward_only = np.zeros(len(share)), np.zeros(len(share))
    for i in np.flatnonzero(np.isfinite(cost_limit) & (share > 0)):
        least[i] = least_excess(advantage[..., [i]], np.zeros(1), kl_bound)[1][0]
    if np.any(share <= 0):
        reward_only = solve_dual(reward_value, advantage, np.full(len(share), np.inf), kl_bound).cost
    threshold = advantage_threshold(share, least, reward_only, cost_limit)
    asking = np.isfinite(threshold)
    if asking.sum() > 1 and np.any(threshold < 0):
        reachable = reachable_share(advantage[..., asking], threshold[asking], kl_bound)
        factor = np.where(threshold < 0, share[asking].max() * reachable, 1.0)  # what may grow may grow as far
        threshold, share = factor * threshold, factor * share
    return solve_dual(reward_value, advantage, threshold, kl_bound, state.dual_start), share


def _weights(dual: DualSolution, reward_value: Tensor, cost_value: Tensor) -> Tensor:
    """Apply temperature and multipliers to every state of the batch, [B, K]."""
    multiplier = torch.from_numpy(dual.cost_multiplier).to(cost_value)
    reward = reward_value if dual.feasible else torch.zeros_like(reward_value)
    return torch.softmax((reward - cost_value @ multiplier) / dual.temperature, dim=1)


def _descend(
    state: LearnerState, batch: Batch, judged: _Judged, weights: Tensor, pace: float, config: TrainConfig
) -> float:
    """One gradient step of the policy (M-step) and of the critics, which their targets follow; the critics' loss."""
    normalizer, policy, critics = state.model.normalizer, state.model.policy, state.model.critics
    new = policy(judged.observation)
    likelihood = weighted_likelihood(weights, judged.sample, judged.old, new)
    kl_mean, kl_covariance = gaussian_kl(judged.old, new)
    policy_loss = (
        -likelihood.mean()
        + state.mean_region.multiplier * kl_mean.mean()
        + state.covariance_region.multiplier * kl_covariance.mean()
    )
    reward_heads, cost_heads = critics(normalizer(state.tensor(batch.observation)), state.tensor(batch.action)[:, None])
    value_loss = critic_loss(reward_heads.squeeze(2), judged.reward_target, cost_heads.squeeze(2), judged.cost_target)
    for name, loss in (("policy", policy_loss), ("critics", value_loss)):
        if not math.isfinite(loss.item()):
            raise NonFiniteError(f"The loss of the {name} is {loss.item()}.")
    state.optimizer.param_groups[0]["lr"] = config.mstep.learning_rate * pace
    state.optimizer.zero_grad(set_to_none=True)
    (policy_loss + value_loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated; they share no parameter
    state.optimizer.step()
    follow(state.target_critics, critics, config.critic.target_rate)
    return value_loss.item()


@torch.no_grad()
def _end_period(state: LearnerState, observation: Tensor, pace: float) -> tuple[float, float, float]:
    """Measure the KL that the M-step achieved, pull it back when it is far over a bound, and copy the policy.

    Returns:
        KL of mean and of covariance over the bounds that held, of what was kept, and the share of the step that was.
    """
    policy = state.model.policy
    kl_mean, kl_covariance = _moved(state, observation, pace)
    kept = min(state.mean_region.pull_back(kl_mean), state.covariance_region.pull_back(kl_covariance))
    state.mean_region = state.mean_region.adapted(kl_mean)
    state.covariance_region = state.covariance_region.adapted(kl_covariance)
    if kept < 1:
        interpolate(state.behavior_policy, policy, kept)
        state.pulled_back_periods += 1
        kl_mean, kl_covariance = _moved(state, observation, pace)
    state.behavior_policy.load_state_dict(policy.state_dict())
    return kl_mean / state.mean_region.bound, kl_covariance / state.covariance_region.bound, kept


def _moved(state: LearnerState, observation: Tensor, pace: float) -> tuple[float, float]:
    """KL of mean and of covariance from the behavior policy to the policy, mean over states, in full paces."""
    kl = gaussian_kl(state.behavior_policy(observation), state.model.policy(observation))
    return float(kl[0].mean()) / pace, float(kl[1].mean()) / pace


@torch.no_grad()
def _projection_gap(state: LearnerState, observation: Tensor, sample: Tensor, weights: Tensor, noise: Tensor) -> Array:
    """|E_π[Q_c] − E_q[Q_c]| of the policy that the M-step ended in, mean over states, [C].

    Args:
        observation: as the networks see it, [B, F].
        sample: u, that the E-step gave weights to, [B, K, A].
        weights: q, [B, K].
        noise: of the policy's samples, [B, K, A].
    """
    action = torch.cat([sample, state.behavior_policy(observation).sample(noise)], dim=1).tanh()
    cost_value = state.target_critics.evaluate(observation, action, torch.float32)[1].mean(0)
    of_q, of_policy = cost_value.chunk(2, dim=1)
    gap = (of_policy.mean(1) - (weights.unsqueeze(-1) * of_q).sum(1)).mean(0)
    return np.asarray(gap.abs().cpu().double().numpy())
