"""Small random policies for the tests of maps, graphs and bundles."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo.bundle import Constraint, Provenance
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.shift import ShiftScore, fit_shift_score
from cvpo.envs.base import EnvSpec
from cvpo.exporting.served import Served
from cvpo.learning.networks import Critics, GaussianPolicy, Model, Normalizer

OBSERVATION_SIZE, ACTION_SIZE, T, W = 5, 2, 50, 10
LOW, HIGH = np.array([-1.0, 0.0]), np.array([1.0, 3.0])


def constraints(limits: tuple[float | None, ...]) -> tuple[Constraint, ...]:
    return tuple(
        Constraint(name=f"cost_{i}", cost_limit=limit, discount=0.9, horizon_steps=T, window_steps=W)
        for i, limit in enumerate(limits)
    )


def model(
    num_costs: int,
    seed: int = 0,
    reward_heads: int = 2,
    cost_heads: int = 2,
    covariance: Literal["diagonal", "full"] = "diagonal",
    closeness: tuple[int, ...] = (),
) -> Model:
    torch.manual_seed(seed)
    inputs = OBSERVATION_SIZE + len(closeness)
    built = Model(
        Normalizer(OBSERVATION_SIZE, closeness),
        GaussianPolicy(inputs, ACTION_SIZE, 16, covariance),
        Critics(inputs, ACTION_SIZE, num_costs, 16, reward_heads, cost_heads),
        cost_factor=torch.linspace(0.6, 1.4, num_costs),
    ).eval()
    built.normalizer.update(torch.from_numpy(observations()))
    with torch.no_grad():  # actions that depend on what is seen, and differ
        for layer in (built.policy.mean, built.policy.spread, built.policy.correlation):
            if layer is not None:
                layer.weight.normal_(0, 0.5)
    return built


def observations(count: int = 200) -> NDArray[np.float32]:
    generator = np.random.default_rng(3)
    return generator.normal(2, [1, 10, 0.1, 1, 1], (count, OBSERVATION_SIZE)).astype(np.float32)


def random_map(num_costs: int, seed: int = 0) -> CostMap:
    """Ascending along steps, cost value and atoms, as calibration makes them."""
    generator = np.random.default_rng(seed)
    H, B, M = 4, 3, 6
    atoms = generator.integers(0, 3, (num_costs, H, B, M)).astype(float)
    for axis in (1, 2, 3):
        atoms = atoms.cumsum(axis)
    covered = np.sort(generator.uniform(0, 0.97, (num_costs, H, M)), axis=-1)
    covered = np.minimum.accumulate(covered, axis=1)
    nodes = np.sort(generator.uniform(0.3, 1.2, (num_costs, B)), axis=-1)
    return CostMap(np.array([1, 5, 20, T]), nodes, atoms, atoms.mean(-1), covered, confidence=0.3)


def random_forecast(num_costs: int, seed: int = 0, inputs: int = OBSERVATION_SIZE) -> CostForecast:
    """One that depends on everything it sees."""
    torch.manual_seed(seed)
    typical = np.array([0.7 * 3.0**c for c in range(num_costs)])
    forecast = CostForecast(inputs, T, typical)
    with torch.no_grad():
        forecast.output_weight.normal_(0, 0.1)
        forecast.value_weight.normal_(0, 1)
    return forecast.eval().requires_grad_(False)


def served(
    num_costs: int,
    seed: int = 0,
    cost_map: CostMap | None = None,
    covariance: Literal["diagonal", "full"] = "diagonal",
    closeness: tuple[int, ...] = (),
) -> Served:
    """With a random map and forecast, or with a map that takes the cost value."""
    forecast = None if cost_map else random_forecast(num_costs, seed, OBSERVATION_SIZE + len(closeness))
    cost_map = cost_map or random_map(num_costs, seed)
    trained = model(num_costs, seed, covariance=covariance, closeness=closeness)
    return Served(trained, forecast, cost_map, LOW, HIGH, reward_scale=4.0, shift=shift_score(trained)).eval()


def shift_score(trained: Model) -> ShiftScore:
    return fit_shift_score(trained.normalizer, torch.from_numpy(observations()))


def spec(num_costs: int) -> EnvSpec:
    return EnvSpec(
        env_id="Small-v0",
        observation_size=OBSERVATION_SIZE,
        action_low=LOW,
        action_high=HIGH,
        cost_names=tuple(f"cost_{i}" for i in range(num_costs)),
        max_episode_steps=T,
        control_period_ms=20.0,
    )


def provenance() -> Provenance:
    return Provenance(
        environment="Small-v0",
        seed=0,
        steps=1000,
        selection="The last checkpoint",
        created="2026-01-01T00:00:00Z",
        packages={"torch": "2.13.0"},
        config={},
    )
