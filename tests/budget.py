"""A constrained problem whose optimal policy is known exactly, and small training runs on it.

Each step is worth 1 or 3, at random and observed; the action is an effort in [0, 1]. Reward is worth times effort, cost
is effort. Over 40 steps effort is best spent on the steps worth 3 (20 on average) before those worth 1, so the most
return under a limit d on the expected cost is 3·d up to d = 20, and 60 + (d − 20) from there to 40, all effort.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers.time_limit import TimeLimit
from numpy.typing import NDArray

from cvpo.learning.config import TrainConfig, parse_config
from cvpo.training.progress import CheckpointReport, Progress

STEPS = 40


class Budget(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """See the module; `tests.budget:make` names it with its time limit."""

    def __init__(self) -> None:
        self.observation_space = Box(1.0, 3.0, (1,), np.float64)
        self.action_space = Box(0.0, 1.0, (1,), np.float64)
        self.worth = 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._next(), {}

    def step(self, action: NDArray[np.float64]) -> Any:
        effort = float(action[0])
        reward = self.worth * effort
        return self._next(), reward, False, False, {"cost": effort}

    def _next(self) -> NDArray[np.float64]:
        self.worth = float(self.np_random.choice([1.0, 3.0]))
        return np.array([self.worth])


def make() -> gymnasium.Env[Any, Any]:
    """The problem, 40 steps an episode."""
    return TimeLimit(Budget(), STEPS)


def best_return(cost: float) -> float:
    """The most expected return that an expected cost allows."""
    return 3 * cost if cost <= STEPS / 2 else STEPS + cost


def small_config(cost_limit: float = STEPS / 2, steps: int = 400, **settings: dict[str, Any]) -> TrainConfig:
    """Small networks and batches, everything in this process; `settings` change single settings of a group."""
    groups: dict[str, dict[str, Any]] = {
        "environment": {"env_id": "tests.budget:make", "num_envs": 4, "workers": 0},
        "schedule": {
            "steps": steps,
            "warmup_steps": 160,
            "warmup_updates": 20,
            "updates_per_step": 0.5,
            "checkpoint_every": 200,
            "evaluation_episodes": 2,
            "evaluation_workers": 0,
        },
        "replay": {"batch_size": 64},
        "network": {"hidden": 32, "cost_heads": 1},
        "critic": {"discount": 0.8, "n_step": 3, "learning_rate": 3e-3, "target_rate": 0.05},
        "limit": {"integral_steps": 1_000, "window_episodes": 2, "aim": 1.0},
        "estep": {},
        "mstep": {"learning_rate": 3e-3, "period": 25},
        "settle": {},
        "compute": {"device": "cpu"},
    }
    for group, changes in settings.items():
        groups[group] |= changes
    return parse_config({"cost_limits": [cost_limit], **groups})


class Reports:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.last: Progress | None = None
        self.checkpoints: list[CheckpointReport] = []
        self.said: list[str] = []

    def progress(self, progress: Progress) -> None:
        self.last = progress

    def checkpoint(self, report: CheckpointReport) -> None:
        self.checkpoints.append(report)

    def say(self, text: str) -> None:
        self.said.append(text)

    def stop_at(self, steps: int) -> Callable[[], bool]:
        """A `stop` that says so from that many steps on."""
        return lambda: self.last is not None and self.last.steps >= steps


def never() -> bool:
    """A `stop` that lets the run end by itself."""
    return False
