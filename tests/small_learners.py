"""Small learners, and a problem of one step to teach them, in which what is worth something costs as much."""

import math
from typing import Any

import numpy as np

from cvpo.bundle import Constraint
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.learning.learner import LearnerState, UpdateMetrics
from cvpo.learning.replay import Batch

B = 32


def config(cost_limits: tuple[float, ...] = (10.0,), **settings: dict[str, Any]) -> TrainConfig:
    groups: dict[str, dict[str, Any]] = {
        "environment": {"env_id": "none"},
        "schedule": {"steps": 1_000, "warmup_steps": 100, "warmup_updates": 0},
        "network": {"hidden": 32},
        "critic": {"learning_rate": 3e-3, "target_rate": 0.1},
        "limit": {"aim": 1.0},
        "mstep": {"learning_rate": 3e-3, "period": 10},
    }
    for group, changes in settings.items():
        groups[group] = groups.get(group, {}) | changes
    return parse_config({"cost_limits": cost_limits, **groups})


def create(config: TrainConfig, observation_size: int = 2, action_size: int = 1) -> LearnerState:
    constraints = [
        Constraint(
            name=f"c{i}",
            cost_limit=limit if math.isfinite(limit) else None,
            discount=0.9,
            horizon_steps=100,
            window_steps=10,
        )
        for i, limit in enumerate(config.cost_limits)
    ]
    return learner.create(config, observation_size, action_size, constraints)


def one_step_batch(
    generator: np.random.Generator, costs: int = 1, discount: float = 0.0, action_size: int = 1
) -> Batch:
    """Anywhere, any action: reward is its first number, each cost 1 more."""
    observation = generator.normal(size=(B, 2)).astype(np.float32)
    action = generator.uniform(-1, 1, (B, action_size)).astype(np.float32)
    return Batch(
        observation,
        action,
        action[:, 0],
        np.repeat(1 + action[:, :1], costs, axis=1),
        np.full(B, discount, np.float32),
        np.full((B, costs), discount, np.float32),
        generator.normal(size=(B, 2)).astype(np.float32),
        B // 2,
    )


def learn(
    state: LearnerState, config: TrainConfig, updates: int, measured: float | list[float], discount: float = 0.0
) -> list[UpdateMetrics]:
    generator = np.random.default_rng(0)
    costs = len(config.cost_limits)
    cost = np.broadcast_to(np.array(measured, np.float64), costs)
    return [learner.update(state, one_step_batch(generator, costs, discount), cost, 0, config) for _ in range(updates)]
