"""A process: fresh episodes of the last policy of a run, by both of its modes.

`python -m benchmarks.learning.evaluate RUN EPISODES OUT`
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.results import MODES, EvaluatedMode
from cvpo import seeds
from cvpo.evaluate import TorchActor, cost_levels, environments, run_episodes
from cvpo.training.checkpoint import TrainedPolicy, checkpoint_steps, load_policy


def evaluate(policy: TrainedPolicy, mode: EvaluatedMode, episodes: int) -> dict[str, Any]:
    """Return and cost of each episode; both modes meet the same ones."""
    config = policy.config
    generator = torch.Generator().manual_seed(config.seed) if mode == "sampled" else None
    seed = config.seed + seeds.EVALUATION
    with environments(config.environment, num_envs=min(episodes, 10), workers=0, seed=seed) as env:
        done = run_episodes(env, TorchActor(policy.model, policy.spec, generator), episodes)
    level = cost_levels(done, config.cost_discounts)[0]
    return {
        "returns": [round(float(episode.reward.sum()), 3) for episode in done],
        "costs": [round(float(episode.cost.sum()), 3) for episode in done],
        "cost_level": level.ratio,
        "discounted_cost": level.realized,
    }


def main() -> None:
    """Evaluate, and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("episodes", type=int)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(arguments.run, checkpoint_steps(arguments.run)[-1])
    found = {mode: evaluate(policy, mode, arguments.episodes) for mode in MODES}
    arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
