"""What is served: 60 observations, two hidden layers of 256 in the policy and in each of three critics, two of them
for the one cost; random weights, and a map of costs calibrated on made-up episodes, so that every part of the answer
is computed.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving.messages import NAME, OBSERVATIONS
from benchmarks.serving.network import STEPS_LEFT
from cvpo.bundle import Constraint, Precision, Provenance
from cvpo.calibration.calibrate import calibrate
from cvpo.envs.base import EnvSpec
from cvpo.evaluate import Episode
from cvpo.exporting.export import NamedPolicy, export_bundle
from cvpo.learning.networks import Critics, GaussianPolicy, Model, Normalizer

ACTIONS, WIDTH, REWARD_HEADS, COST_HEADS = 2, 256, 1, 2
EPISODE_STEPS, EPISODES = 200, 60
CONTROL_PERIOD_MS = 20.0


def write_workload(folder: Path, precision: Precision = "float32") -> Path:
    """Write the bundle into the folder, its networks in that precision, and return its path."""
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    model = Model(
        Normalizer(OBSERVATIONS),
        GaussianPolicy(OBSERVATIONS, ACTIONS, WIDTH),
        Critics(OBSERVATIONS, ACTIONS, 1, WIDTH, REWARD_HEADS, COST_HEADS),
    ).eval()
    seen = generator.standard_normal((EPISODES, EPISODE_STEPS, OBSERVATIONS)).astype(np.float32)
    model.normalizer.update(torch.from_numpy(seen.reshape(-1, OBSERVATIONS)))
    constraint = Constraint(
        name="cost", cost_limit=25.0, discount=0.99, horizon_steps=EPISODE_STEPS, window_steps=STEPS_LEFT
    )
    policy = NamedPolicy(
        NAME,
        1,
        model,
        1.0,
        EnvSpec(
            env_id="Benchmark-v0",
            observation_size=OBSERVATIONS,
            action_low=-np.ones(ACTIONS),
            action_high=np.ones(ACTIONS),
            cost_names=("cost",),
            max_episode_steps=EPISODE_STEPS,
            control_period_ms=CONTROL_PERIOD_MS,
        ),
        (constraint,),
        Provenance(
            environment="Benchmark-v0",
            seed=0,
            steps=0,
            selection="random weights",
            created="2026-01-01T00:00:00Z",
            packages={"torch": torch.__version__},
            config={},
        ),
        precision,
    )
    episodes = [_episode(model, observation, generator) for observation in seen]
    calibrated = calibrate(episodes, policy.constraints, model.normalizer, seed=0)
    return export_bundle(folder / NAME, policy, seen[0], calibrated=calibrated)


def _episode(model: Model, observation: NDArray[np.float32], generator: np.random.Generator) -> Episode:
    with torch.no_grad():
        _, value = model.values(torch.from_numpy(observation), torch.zeros(len(observation), 1, ACTIONS))
    cost = (generator.random((len(observation), 1)) < 0.2 * generator.random()).astype(np.float64)
    return Episode(observation, np.zeros(len(observation)), cost, False, value[:, 0].double().numpy(), None, None)
