"""Evaluating what a user names: a run's checkpoint, a bundle, or a policy service."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo import seeds
from cvpo.bundle import Evaluation, Mode
from cvpo.defaults import CANDIDATES
from cvpo.envs import VectorEnv
from cvpo.errors import ConfigError, ServiceError
from cvpo.evaluate import (
    ENVS,
    Actor,
    EpisodeRunner,
    OnProgress,
    ServedActor,
    TorchActor,
    no_progress,
    summarize,
)
from cvpo.training.checkpoint import CONFIG, checkpoint_steps, load_policy
from serve.client import PolicyCaller, PolicyClient
from serve.client.channel import Tls
from serve.errors import NotFoundError, PolicyServiceError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """A policy, and what it acts in."""

    env_id: str
    cost_names: tuple[str, ...]
    cost_limits: tuple[float, ...]  # infinity: unconstrained
    max_episode_steps: int | None  # None: the environment's own
    actor: Callable[[Mode], Actor]


@dataclass(frozen=True)
class EvaluatedMode:
    """What came of one way of choosing actions: each episode, and what they add up to."""

    evaluation: Evaluation
    returns: Array  # [N]
    costs: Array  # [N, C]

    def document(self) -> dict[str, Any]:
        """As plain values."""
        episodes = {"returns": self.returns.tolist(), "costs": self.costs.tolist()}
        return self.evaluation.model_dump(mode="json") | episodes


def open_target(
    name: str,
    *,
    policy: str = "",
    steps: int | None = None,
    candidates: int = CANDIDATES,
    seed: int = 0,
    tls: Tls | None = None,
) -> Target:
    """Find out what a name stands for, and load it or connect to it.

    Args:
        name: folder of a run or of a bundle, else the address of a service.
        policy: name of the policy, where a folder of bundles or a service has several.
        steps: of the checkpoint of a run; None: the last.
        candidates: of a shielded policy.
        seed: of what is drawn where actions are sampled.
        tls: of a service that asks for it.

    Raises:
        ConfigError, CheckpointError, BundleError, ServiceError: what is wrong, and what to do.
    """
    torch.set_num_threads(1)  # a small network: more threads spin in the simulators' way, six times slower where busy
    path = Path(name)
    if tls is not None and path.exists():
        raise ConfigError(f"{name} is no service, and only a service is asked with TLS; leave out its files.")
    if (path / CONFIG).exists():
        if policy:
            raise ConfigError(f"{name} is a run, which has one policy; leave out --policy.")
        return _run(path, steps, seed)
    if steps is not None:
        raise ConfigError(f"{name} is not a run, and only a run has checkpoints; leave out --step.")
    caller: PolicyCaller
    try:
        if path.exists():
            caller = ServedActor.from_bundle(path, policy=policy).caller
        elif ":" in name:
            caller = PolicyClient(name, policy, timeout_seconds=5.0, tls=tls)
        else:
            raise ConfigError(f"{name} is neither a run nor a bundle, nor HOST:PORT of a policy service.")
        description = caller.get_policy()
    except PolicyServiceError as error:
        hint = " Say which with --policy." if isinstance(error, NotFoundError) and not policy else ""
        raise ServiceError(f"{error}{hint}") from error
    return Target(
        description.environment,
        tuple(constraint.name for constraint in description.constraints),
        tuple(constraint.cost_limit for constraint in description.constraints),
        description.horizon_steps,
        lambda mode: ServedActor(caller, mode, candidates, seed),
    )


def _run(run: Path, steps: int | None, seed: int) -> Target:
    trained = load_policy(run, checkpoint_steps(run)[-1] if steps is None else steps)

    def actor(mode: Mode) -> TorchActor:
        if mode == "shielded":
            raise ConfigError("Shielding needs calibrated predictions, which a run has not: export it, then evaluate.")
        generator = torch.Generator().manual_seed(seed) if mode == "sampled" else None
        return TorchActor(trained.model, trained.spec, generator)

    max_episode_steps = trained.config.environment.max_episode_steps
    return Target(trained.spec.env_id, trained.spec.cost_names, trained.config.cost_limits, max_episode_steps, actor)


def evaluate_target(
    target: Target,
    modes: Sequence[Mode],
    episodes: int,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: OnProgress = no_progress,
) -> list[EvaluatedMode]:
    """Run fresh episodes, the same ones in each mode.

    Args:
        target: of `open_target`.
        modes: how actions are chosen, each in episodes of its own.
        episodes: how many, in each mode.
        seed: of the episodes.
        workers: simulator processes.
        progress: is told how far the episodes of each mode are.

    Raises:
        ConfigError, ServiceError, EnvError, WorkerError: what is wrong, and what to do.
    """
    actors = {mode: target.actor(mode) for mode in modes}  # all of them, before minutes of the first
    num_envs = min(episodes, ENVS)
    results = []
    with VectorEnv(
        target.env_id,
        num_envs=num_envs,
        workers=workers,
        seed=seed + seeds.EVALUATION,
        cost_names=target.cost_names,
        max_episode_steps=target.max_episode_steps,
    ) as env:
        for mode, actor in actors.items():
            runner = EpisodeRunner(env, actor, episodes, env.rewind())
            finished = runner.run(mode, progress)
            results.append(
                EvaluatedMode(
                    summarize(finished, target.cost_limits, mode),
                    np.array([episode.reward.sum() for episode in finished]),
                    np.array([episode.cost.sum(0) for episode in finished]),
                )
            )
    return results
