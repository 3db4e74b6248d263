"""Evaluation of a run's checkpoints while it goes on."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Self

from cvpo import seeds
from cvpo.errors import CheckpointError
from cvpo.evaluate import EpisodeRunner, TorchActor, cost_levels, environments, summarize
from cvpo.learning.config import TrainConfig
from cvpo.learning.networks import Model
from cvpo.training.checkpoint import load_policy, steps_of
from cvpo.training.metrics import MetricsWriter, read_evaluations
from cvpo.training.progress import CheckpointReport, Progress, Reporter

ENVS = 20  # stepped together


class Evaluator:
    """Evaluates each checkpoint's deterministic policy beside the training, one vector step at a time.

    Every checkpoint meets the same episodes, so their order is not an accident of the draw.
    """

    def __init__(self, config: TrainConfig, writer: MetricsWriter, reporter: Reporter) -> None:
        self.config, self.writer, self.reporter = config, writer, reporter
        self.progress: Progress
        self.runner: EpisodeRunner | None = None

    def __enter__(self) -> Self:
        schedule, environment = self.config.schedule, self.config.environment
        self.env = environments(
            environment,
            num_envs=min(schedule.evaluation_episodes, ENVS),
            workers=schedule.evaluation_workers,
            seed=self.config.seed + seeds.CHECKPOINTS,
        )
        # Steps of an evaluation to take with each step of training, so that it ends before the next one begins.
        rounds = math.ceil(schedule.evaluation_episodes / self.env.num_envs)
        between = schedule.checkpoint_every // environment.num_envs
        self.pace = math.ceil(rounds * self.env.spec.max_episode_steps / max(between, 1))
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()

    def make_up(self, run: Path, progress: Progress) -> None:
        """Evaluate the checkpoints whose evaluation was cut off when the run was."""
        for steps in unevaluated(run, progress.steps):
            try:
                model = load_policy(run, steps).model
            except CheckpointError as error:
                self.reporter.say(f"not evaluated: {error}")
                continue
            self.start(replace(progress, steps=steps), model)

    def start(self, progress: Progress, model: Model) -> None:
        """Begin with a policy as it is now; an evaluation still under way is brought to its end first."""
        self.finish()
        self.progress = progress
        actor = TorchActor(copy.deepcopy(model).cpu(), self.env.spec)
        self.runner = EpisodeRunner(self.env, actor, self.config.schedule.evaluation_episodes, self.env.rewind())

    def advance(self) -> None:
        """Let the evaluation under way take one step."""
        if self.runner is None:
            return
        self.runner.advance()
        if self.runner.finished:
            episodes, self.runner = self.runner.result(), None
            evaluation = summarize(episodes, self.config.cost_limits, "deterministic")
            levels = cost_levels(episodes, self.config.cost_discounts)
            self.writer.evaluation(self.progress.steps, evaluation, levels)
            self.reporter.checkpoint(CheckpointReport(self.progress.steps, evaluation, self.progress))

    def finish(self) -> None:
        """Bring the evaluation under way to its end."""
        while self.runner is not None:
            self.advance()


def unevaluated(run: Path, upto: int) -> list[int]:
    """Steps of the checkpoints of a run that have no evaluation, up to those."""
    evaluated = read_evaluations(run)
    return [steps for steps in steps_of(run, "checkpoints") if steps <= upto and steps not in evaluated]
