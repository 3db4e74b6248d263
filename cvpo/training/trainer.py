"""The loop of a training run: collect, update, checkpoint, evaluate, report."""

import copy
import json
import math
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo import seeds
from cvpo.bundle import Constraint
from cvpo.envs import EnvSpec, VectorEnv, VectorStep
from cvpo.errors import CheckpointError, ConfigError, EnvError, NonFiniteError, WorkerError
from cvpo.evaluate import EpisodeRunner, TorchActor, cost_levels, environments, summarize, to_environment
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.learning.learner import UpdateMetrics
from cvpo.learning.level import LevelMeter
from cvpo.learning.limit import CostMeter, limit_at
from cvpo.learning.networks import Model
from cvpo.learning.replay import NStepCollector, Replay
from cvpo.training.checkpoint import (
    TrainedPolicy,
    begun,
    load_policy,
    read_config,
    replace_config,
    save_policy,
    steps_of,
)
from cvpo.training.device import prepare_processor, settle_device
from cvpo.training.lock import locked
from cvpo.training.metrics import MetricsWriter, read_evaluations
from cvpo.training.progress import ROW_EVERY, CheckpointReport, Clock, Progress, Reporter, Rows, Waits
from cvpo.training.resume import ResumePoint, ResumePoints, load_resume_point

Array = NDArray[np.float64]
EVALUATION_ENVS = 20
SHOWN_UPDATES = 20  # after so many of those that are made at once, people see that the run goes on


def train(config: TrainConfig, run: Path, reporter: Reporter, stop: Callable[[], bool]) -> int:
    """Train a policy and leave it in the folder `run`.

    Args:
        config: of the run.
        run: a new or empty folder.
        reporter: is told of progress.
        stop: asked after each step of the environments; when it says True, the run is saved and ends.

    Returns:
        Steps done.

    Raises:
        ConfigError, EnvError, WorkerError, CheckpointError: what cannot be done, and what to do.
    """
    with _environments(config) as env, _failures(run):
        prepare_processor(config.compute.threads)
        constraints = constraints_of(config, env.spec)
        config, device = settle_device(config, env.spec.observation_size, env.spec.action_size, constraints)
        loop = _Loop(config, constraints, env)
        with begun(run, config, reporter.say):
            points = ResumePoints(run, loop.replay, env.spec)
            return loop.run(run, points, env.reset(staggered=True), device, reporter, stop)


def resume(run: Path, reporter: Reporter, stop: Callable[[], bool], steps: int | None = None) -> int:
    """Go on with a run from its newest resume point (or its start), as if it had not been interrupted.

    Args:
        run: the folder of the run.
        reporter, stop: as for `train`.
        steps: a new total, to train longer than planned.

    Raises:
        CheckpointError: it is no run, it is damaged, or it belongs to another config.
        Others as `train`.
    """
    read_config(run)  # no lock is put where there is no run
    with locked(run, reporter.say):
        return _resume(run, reporter, stop, steps)


def _resume(run: Path, reporter: Reporter, stop: Callable[[], bool], steps: int | None) -> int:
    config = read_config(run)
    point = load_resume_point(run, reporter.say)
    if point and _learning(parse_config(json.loads(point.state["config"]))) != _learning(config):
        raise CheckpointError(f"{run}/config.json was changed since the run began. Put it back, or start a new run.")
    if steps is not None:
        config = _with_steps(config, steps)
    if point and point.steps >= config.schedule.steps + config.environment.num_envs:
        raise ConfigError(f"{run} has come to {point.steps} steps. Give --steps of at least that many, or none.")
    if point and point.steps >= config.schedule.steps and not _unevaluated(run, point.steps):
        raise ConfigError(f"{run} is complete at {point.steps} steps. To train longer, give a larger --steps.")
    with _environments(config) as env, _failures(run):
        prepare_processor(config.compute.threads)
        constraints = constraints_of(config, env.spec)
        config, device = settle_device(config, env.spec.observation_size, env.spec.action_size, constraints)
        loop = _Loop(config, constraints, env)
        points = ResumePoints(run, loop.replay, env.spec)
        if point is None:
            observation = env.reset(staggered=True)
        else:
            point.check_spec(run, env.spec)
            loop.restore(point)
            observation = env.restore(point.environments)
            loop.begin_anew(env.restarted)
            if warning := point.warning():
                reporter.say(warning)
            if env.restarted.any():
                reporter.say(
                    f"The run goes on, but not to the bit: {env.restarted.sum()} of {env.num_envs} environments could "
                    f"not be kept, and begin a new episode."
                )
        points.go_on(point)
        replace_config(run, config)
        del point  # so that its memory is free
        return loop.run(run, points, observation, device, reporter, stop)


