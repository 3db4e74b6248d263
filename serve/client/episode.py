"""Driving an environment of Gymnasium's kind through a control session, one episode at a time.

Nothing of Gymnasium is imported: anything with its `reset` and `step` will do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.client.answer import ControlAnswer, Source
from serve.client.control_client import ControlSession
from serve.errors import InvalidRequestError


class Env(Protocol):
    """An environment: gymnasium.Env, or anything like it."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, Mapping[str, Any]]:
        """Begin an episode; returns the observation and more."""

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
        """Act; returns observation, reward, terminated, truncated and more."""


@dataclass(frozen=True)
class EpisodeStep:
    """One step of an episode: what was answered, and what came of it."""

    answer: ControlAnswer
    reward: float
    cost: NDArray[np.float64]  # [C]
    terminated: bool  # the episode has ended for good
    truncated: bool  # it was cut
    info: Mapping[str, Any]


@dataclass(frozen=True)
class EpisodeResult:
    """What an episode added up to."""

    episode_return: float
    cost: NDArray[np.float64]  # [C], that of the last action included
    steps: int
    fallbacks: int  # steps whose action was the session's fallback's
    watchdog_actions: int  # steps that had no answer in time
    terminated: bool  # it ended for good, and was not cut


def costs_of_info(info: Mapping[str, Any], names: Sequence[str]) -> ArrayLike:
    """The costs with the constraints' names, which are the keys that training took; else the one named cost.

    Raises:
        InvalidRequestError: neither is there.
    """
    if all(name in info for name in names):
        return np.concatenate([np.ravel(info[name]) for name in names])
    if "cost" not in info:
        raise InvalidRequestError(
            "cost", f"is not in the environment's info, which has {sorted(info)}; give cost=, a function that finds it"
        )
    cost: ArrayLike = info["cost"]
    return cost


def episode_steps(
    env: Env,
    session: ControlSession,
    *,
    cost: Callable[[Mapping[str, Any]], ArrayLike] | None = None,
    seed: int | None = None,
) -> Iterator[EpisodeStep]:
    """Run one episode, step by step.

    The session counts each cost at once: that of the last action, too, which the next episode in it begins with.

    Args:
        env: is reset first.
        session: a fresh one, whose horizon is not shorter than the episode, or a rolling one.
        cost: finds the cost of a step, [C], in its info; a number where there is one constraint. Without it,
            `costs_of_info` does.
        seed: of the episode.

    Raises:
        PolicyServiceError: of `ControlSession.step` and `ControlSession.count_cost`.
    """
    observation, _ = env.reset(seed=seed)
    names = [constraint.name for constraint in session.description.constraints]
    counted = np.zeros(len(names))  # whatever was spent before a step
    terminated = truncated = False
    while not (terminated or truncated):
        answer = session.step(observation, cost=counted)
        observation, reward, terminated, truncated, info = env.step(answer.action)
        found = costs_of_info(info, names) if cost is None else cost(info)
        spent = np.atleast_1d(np.array(found, np.float64))  # a copy: environments fill theirs anew
        session.count_cost(spent)
        yield EpisodeStep(answer, float(reward), spent, bool(terminated), bool(truncated), info)


def run_episode(
    env: Env,
    session: ControlSession,
    *,
    cost: Callable[[Mapping[str, Any]], ArrayLike] | None = None,
    seed: int | None = None,
) -> EpisodeResult:
    """Run one episode; arguments and errors are those of `episode_steps`."""
    steps = list(episode_steps(env, session, cost=cost, seed=seed))
    sources = [step.answer.source for step in steps]
    return EpisodeResult(
        episode_return=sum(step.reward for step in steps),
        cost=np.sum([step.cost for step in steps], axis=0),
        steps=len(steps),
        fallbacks=sources.count(Source.FALLBACK),
        watchdog_actions=sources.count(Source.WATCHDOG),
        terminated=steps[-1].terminated,
    )
