"""Whole episodes of a simulator, the same for each contestant: same seeds, same actions, so the same trajectories.

A contestant's end runs in the peer's environment, so this module needs numpy and the standard library only.
"""

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SEEDS_PER_ROUND = 1000  # more than there are episodes in a round

Action = NDArray[np.floating[Any]]


class Outcome(NamedTuple):
    """Of a step."""

    observation: NDArray[np.float64]
    reward: float
    cost: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Simulator:
    """What a contestant lends to a round: a simulator as it is used, without anything that checks or counts."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    kind: Any
    """Type of the numbers of an action."""
    reset: Callable[[int], NDArray[Any]]
    """Start the episode of a seed."""
    ended: Callable[[Action], bool]
    """Take a step, as quickly as it goes, and say whether the episode ended with it."""
    step: Callable[[Action], Outcome]
    """Take a step, and tell everything."""


def timed(simulator: Simulator, round_index: int, steps: int) -> dict[str, Any]:
    """Play whole episodes until enough steps are taken; seconds of the core and of the clock, resets included."""
    generator = np.random.default_rng(round_index)
    actions = generator.uniform(simulator.low, simulator.high, (steps, simulator.low.size)).astype(simulator.kind)
    reset, ended, taken, seeds = simulator.reset, simulator.ended, 0, itertools.count(SEEDS_PER_ROUND * round_index)
    core, clock = time.process_time(), time.perf_counter()
    while taken < steps:
        reset(next(seeds))
        for action in itertools.chain(actions[taken:], itertools.cycle(actions)):
            taken += 1
            if ended(action):
                break
    return {
        "steps": taken,
        "core_seconds": time.process_time() - core,
        "seconds": time.perf_counter() - clock,
    }


def digests(simulator: Simulator, round_index: int, episodes: int) -> dict[str, Any]:
    """Play episodes, and tell of each a digest of every bit of it, its length, cost and goals reached."""
    told = []
    for seed in range(SEEDS_PER_ROUND * round_index, SEEDS_PER_ROUND * round_index + episodes):
        generator = np.random.default_rng(seed)
        digest, steps, cost, goals, drift = hashlib.sha256(), 0, 0.0, 0, simulator.low
        observation, ended = simulator.reset(seed), False
        digest.update(observation.tobytes())
        while not ended:
            if steps % 40 == 0:  # with pure noise an agent stays where it is, where nothing happens
                drift = generator.uniform(simulator.low, simulator.high)
            noise = generator.normal(0.0, 0.3, drift.size)
            action = np.clip(drift + noise, simulator.low, simulator.high).astype(simulator.kind)
            outcome = simulator.step(action)
            ended = bool(outcome.terminated or outcome.truncated)
            numbers = [outcome.reward, outcome.cost, outcome.terminated, outcome.truncated]
            parts = sorted((name, float(value)) for name, value in outcome.info.items() if name.startswith("cost_"))
            digest.update(outcome.observation.tobytes() + np.array(numbers, np.float64).tobytes())
            digest.update(repr(parts).encode())
            steps, cost, goals = steps + 1, cost + float(outcome.cost), goals + ("goal_met" in outcome.info)
        told.append({"seed": seed, "digest": digest.hexdigest(), "steps": steps, "cost": cost, "goals": goals})
    return {"episodes": told}


def player(simulator: Simulator, steps: int, episodes: int) -> Callable[[], Mapping[str, Any]]:
    """What answers a round: timed, if steps are given, else in digests. Round 0, which warms up, is played here."""
    rounds = itertools.count(1)
    if not steps:
        return lambda: digests(simulator, next(rounds), episodes)
    timed(simulator, 0, steps // 10)
    return lambda: timed(simulator, next(rounds), steps)
