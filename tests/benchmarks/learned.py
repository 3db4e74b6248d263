"""Results made up for tests."""

from collections.abc import Sequence

from benchmarks.learning.jobs import TASKS, Variant
from benchmarks.learning.results import Curve, Result, Statistics

CURVE = Curve(
    steps=(1_000, 2_000, 3_000),
    episode_return=(100.0, 800.0, 800.0),
    cost=(0.0, 11.0, 10.0),
    cost_level=(None, 0.9, 1.1),
    discounted_cost=(0.0, 1.4, 1.3),
    train_return=(None, 500.0, 700.0),
    train_cost=(20.0, 12.0, 9.0),
    infeasible_share=(None, 0.0, 0.0),
)


def made_up(
    env_id: str = "SafetyBallCircle-v0",
    *,
    variant: Variant = "cvpo",
    seed: int = 10,
    cost_limit: float = 10.0,
    returns: Sequence[float] = (700.0, 740.0),
    costs: Sequence[float] = (4.0, 14.0),
    curve: Curve = CURVE,
) -> Result:
    """A result with those episodes of its last policy."""
    policy = Statistics.of(returns, costs, cost_limit, 1.0, 1.3)
    return Result(
        variant=variant,
        env_id=env_id,
        cost_limit=cost_limit,
        steps=TASKS[env_id].steps,
        seed=seed,
        seconds=600.0,
        runs_at_once=2,
        date="2026-01-02",
        cvpo={"version": "0", "commit": "abc1234"},
        machine={"cpu": "A CPU", "cores": 2, "memory_gib": 23.5, "system": "Linux"},
        versions={"python": "3.11"},
        config={},
        curve=curve,
        deterministic=policy,
        sampled=policy,
    )
