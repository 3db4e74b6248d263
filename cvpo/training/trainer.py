"""The loop of a training run: collect, update, checkpoint, evaluate, report."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvpo.bundle import Constraint
from cvpo.envs import EnvSpec, VectorEnv
from cvpo.errors import CheckpointError, ConfigError, NonFiniteError, WorkerError
from cvpo.evaluate import environments, to_environment
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.learning.learner import UpdateMetrics
from cvpo.learning.limit import limit_at
from cvpo.learning.networks import Model
from cvpo.learning.replay import NStepCollector, Replay
from cvpo.training.checkpoint import TrainedPolicy, begun, read_config, replace_config, save_policy
from cvpo.training.device import prepare_processor, settle_device
from cvpo.training.evaluator import Evaluator, unevaluated
from cvpo.training.failures import failures, room
from cvpo.training.level_watch import LevelWatch
from cvpo.training.limit_watch import LimitWatch
from cvpo.training.lock import locked
from cvpo.training.metrics import MetricsWriter
from cvpo.training.progress import ROW_EVERY, Clock, Progress, Reporter, Rows, Waits
from cvpo.training.proof import Proof
from cvpo.training.resume import ResumePoint, ResumePoints, load_resume_point

Array = NDArray[np.float64]
NETWORK_SIZES = "network.hidden, network.reward_heads or network.cost_heads"
UPDATE_SIZES = f"replay.batch_size, estep.samples, {NETWORK_SIZES}"
SHOWN_UPDATES = 20  # after so many of those that are made at once, people see that the run goes on


def train(config: TrainConfig, run: Path, reporter: Reporter, stop: Callable[[], bool]) -> int:
    """Train a policy and leave it in the folder `run`.

    Args:
        config: of the run.
        run: a new or empty folder, or one of a run that saved nothing.
        reporter: is told of progress.
        stop: asked after each step of the environments; when it says True, the run is saved and ends.

    Returns:
        Steps done.

    Raises:
        ConfigError, EnvError, WorkerError, CheckpointError: what cannot be done, and what to do.
    """
    with _opened(config, run) as (loop, device), begun(run, loop.config, reporter.say):
        points = ResumePoints(run, loop.replay, loop.spec)
        points.go_on(None)
        return loop.run(points, loop.env.reset(staggered=True), device, reporter, stop)


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
    if point and point.steps >= config.schedule.steps and not unevaluated(run, point.steps):
        raise ConfigError(f"{run} is complete at {point.steps} steps. To train longer, give a larger --steps.")
    with _opened(config, run) as (loop, device):
        env, points = loop.env, ResumePoints(run, loop.replay, loop.spec)
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
        replace_config(run, loop.config)
        del point  # so that its memory is free
        return loop.run(points, observation, device, reporter, stop)


@contextmanager
def _opened(config: TrainConfig, run: Path) -> Iterator[tuple["_Loop", str]]:
    """What learns, in environments that are closed at the end; and on which device it does, for people."""
    environment = config.environment
    with (
        environments(environment, num_envs=environment.num_envs, workers=environment.workers, seed=config.seed) as env,
        failures(run),
    ):
        prepare_processor(config.compute.threads)
        constraints = constraints_of(config, env.spec)
        with room("an update", UPDATE_SIZES):
            config, device = settle_device(config, env.spec.observation_size, env.spec.action_size, constraints)
        yield _Loop(config, constraints, env), device


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
        with room("the networks", NETWORK_SIZES):
            self.learner = learner.create(
                config, spec.observation_size, spec.action_size, constraints, device, spec.closeness
            )
        most = config.schedule.steps + num_envs  # the last step of all may go beyond the plan
        with room("the replay", "replay.capacity"):
            self.replay = Replay(config.replay.capacity, spec.observation_size, spec.action_size, num_costs, most)
        critic = config.critic
        self.collector = NStepCollector(
            self.replay, num_envs, critic.n_step, critic.discount, config.cost_discounts, critic.after_time_limit
        )
        self.deterministic = min(config.limit.deterministic_envs, num_envs - 1)  # while the policy learns
        self.measured = slice(0, self.deterministic or num_envs)  # environments whose cost is held at the limit
        self.watch = LimitWatch(config, spec, num_envs, self.measured.stop)
        self.level = LevelWatch(config, num_costs, num_envs)
        self.proof = Proof(config, spec)
        self.generator = np.random.default_rng(config.seed)
        self.recent_size = max(1, round(config.replay.recent_episodes * spec.max_episode_steps))
        self.steps = 0
        self.running_return = np.zeros(num_envs)
        self.returns: deque[float] = deque(maxlen=10)
        self.last: UpdateMetrics | None = None
        self.rows = Rows(spec.cost_names)

    def run(
        self,
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
            MetricsWriter(points.run, self.spec.cost_names, self.steps, self.learner.updates) as writer,
            Evaluator(self.config, writer, reporter) as evaluator,
        ):
            clock, waited = Clock(self.steps), self._waited(evaluator)
            progress = self._progress(clock, Waits(0.0, 0.0, 0.0))
            if self.steps:
                evaluator.make_up(points.run, progress)
            saved, due = self.steps, _next_multiple(self.steps, schedule.checkpoint_every)
            while self.steps < total and not stop():
                action = self._choose(observation)
                with self._dated():
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
                for sentence in self.watch.newly_unmet(self.steps) + self.proof.news:
                    reporter.say(sentence)
                if device:
                    reporter.say(device)
                    device = ""
                progress = self._progress(clock, self._waited(evaluator).since(waited))
                reporter.progress(progress)
                if self.steps % ROW_EVERY < self.env.num_envs:  # it has come to a multiple, or beyond
                    writer.row(self.rows.take(progress, self.learner))
                if self.steps >= due and self.learner.updates:
                    saved = self._save(points, writer)
                    due = _next_multiple(saved, schedule.checkpoint_every)
                    evaluator.start(progress, self._model())
            if saved != self.steps:
                saved = self._save(points, writer)
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
        with self._dated():
            return learner.act(self.learner, observation, self._acting_as_served())

    @contextmanager
    def _dated(self) -> Iterator[None]:
        """Say of a network that diverged, or a simulator that died or hangs, when it did."""
        try:
            yield
        except (NonFiniteError, WorkerError) as error:
            raise type(error)(f"At step {self.steps:,}, update {self.learner.updates:,}: {error}") from error

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
        with self._dated(), room("an update", UPDATE_SIZES):
            batch = self.replay.sample(self.generator, self.config.replay.batch_size, self.recent_size)
            measured, held = self.watch.measured(), self.proof.held
            metrics = learner.update(self.learner, batch, measured, self.steps, self.config, held=held)
        writer.residual(
            self.learner.updates,
            metrics.feasible,
            metrics.temperature,
            metrics.kl_residual,
            list(zip(metrics.cost_multiplier.tolist(), metrics.cost_residual.tolist(), strict=True)),
        )
        self.watch.see(metrics)
        self.rows.updates.append(metrics)
        self.last = metrics

    def _take_in(self, observation: NDArray[np.float32], action: Array) -> NDArray[np.float32]:
        """Receive the step under way, store it, and return what to act on next."""
        with self._dated():
            step = self.env.step_wait()
        self.collector.add(observation, action.astype(np.float32), step)
        normalizer, observed = self.learner.model.normalizer, self.learner.tensor(step.observation)
        if self.proof.held or learner.pace_at(self.config, self.steps) < 1:
            normalizer.widen(observed)  # such a policy is not to be moved by another scale of what it sees
        else:
            normalizer.update(observed)
        acted = self._acting_as_served() or self.env.num_envs
        self.level.take_in(self.learner, observation, action.astype(np.float32), step, acted)
        self.running_return += step.reward
        for i in np.flatnonzero(step.terminated | step.truncated):
            self.returns.append(float(self.running_return[i]))
            self.running_return[i] = 0.0
        self.steps += self.env.num_envs
        self.watch.take_in(self.learner, step.cost[self.measured], self.steps, held=self.proof.held)
        learned = self.steps - self.config.schedule.warmup_steps  # what random actions cost tells nothing of a policy
        costs_count = learned >= len(self.watch.meter.window) * self.env.num_envs
        self.proof.take_in(step.cost, self.watch.measured() if costs_count else None, self.steps)
        if self.proof.begun:
            self.level.begin_anew()
        return step.observation

    def _acting_as_served(self) -> int:
        """Environments, the first ones, that take the deterministic action: all of them while the policy is held."""
        return self.env.num_envs if self.proof.held and self.deterministic else self.deterministic

    def _waited(self, evaluator: Evaluator) -> Waits:
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
            train_cost=self.watch.measured(),
            cost_limit=limit_at(self.config, self.steps),
            unmet_steps=self.watch.unmet_steps,
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

    def _save(self, points: ResumePoints, writer: MetricsWriter) -> int:
        began, scale = time.monotonic(), self.learner.reward_scale
        with self._dated():
            learner.require_finite_parameters(self.learner)  # no checkpoint of a broken policy beside the good ones
        writer.flush()
        policy = TrainedPolicy(self._model(), self.spec, self.config, self.constraints, scale, self.steps)
        written = save_policy(points.run, policy) + points.save(self.steps, self.state(), self.env.state())
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
            **self.watch.state(),
            **self.level.state(),
            **self.proof.state(),
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
        self.watch.restore(state)
        self.level.restore(state)
        self.proof.restore(state)
        self.running_return = state["running_return"].numpy()
        self.returns.extend(state["returns"])
        self.rows.restore(state["rows"])

    def begin_anew(self, restarted: NDArray[np.bool_]) -> None:
        """Forget the episodes under way of environments that were not restored: no return crosses into the new ones."""
        for i in np.flatnonzero(restarted):
            self.collector.pending[i].clear()
            self.running_return[i] = 0.0
            self.level.forget(int(i))


def _learning(config: TrainConfig) -> dict[str, Any]:
    """What decides how a run learns; the rest may change when it goes on."""
    return config.model_dump(
        exclude={"environment": {"workers", "step_timeout_seconds"}, "schedule": {"steps", "evaluation_workers"}}
    )


def _with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    document = config.model_dump()
    document["schedule"]["steps"] = steps
    return parse_config(document)


def _next_multiple(steps: int, every: int) -> int:
    """The first multiple beyond: a resumed run keeps the dates of the one that it goes on with."""
    return (steps // every + 1) * every
