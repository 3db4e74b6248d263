"""What a checkpoint of a run costs, in time and on the disk: `python -m benchmarks.checkpoints`.

The saves of a navigation task's run, early and late, beside the writing of all transitions at each checkpoint, which is
what there is without a replay that is appended to, and beside the updates that a run makes between two checkpoints.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestant import versions
from benchmarks.errors import run
from benchmarks.rounds import Ratio, finish, interleave
from cvpo.envs import VectorEnv
from cvpo.errors import CheckpointError
from cvpo.files import write_verified
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.learning.learner import create, state_dict, update
from cvpo.learning.networks import Model
from cvpo.learning.replay import Replay
from cvpo.training.checkpoint import TrainedPolicy, save_policy, to_bytes
from cvpo.training.device import prepare_processor
from cvpo.training.resume import ResumePoints
from cvpo.training.trainer import constraints_of

TASK = "SafetyPointGoal1-v0"
SIZES = {100_000: 5_000, 1_000_000: 50_000}  # transitions stored, and steps between two checkpoints of such a run
COST = np.array([30.0])  # measured, over the limit
UPDATES = 20  # timed, of those between two checkpoints


@dataclass(frozen=True)
class Cost:
    """Of one checkpoint."""

    seconds: float
    written: int  # bytes


class Run:
    """A run of that task with so many transitions stored, made up but for its environments; just saved."""

    def __init__(self, folder: Path, env: VectorEnv, stored: int) -> None:
        self.folder, self.env, self.every, self.steps = folder, env, SIZES[stored], 0
        self.config: TrainConfig = parse_config(
            {
                "environment": {"env_id": TASK},
                "cost_limits": [25.0],
                "schedule": {"steps": 2 * stored, "checkpoint_every": self.every},
                "replay": {"capacity": 2 * stored},
            }
        )
        spec = env.spec
        self.constraints = constraints_of(self.config, spec)
        self.learner = create(self.config, spec.observation_size, spec.action_size, self.constraints)
        self.replay = Replay(2 * stored, spec.observation_size, spec.action_size, len(self.constraints))
        self.generator = np.random.default_rng(0)
        self.points = ResumePoints(folder, self.replay, spec)
        self._store(stored - self.every)
        self.save()

    def _store(self, count: int) -> None:
        begin = self.replay.total
        rows = self.replay.rows[begin : begin + count]
        self.generator.standard_normal(out=rows, dtype=np.float32)
        self.replay.total += count

    def save(self) -> Cost:
        """As the trainer does, with as many new transitions as come between two checkpoints."""
        self._store(self.every)
        self.steps += 1
        model = Model(self.learner.model.normalizer, self.learner.behavior_policy, self.learner.target_critics)
        began = time.perf_counter()
        policy = TrainedPolicy(model, self.env.spec, self.config, self.constraints, 1.0, self.steps)
        written = save_policy(self.folder, policy)
        written += self.points.save(self.steps, {"learner": state_dict(self.learner)}, self.env.state())
        return Cost(time.perf_counter() - began, written)

    def save_whole(self) -> Cost:
        """The same with every transition written again."""
        self.steps += 1
        began = time.perf_counter()
        stored = torch.from_numpy(self.replay.rows[: self.replay.total])
        state = to_bytes({"learner": state_dict(self.learner), "replay": stored})
        contents = {"state.pt": state, "environments.bin": self.env.state()}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            write_verified(Path(folder) / "point", contents, CheckpointError)
            return Cost(time.perf_counter() - began, sum(map(len, contents.values())))

    def learn(self) -> Cost:
        """The updates between two checkpoints, from the time that some of them take; they write nothing."""
        replay = self.config.replay
        began = time.perf_counter()
        for _ in range(UPDATES):
            update(self.learner, self.replay.sample(self.generator, replay.batch_size, 5_000), COST, 0, self.config)
        planned = self.every * self.config.schedule.updates_per_step
        return Cost((time.perf_counter() - began) / UPDATES * planned, 0)


def measure(env: VectorEnv, stored: int, rounds: int) -> dict[str, Any]:
    """Play the rounds with so many transitions stored."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), env, stored)
        run.learn()  # the first ones are slower
        costs = interleave({"append": run.save, "whole": run.save_whole, "learner": run.learn}, rounds)
    seconds = {name: [cost.seconds for cost in each] for name, each in costs.items()}
    written = {name: [cost.written for cost in costs[name]] for name in ("append", "whole")}
    share = Ratio.of(seconds["append"], seconds["learner"])
    faster = Ratio.of(seconds["whole"], seconds["append"])
    smaller = Ratio.of(written["whole"], written["append"])
    print(f"{stored:,} transitions, a checkpoint each {SIZES[stored]:,} steps", flush=True)
    print(f"  {statistics.median(seconds['append']):.2f} s, {written['append'][-1] / 1e6:.1f} MB", flush=True)
    print(f"  of the learner's time between two   {share.median:.3%}", flush=True)
    print(f"  all of it written, over that        {faster} in time, {smaller} in bytes", flush=True)
    return {
        "checkpoint_every": SIZES[stored],
        "seconds": seconds,
        "bytes": written,
        "share_of_learner_time": share.document(),
        "whole_over_append_seconds": faster.document(),
        "whole_over_append_bytes": smaller.document(),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    prepare_processor(1)
    with VectorEnv(TASK, num_envs=5, workers=1, seed=0) as env:
        env.reset()
        for _ in range(100):
            env.step_async(np.zeros((5, env.spec.action_size)))
            env.step_wait()
        sizes = {str(stored): measure(env, stored, rounds) for stored in SIZES}
    last = sizes[str(max(SIZES))]
    headline = {
        "checkpoint_share_of_learner_time": last["share_of_learner_time"]["median"],
        "checkpoint_bytes_ratio": last["whole_over_append_bytes"]["median"],
    }
    finish("checkpoints", headline, {"task": TASK, "versions": versions(["torch", "numpy", "mujoco"]), "sizes": sizes})


if __name__ == "__main__":
    run(main)