def constraints_of(config: TrainConfig, spec: EnvSpec) -> tuple[Constraint, ...]:
    """One constraint for each cost of the environment.

    Raises:
        ConfigError: the number of limits is not that of the costs.
    """
    if len(config.cost_limits) != len(spec.cost_names):
        raise ConfigError(
            f"cost_limits has {len(config.cost_limits)} entries but {spec.env_id} reports {len(spec.cost_names)} "
            f"({', '.join(spec.cost_names)}). Give one --cost-limit per cost, or pick the costs with --cost."
        )
    window = round(1 / (1 - max(config.cost_discounts)))
    return tuple(
        Constraint(
            name=name,
            cost_limit=None if limit == float("inf") else limit,
            discount=discount,
            horizon_steps=spec.max_episode_steps,
            window_steps=min(window, spec.max_episode_steps),
        )
        for name, limit, discount in zip(spec.cost_names, config.cost_limits, config.cost_discounts, strict=True)
    )


class _Loop:
    """The state of a run, and the steps that advance it."""

    def __init__(self, config: TrainConfig, constraints: tuple[Constraint, ...], env: VectorEnv) -> None:
        self.config, self.constraints, self.env, self.spec = config, constraints, env, env.spec
        spec, num_envs, num_costs = env.spec, env.num_envs, len(constraints)
        device = config.compute.device
        self.learner = learner.create(
            config, spec.observation_size, spec.action_size, constraints, device, spec.closeness
        )
        most = config.schedule.steps + num_envs  # the last step of all may go beyond the plan
        with _room("the replay", "replay.capacity"):
            self.replay = Replay(config.replay.capacity, spec.observation_size, spec.action_size, num_costs, most)
        critic = config.critic
        self.collector = NStepCollector(
            self.replay, num_envs, critic.n_step, critic.discount, config.cost_discounts, critic.after_time_limit
        )
        window = max(1, round(config.limit.window_episodes * spec.max_episode_steps))
        self.deterministic = min(config.limit.deterministic_envs, num_envs - 1)
        self.measured = slice(0, self.deterministic or num_envs)  # environments whose cost is held
        with _room(f"the costs of {config.limit.window_episodes:g} episodes", "environment.max_episode_steps"):
            self.meter = CostMeter.start(window, self.measured.stop, num_costs)
        self.level = LevelMeter.start(num_costs)
        # Observation, action in [-1, 1] and cost of the measured episodes under way; empty where the level stays.
        self.measured_steps: list[list[tuple[NDArray[np.float32], NDArray[np.float32], Array]]] = [
            [] for _ in range(self.measured.stop)
        ]
        self.generator = np.random.default_rng(config.seed)
        self.recent_size = max(1, round(config.replay.recent_episodes * spec.max_episode_steps))
        self.steps = 0
        self.unmet_steps = np.zeros(num_costs)  # in a row, with a cost over its limit and no more to ask for
        self.feasible: NDArray[np.bool_] | None = None  # in an update since the last step, [C]; None: there was none
        self.running_return = np.zeros(num_envs)
        self.returns: deque[float] = deque(maxlen=10)
        self.last: UpdateMetrics | None = None
        self.rows = Rows(spec.cost_names)

    def run(
        self,
        run: Path,
        points: ResumePoints,
        observation: NDArray[np.float32],
        device: str,
        reporter: Reporter,
        stop: Callable[[], bool],
    ) -> int:
        """Collect and learn until the planned number of steps, or until `stop` says so; a checkpoint ends both.

        `device` says for people what the run learns on; they are told when the first step has gone well.
        """
        schedule, total = self.config.schedule, self.config.schedule.steps
        with (
            MetricsWriter(run, self.spec.cost_names, self.steps, self.learner.updates) as writer,
            _Evaluator(self.config, writer, reporter) as evaluator,
        ):
            clock, waited = Clock(self.steps), self._waited(evaluator)
            progress = self._progress(clock, Waits(0.0, 0.0, 0.0))
            if self.steps:
                evaluator.make_up(run, progress)
            saved, due = self.steps, _next_multiple(self.steps, schedule.checkpoint_every)
            while self.steps < total and not stop():
                action = self._choose(observation)
                self.env.step_async(to_environment(action, self.spec.action_low, self.spec.action_high))
                updates = self._due_updates()
                for i in range(max(updates, evaluator.pace)):  # in turns, so that its simulators step meanwhile
                    if i < evaluator.pace:
                        evaluator.advance()
                    if i < updates:
                        self._update(writer)
                        if (left := updates - i - 1) and left % SHOWN_UPDATES == 0:
                            reporter.progress(self._progress(clock, self._waited(evaluator).since(waited), left))
                observation = self._take_in(observation, action)
                for sentence in self._newly_unmet():
                    reporter.say(sentence)
                if device:
                    reporter.say(device)
                    device = ""
                progress = self._progress(clock, self._waited(evaluator).since(waited))
                reporter.progress(progress)
                if self.steps % ROW_EVERY < self.env.num_envs:  # it has come to a multiple, or beyond
                    writer.row(self.rows.take(progress, self.learner))
                if self.steps >= due and self.learner.updates:
                    saved = self._save(run, points, writer)
                    due = _next_multiple(saved, schedule.checkpoint_every)
                    evaluator.start(progress, self._model())
            if saved != self.steps:
                saved = self._save(run, points, writer)
                evaluator.finish()  # of an earlier checkpoint
                if not stop():
                    evaluator.start(progress, self._model())
            if not stop():
                evaluator.finish()
        return self.steps

    def _choose(self, observation: NDArray[np.float32]) -> Array:
        """Actions in [-1, 1], [N, A]: uniform in the warm-up, then drawn from the behavior policy."""
        if self.steps < self.config.schedule.warmup_steps:
            return self.generator.uniform(-1, 1, (len(observation), self.spec.action_size))
        with self._divergence_dated():
            return learner.act(self.learner, observation, self.deterministic)

    @contextmanager
    def _divergence_dated(self) -> Iterator[None]:
        """Say of a network that diverged when it did."""
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteError(f"At step {self.steps:,}, update {self.learner.updates:,}: {error}") from error

    def _due_updates(self) -> int:
        """Updates that are due before the next step is taken in."""
        schedule = self.config.schedule
        if self.steps < schedule.warmup_steps:
            return 0
        if self.learner.updates == 0:
            self.learner.reward_scale = self.replay.reward_scale()
        planned = schedule.warmup_updates + int((self.steps - schedule.warmup_steps) * schedule.updates_per_step) + 1
        return planned - self.learner.updates

    def _update(self, writer: MetricsWriter) -> None:
        batch = self.replay.sample(self.generator, self.config.replay.batch_size, self.recent_size)
        measured = self.meter.measured(self.spec.max_episode_steps)
        with self._divergence_dated():
            metrics = learner.update(self.learner, batch, measured, self.steps, self.config)
        writer.residual(
            self.learner.updates,
            metrics.feasible,
            metrics.temperature,
            metrics.kl_residual,
            list(zip(metrics.cost_multiplier.tolist(), metrics.cost_residual.tolist(), strict=True)),
        )
        feasible = metrics.infeasibility <= 0
        self.feasible = feasible if self.feasible is None else self.feasible | feasible
        self.rows.updates.append(metrics)
        self.last = metrics

    def _take_in(self, observation: NDArray[np.float32], action: Array) -> NDArray[np.float32]:
        """Receive the step under way, store it, and return what to act on next."""
        step = self.env.step_wait()
        self.collector.add(observation, action.astype(np.float32), step)
        self.learner.model.normalizer.update(self.learner.tensor(step.observation))
        self.meter.add(step.cost[self.measured])
        self._measure_level(observation, action.astype(np.float32), step)
        self.running_return += step.reward
        for i in np.flatnonzero(step.terminated | step.truncated):
            self.returns.append(float(self.running_return[i]))
            self.running_return[i] = 0.0
        self.steps += self.env.num_envs
        measured = self.meter.measured(self.spec.max_episode_steps)
        self.learner.controller = self.learner.controller.having_seen(
            step.cost[self.measured], measured if self.meter.full else None
        )
        if self.learner.updates:
            limit = limit_at(self.config, self.steps)
            gap = self.learner.controller.gap(measured, learner.held_at(limit, self.config))
            controller = self.learner.controller.advanced(gap, self.env.num_envs, self.config.limit)
            at_rest = (limit == 0) & (measured == 0)
            self.learner.controller = controller.taken_back(at_rest, self.env.num_envs, self.config.limit)
            if self.config.estep.constraint == "critic":
                exhausted = self.unmet_steps > 0 if self.feasible is None else ~self.feasible  # None: as it was
            else:
                exhausted = self.learner.controller.exhausted(gap, self.config.limit)
            unmet = (measured > limit) & exhausted
            self.unmet_steps = np.where(unmet, self.unmet_steps + self.env.num_envs, 0.0)
            self.feasible = None
        return step.observation

    def _measure_level(self, observation: NDArray[np.float32], action: NDArray[np.float32], step: VectorStep) -> None:
        """Take in a step of the measured episodes; where one ends, compare what the critics say with what came."""
        if not self.learner.updates or self.config.estep.constraint == "critic":
            return  # random actions; the paper's own form takes the critics as they are
        for i, steps in enumerate(self.measured_steps):
            steps.append((observation[i].copy(), action[i].copy(), step.cost[i].copy()))
            if step.terminated[i] or step.truncated[i]:
                observations, actions, cost = map(np.array, zip(*steps, strict=True))
                said = learner.cost_values(self.learner, observations, actions)
                self.level = self.level.seeing(said, cost, np.array(self.config.cost_discounts))
                self.learner.model.cost_factor.copy_(self.learner.tensor(self.level.factor()))
                steps.clear()

    def _newly_unmet(self) -> list[str]:
        """A sentence for each limit that, with this step, has been out of reach for long."""
        patience = self.config.limit.integral_steps
        newly = (self.unmet_steps >= patience) & (self.unmet_steps - self.env.num_envs < patience)
        measured, limit = self.meter.measured(self.spec.max_episode_steps), limit_at(self.config, self.steps)
        return [
            f"limit   {self.spec.cost_names[i]} is {measured[i]:.3g} an episode, over its limit of "
            f"{limit[i]:g}, and for {patience:,} steps no more could be asked of an update. Perhaps "
            f"no policy can meet this limit. Training goes on towards less cost."
            for i in np.flatnonzero(newly)
        ]

    def _waited(self, evaluator: "_Evaluator") -> Waits:
        """Since the environments were made; for differences."""
        simulators = self.env.simulators_waited if self.config.environment.workers else None
        return Waits(time.monotonic(), self.env.learner_waited + evaluator.env.learner_waited, simulators)

    def _progress(self, clock: Clock, waits: Waits, updates_due: int = 0) -> Progress:
        updates = self.learner.updates
        return Progress(
            steps=self.steps,
            total_steps=self.config.schedule.steps,
            steps_per_second=clock.rate(self.steps),
            train_return=float(np.mean(self.returns)) if self.returns else None,
            train_cost=self.meter.measured(self.spec.max_episode_steps),
            cost_limit=limit_at(self.config, self.steps),
            unmet_steps=self.unmet_steps,
            temperature=self.last.temperature if self.last else None,
            cost_multiplier=self.last.cost_multiplier if self.last else None,
            infeasible_share=self.learner.infeasible_updates / updates if updates else 0.0,
            updates_due=updates_due,
            waits=waits,
        )

    def _model(self) -> Model:
        """What checkpoints hold and evaluations judge."""
        state = self.learner
        return Model(state.model.normalizer, state.behavior_policy, state.target_critics, state.model.cost_factor)

    def _save(self, run: Path, points: ResumePoints, writer: MetricsWriter) -> int:
        began, scale = time.monotonic(), self.learner.reward_scale
        with self._divergence_dated():
            learner.require_finite_parameters(self.learner)  # no checkpoint of a broken policy beside the good ones
        writer.flush()
        policy = TrainedPolicy(self._model(), self.spec, self.config, self.constraints, scale, self.steps)
        written = save_policy(run, policy) + points.save(self.steps, self.state(), self.env.state())
        self.rows.checkpoint(time.monotonic() - began, written)
        return self.steps

    def state(self) -> dict[str, Any]:
        """Everything but the transitions and the environments, as tensors and plain values."""
        return {
            "config": self.config.model_dump_json(),
            "steps": self.steps,
            "learner": learner.state_dict(self.learner),
            "pending": self.collector.state(),
            "generator": self.generator.bit_generator.state,
            "cost_window": torch.from_numpy(self.meter.window.copy()),
            "cost_count": self.meter.count,
            "level": {field.name: np.asarray(getattr(self.level, field.name)).tolist() for field in fields(LevelMeter)},
            "measured_steps": [
                [torch.from_numpy(np.array(part)) for part in zip(*steps, strict=True)] for steps in self.measured_steps
            ],
            "unmet_steps": self.unmet_steps.tolist(),
            "running_return": torch.from_numpy(self.running_return.copy()),
            "returns": list(self.returns),
            "rows": self.rows.state(),
        }

    def restore(self, point: ResumePoint) -> None:
        """Put back the transitions and what `state` gave."""
        point.restore_replay(self.replay)
        state = point.state
        self.steps = state["steps"]
        learner.load_state_dict(self.learner, state["learner"])
        self.collector.restore(state["pending"])
        self.generator.bit_generator.state = state["generator"]
        self.meter = CostMeter(state["cost_window"].numpy(), state["cost_count"])
        self.level = LevelMeter(**{name: np.array(value) for name, value in state["level"].items()})
        self.measured_steps = [
            list(zip(*(part.numpy() for part in parts), strict=True)) for parts in state["measured_steps"]
        ]
        self.unmet_steps = np.array(state["unmet_steps"])
        self.running_return = state["running_return"].numpy()
        self.returns.extend(state["returns"])
        self.rows.restore(state["rows"])

    def begin_anew(self, restarted: NDArray[np.bool_]) -> None:
        """Forget the episodes under way of environments that were not restored: no return crosses into the new ones."""
        for i in np.flatnonzero(restarted):
            self.collector.pending[i].clear()
            self.running_return[i] = 0.0
            if i < len(self.measured_steps):
                self.measured_steps[i].clear()


