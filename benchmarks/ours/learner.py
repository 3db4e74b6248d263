"""Our learner, updating from our replay store."""

import argparse
import time

import numpy as np

from benchmarks.contestant import answer_rounds
from benchmarks.workload import Workload, transitions
from cvpo.bundle import Constraint
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.learning.replay import Replay
from cvpo.learning.returns import NStepReturn
from cvpo.training.device import prepare_processor

STORED = 100_000  # transitions
COST_LIMIT = 25.0
MEASURED_COST = np.array([30.0])  # over the limit, so that every E-step has its constraint to meet


def config_of(workload: Workload, precision: str) -> TrainConfig:
    """Our defaults, but for the sizes of the workload and the precision."""
    return parse_config(
        {
            "environment": {"env_id": "made-up"},
            "cost_limits": [COST_LIMIT] * workload.costs,
            "schedule": {"steps": 1_000_000},
            "replay": {"batch_size": workload.batch_size, "capacity": STORED},
            "network": {"hidden": workload.hidden, "reward_heads": 1, "cost_heads": workload.cost_heads},
            "estep": {"samples": workload.samples},
            "compute": {"precision": precision},
        }
    )


class Ours:
    """A learner and its store, filled with the workload's made-up data."""

    def __init__(
        self, workload: Workload, *, stored: int = STORED, precision: str = "float32", device: str = "cpu"
    ) -> None:
        self.workload, self.config = workload, config_of(workload, precision)
        constraints = [
            Constraint(
                name=f"cost_{i}",
                cost_limit=COST_LIMIT,
                discount=self.config.critic.discount,
                horizon_steps=workload.episode_steps,
                window_steps=100,
            )
            for i in range(workload.costs)
        ]
        self.state = learner.create(self.config, workload.observation_size, workload.action_size, constraints, device)
        self.replay = Replay(stored, workload.observation_size, workload.action_size, workload.costs)
        data = transitions(workload, stored)
        self.state.model.normalizer.update(self.state.tensor(data.observation))
        discount = self.config.critic.discount**self.config.critic.n_step
        for i in range(stored):
            total = NStepReturn(
                data.reward[i],
                np.full(workload.costs, data.cost[i]),
                discount,
                np.full(workload.costs, discount),
            )
            self.replay.add(data.observation[i], data.action[i], total, data.next_observation[i])
        self.state.reward_scale = float(self.replay.reward.std())
        self.recent_size = round(self.config.replay.recent_episodes * workload.episode_steps)
        self.measured_cost = np.repeat(MEASURED_COST, workload.costs)
        self.generator = np.random.default_rng(0)

    def update(self) -> None:
        """As the trainer does it: sample, and update."""
        batch = self.replay.sample(self.generator, self.workload.batch_size, self.recent_size)
        learner.update(self.state, batch, self.measured_cost, 0, self.config)

    def updates(self, seconds: float) -> dict[str, float]:
        """Update for so long, and once at least; what was done, in what time of the core, and in what of the clock."""
        done, passed, begin, core = 0, 0.0, time.perf_counter(), time.process_time()
        while not done or passed < seconds:
            self.update()
            done += 1
            passed = time.perf_counter() - begin
        return {"updates": done, "core_seconds": time.process_time() - core, "seconds": passed}


def main() -> None:
    """Answer rounds of updates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cost-heads", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    prepare_processor(arguments.threads)
    ours = Ours(Workload(cost_heads=arguments.cost_heads), precision=arguments.precision)
    ours.updates(min(2.0, arguments.seconds))
    answer_rounds(["torch", "numpy"], lambda: ours.updates(arguments.seconds))


if __name__ == "__main__":
    main()
