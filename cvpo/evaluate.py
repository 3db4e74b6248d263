"""Episodes of anything that is a policy (a checkpoint, a bundle, a service, chance), and what they add up to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from cvpo.bundle import Evaluation, Interval, Mode
from cvpo.defaults import CANDIDATES
from cvpo.envs import CostEnv, EnvSpec, Step, VectorEnv
from cvpo.errors import BundleError, ServiceError
from cvpo.learning.config import EnvironmentConfig
from cvpo.learning.networks import Model
from cvpo.learning.returns import seen_costs
from serve.client import PolicyCaller
from serve.errors import PolicyServiceError, StartupError
from serve.local import LocalPolicy
from serve.values import Deterministic, Sampled, Shielded
from serve.values import Mode as ServedMode

Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
ENVS = 10  # stepped together, where episodes are run for their own sake


@dataclass(frozen=True)
class Decision:
    """Actions, and what was predicted of them where the policy predicts."""

    action: Array  # [N, A], environment units
    cost_value: Array | None = None  # [N, C], expected discounted cost
    cost_to_go: Array | None = None  # [N, C], expected cost of the next steps_left steps
    violation: NDArray[np.bool_] | None = None  # [N, C]


# Told after each step of episodes that have a name: how many are done, of how many, and what share of all their steps
# at most.
OnProgress: TypeAlias = Callable[[str, int, int, float], None]


def no_progress(name: str, done: int, episodes: int, share: float) -> None:
    """Tell nobody."""


def environments(config: EnvironmentConfig, *, num_envs: int, workers: int, seed: int) -> VectorEnv:
    """Environments as a run has them: so many, in so many simulator processes, with episodes of that seed."""
    return VectorEnv(
        config.env_id,
        num_envs=num_envs,
        workers=workers,
        seed=seed,
        cost_names=config.cost_names,
        max_episode_steps=config.max_episode_steps,
        step_timeout_seconds=config.step_timeout_seconds,
    )


class Actor(Protocol):
    """Anything that is a policy."""

    def act(self, observation: Float32Array, steps_left: NDArray[np.int64], spent: Array) -> Decision:
        """Choose actions [N, A].

        Args:
            observation: [N, O].
            steps_left: of each episode, [N].
            spent: undiscounted cost of each episode so far, [N, C].
        """


@dataclass(frozen=True)
class Episode:
    """One episode, step by step. Predictions are None for a policy that makes none."""

    observation: Float32Array  # [T, O], what each action was chosen on
    reward: Array  # [T]
    cost: Array  # [T, C]
    terminated: bool  # ended for good, not cut by a time limit
    cost_value: Array | None  # [T, C]
    cost_to_go: Array | None  # [T, C]
    violation: NDArray[np.bool_] | None  # [T, C]


class EpisodeRunner:
    """Runs a number of episodes, one vector step at a time, so that other work can go on while simulators step.

    Each environment runs its own fixed number of episodes: taking whichever end first would favour short ones.
    """

    def __init__(self, env: VectorEnv, actor: Actor, episodes: int, observation: Float32Array) -> None:
        self.env, self.actor = env, actor
        num_envs = env.num_envs
        self.quota = [episodes // num_envs + (i < episodes % num_envs) for i in range(num_envs)]
        self.episodes: list[list[Episode]] = [[] for _ in range(num_envs)]
        self.steps: list[list[tuple[Float32Array, float, Array, Decision]]] = [[] for _ in range(num_envs)]
        self.spent = np.zeros((num_envs, len(env.spec.cost_names)))
        self._act(observation)

    @property
    def finished(self) -> bool:
        return all(len(done) >= quota for done, quota in zip(self.episodes, self.quota, strict=True))

    @property
    def done(self) -> int:
        """Episodes that have come to their end."""
        return sum(map(len, self.episodes))

    def advance(self) -> None:
        """Take in the step under way and, unless that was the last one, send the next actions."""
        step = self.env.step_wait()
        self.spent += step.cost
        for i, steps in enumerate(self.steps):
            steps.append((self.observation[i].copy(), float(step.reward[i]), step.cost[i].copy(), self.decision))
            if step.terminated[i] or step.truncated[i]:
                if len(self.episodes[i]) < self.quota[i]:
                    self.episodes[i].append(_episode(steps, i, bool(step.terminated[i])))
                steps.clear()
                self.spent[i] = 0.0
        if not self.finished:
            self._act(step.observation)

    def result(self) -> list[Episode]:
        """The episodes, in an order that does not depend on which ended first."""
        return [episode for done in self.episodes for episode in done]

    def run(self, name: str, progress: OnProgress) -> list[Episode]:
        """Go on to the end, and tell after each step how far that is."""
        steps, most_steps = 0, max(self.quota) * self.env.spec.max_episode_steps
        while not self.finished:
            self.advance()
            steps += 1
            progress(name, self.done, sum(self.quota), steps / most_steps)
        return self.result()

    def _act(self, observation: Float32Array) -> None:
        self.observation = observation.copy()
        horizon = self.env.spec.max_episode_steps
        steps_left = np.array([horizon - len(steps) for steps in self.steps])
        self.decision = self.actor.act(self.observation, steps_left, self.spent.copy())
        self.env.step_async(self.decision.action)


def run_episodes(
    env: VectorEnv, actor: Actor, episodes: int, name: str = "", progress: OnProgress = no_progress
) -> list[Episode]:
    """Run that many episodes to their end; `progress` is told how far those of that name are."""
    return EpisodeRunner(env, actor, episodes, env.reset()).run(name, progress)


def play(env: CostEnv, actor: Actor, seed: int) -> Iterator[Step]:
    """One episode in an environment of this process, step by step, for whoever wants to look at it in between."""
    observation, spent = env.reset(seed), np.zeros((1, len(env.spec.cost_names)))
    for steps_left in range(env.spec.max_episode_steps, 0, -1):
        step = env.step(actor.act(observation[None], np.array([steps_left]), spent.copy()).action[0])
        observation = step.observation
        spent += step.cost
        yield step
        if step.terminated or step.truncated:
            return


def summarize(episodes: Sequence[Episode], cost_limits: Sequence[float], mode: Mode) -> Evaluation:
    """Means over episodes with 95 % bootstrap intervals, CVaR 0.9 of cost, and the share of episodes over a limit."""
    returns = np.array([episode.reward.sum() for episode in episodes])
    costs = np.array([episode.cost.sum(0) for episode in episodes])  # [E, C]
    return Evaluation(
        mode=mode,
        episodes=len(episodes),
        episode_return=interval(returns),
        episode_cost=tuple(interval(cost) for cost in costs.T),
        cost_cvar90=tuple(conditional_value_at_risk(cost, 0.9) for cost in costs.T),
        over_limit_share=tuple(float((cost > limit).mean()) for cost, limit in zip(costs.T, cost_limits, strict=True)),
    )


@dataclass(frozen=True)
class CostLevel:
    """Discounted cost that followed a step, mean over all steps: what the critic said of it, and what came."""

    predicted: float
    realized: float

    @property
    def ratio(self) -> float | None:
        """Predicted over realized: 1 is right, None where nothing was realized."""
        return self.predicted / self.realized if self.realized > 0 else None


def cost_levels(episodes: Sequence[Episode], discounts: Sequence[float]) -> list[CostLevel]:
    """The level of each cost critic, over what was seen (`seen_costs`).

    After a termination the critic's cost goes on, with that of the next episode.

    Args:
        episodes: with predictions.
        discounts: of each cost, [C].
    """
    predicted, realized, steps = np.zeros(len(discounts)), np.zeros(len(discounts)), 0
    for episode in episodes:
        if episode.cost_value is None:
            raise ValueError("these episodes carry no cost_value")
        steps += len(episode.cost) - 1
        seen = seen_costs(episode.cost_value, episode.cost, np.array(discounts))
        predicted, realized = predicted + seen[0], realized + seen[1]
    means = np.stack([predicted, realized], axis=1) / max(steps, 1)
    return [CostLevel(*level) for level in means.tolist()]


def interval(values: Array) -> Interval:
    """Mean and 95 % percentile bootstrap interval; a single value has no width to tell."""
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean=mean, low=mean, high=mean)
    limits = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    return Interval(mean=mean, low=float(limits.low), high=float(limits.high))


def conditional_value_at_risk(values: Array, level: float) -> float:
    """CVaR: the mean of the worst, here the largest, 1 − level of the values (Rockafellar and Uryasev, 2002, Prop. 8).

    Of n values the n·(1 − level) largest count; the last of them only by the fraction that is left. So it is
    min over x of x + mean(max(values − x, 0))/(1 − level), and with fewer than 1/(1 − level) values their maximum.

    Args:
        values: at least one, [N].
        level: from 0, which gives the mean, to below 1.

    Raises:
        ValueError: there is no value, or no such level.
    """
    if not (len(values) and 0 <= level < 1):
        raise ValueError(f"CVaR {level} of {len(values)} values; give one value or more and a level in [0, 1)")
    tail = len(values) * (1 - level)
    share = np.clip(tail - np.arange(len(values)), 0, 1)
    return float(share @ np.sort(values)[::-1] / tail)


class TorchActor:
    """The policy of a checkpoint: the most likely action, or one drawn from it where a generator is given."""

    def __init__(self, model: Model, spec: EnvSpec, generator: torch.Generator | None = None) -> None:
        self.model, self.generator = model, generator
        self.low, self.high = spec.action_low, spec.action_high

    @torch.no_grad()
    def act(self, observation: Float32Array, steps_left: NDArray[np.int64], spent: Array) -> Decision:
        distribution = self.model.distribution(torch.from_numpy(observation))
        u = distribution.mean
        if self.generator is not None:
            u = distribution.sample(torch.randn(u.unsqueeze(1).shape, generator=self.generator)).squeeze(1)
        action = u.tanh()
        _, cost_value = self.model.values(torch.from_numpy(observation), action.unsqueeze(1))
        return Decision(to_environment(action.double().numpy(), self.low, self.high), cost_value[:, 0].double().numpy())


class ServedActor:
    """A policy of a bundle or a service, with its predictions; asked as a robot asks.

    Each episode may spend the limit: what is allowed is what is left of it, over the steps that are left.
    """

    def __init__(
        self, caller: PolicyCaller, mode: Mode = "deterministic", candidates: int = CANDIDATES, seed: int = 0
    ) -> None:
        self.caller, self.mode, self.candidates, self.seed = caller, mode, candidates, seed
        self.budget: Array | None = None  # [C], asked for with the first action

    @classmethod
    def from_bundle(
        cls, path: Path, mode: Mode = "deterministic", candidates: int = CANDIDATES, seed: int = 0, policy: str = ""
    ) -> Self:
        """Load a bundle, or one policy of a folder of them, into this process, calibrated or not.

        Raises:
            BundleError: it does not verify.
        """
        try:
            return cls(LocalPolicy.load(path, policy, allow_uncalibrated=True), mode, candidates, seed)
        except StartupError as error:
            raise BundleError(str(error)) from error

    def act(self, observation: Float32Array, steps_left: NDArray[np.int64], spent: Array) -> Decision:
        """Raises ServiceError when there is no answer."""
        self.seed += 1
        try:
            if self.budget is None:
                self.budget = np.array([constraint.cost_limit for constraint in self.caller.get_policy().constraints])
            allowed = np.maximum(self.budget - spent, 0.0)
            result = self.caller.act(observation, steps_left=steps_left, cost_allowed=allowed, mode=self._mode())
        except PolicyServiceError as error:
            raise ServiceError(str(error)) from error
        prediction = result.prediction
        return Decision(
            np.asarray(result.action, np.float64),
            np.asarray(prediction.cost_value, np.float64),
            np.asarray(prediction.cost_to_go, np.float64),
            np.asarray(prediction.violation) | (spent > self.budget),  # over already: no prediction is needed
        )

    def _mode(self) -> ServedMode:
        match self.mode:
            case "deterministic":
                return Deterministic()
            case "sampled":
                return Sampled(seed=self.seed)
            case "shielded":
                return Shielded(candidates=self.candidates, seed=self.seed)


class RandomActor:
    """Uniformly random actions: what any policy must be better than."""

    def __init__(self, spec: EnvSpec, seed: int) -> None:
        self.low, self.high, self.generator = spec.action_low, spec.action_high, np.random.default_rng(seed)

    def act(self, observation: Float32Array, steps_left: NDArray[np.int64], spent: Array) -> Decision:
        return Decision(self.generator.uniform(self.low, self.high, (len(observation), len(self.low))))


def to_environment(action: Array, low: Array, high: Array) -> Array:
    """Scale actions from [-1, 1] to the environment's bounds."""
    return low + (action + 1) / 2 * (high - low)


def _episode(steps: Sequence[tuple[Float32Array, float, Array, Decision]], env: int, terminated: bool) -> Episode:
    """The steps of an environment, whose place it has in each decision."""
    observation, reward, cost, decisions = zip(*steps, strict=True)
    return Episode(
        np.array(observation),
        np.array(reward),
        np.array(cost),
        terminated,
        _rows([decision.cost_value for decision in decisions], env),
        _rows([decision.cost_to_go for decision in decisions], env),
        _rows([decision.violation for decision in decisions], env),
    )


def _rows(values: Sequence[NDArray[Any] | None], env: int) -> NDArray[Any] | None:
    rows = [value[env] for value in values if value is not None]
    return np.array(rows) if rows else None