@contextmanager
def _room(what: str, setting: str) -> Iterator[None]:
    """Say of what does not fit into memory which setting it comes from."""
    try:
        yield
    except MemoryError as error:
        raise ConfigError(f"There is no memory for {what}: {error}. Give a smaller {setting}.") from error


class _Evaluator:
    """Evaluates each checkpoint's deterministic policy beside the training, one vector step at a time.

    Every checkpoint meets the same episodes, so their order is not an accident of the draw.
    """

    def __init__(self, config: TrainConfig, writer: MetricsWriter, reporter: Reporter) -> None:
        self.config, self.writer, self.reporter = config, writer, reporter
        self.progress: Progress
        self.runner: EpisodeRunner | None = None

    def __enter__(self) -> "_Evaluator":
        schedule, environment = self.config.schedule, self.config.environment
        self.env = environments(
            environment,
            num_envs=min(schedule.evaluation_episodes, EVALUATION_ENVS),
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
        for steps in _unevaluated(run, progress.steps):
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


def _unevaluated(run: Path, upto: int) -> list[int]:
    """Steps of the checkpoints that have no evaluation."""
    evaluated = read_evaluations(run)
    return [steps for steps in steps_of(run, "checkpoints") if steps <= upto and steps not in evaluated]


def _learning(config: TrainConfig) -> dict[str, Any]:
    """What decides how a run learns; the rest may change when it goes on."""
    return config.model_dump(
        exclude={"environment": {"workers", "step_timeout_seconds"}, "schedule": {"steps", "evaluation_workers"}}
    )


def _with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    document = config.model_dump()
    document["schedule"]["steps"] = steps
    return parse_config(document)


def _environments(config: TrainConfig) -> VectorEnv:
    environment = config.environment
    return environments(environment, num_envs=environment.num_envs, workers=environment.workers, seed=config.seed)


@contextmanager
def _failures(run: Path) -> Iterator[None]:
    """Say of a full disk, a dead simulator, a broken environment or a diverged network what to do about the run."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"Cannot write to {run}: {error.strerror or error}. Free space{_go_on(run)}.") from error
    except (EnvError, WorkerError) as error:
        mend = ". Mend the environment" if isinstance(error, EnvError) and _go_on(run) else ""
        raise type(error)(f"{str(error).rstrip('.')}{mend}{_go_on(run)}.") from error
    except NonFiniteError as error:
        kept = f" The checkpoints in {run} are from before that, and stay." if _go_on(run) else ""
        raise NonFiniteError(
            f"{error}{kept} Start a new run with smaller steps, such as --set critic.learning_rate=3e-4 "
            f"--set mstep.learning_rate=3e-4."
        ) from error


def _go_on(run: Path) -> str:
    if not (run / "resume").is_dir():
        return ""
    return f", then go on from the newest checkpoint: cvpo train --resume {shlex.quote(str(run))}"


def _next_multiple(steps: int, every: int) -> int:
    """The first multiple beyond: a resumed run keeps the dates of the one that it goes on with."""
    return (steps // every + 1) * every
