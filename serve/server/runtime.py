"""One loaded bundle: its graphs, checked against the manifest and warm; acts and judges."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import gt, le
from typing import Any, NamedTuple

import numpy as np

from cvpo.bundle import CRITIC_GRAPH, POLICY_GRAPH, Bundle, Manifest, Space
from cvpo.errors import BundleError
from serve.errors import InternalError, RefusedBundleError
from serve.server.graph import SHARED_ROWS, Graph, Inputs, Outputs
from serve.values import (
    ActLists,
    CalibrationStatus,
    Deterministic,
    EvaluateActionLists,
    Floats,
    Frame,
    Mode,
    PredictionLists,
    Rows,
    Sampled,
    ServedPolicy,
    Shielded,
    Situations,
)

# Bounds are float64 in the manifest and float32 in the graph: this share of the range is rounding, more is an error.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class PolicyRuntime:
    """A policy ready to answer. Safe to use from several threads."""

    manifest: Manifest
    served: ServedPolicy
    frame: Frame
    _policy: Graph
    _critic: Graph
    _calibrated: frozenset[tuple[str, int]]  # mode and number of candidates
    _constraints: tuple[str, ...]
    _alarm_level: tuple[float, ...]  # [C]
    _shift_threshold: float
    _frozen_after_steps: tuple[float, ...]  # [O]; infinity: never
    shares: bool = False  # whether `act_each` gives here, to the bit, what `act` does

    def act(self, situations: Situations, mode: Mode) -> ActLists:
        """Choose one action per situation and predict its costs.

        Raises:
            InternalError: the graph gave a value that must not be sent: not finite, or an action outside its bounds.
        """
        started = time.perf_counter()
        noise = draw_noise(mode, len(situations.observation), len(self.frame.action_low))
        out = self._policy.run(self._inputs(situations, noise=noise))
        return self._chosen(out, situations, mode, started)

    def act_each(self, asked: Sequence[tuple[Situations, Mode]]) -> list[ActLists]:
        """Act for each of several robots in one run, which passes over the network's weights once.

        Args:
            asked: one situation with one candidate each, SHARED_ROWS of them at most.

        Raises:
            InternalError: as `act` does, of any of them.
        """
        started = time.perf_counter()
        together = Situations(
            [row for situations, _ in asked for row in situations.observation],
            [steps for situations, _ in asked for steps in situations.steps_left],
            [costs for situations, _ in asked for costs in situations.cost_allowed],
        )
        noise = [row for _, mode in asked for row in draw_noise(mode, 1, len(self.frame.action_low))]
        out = self._policy.run(self._inputs(together, noise=noise))
        return [
            self._chosen({port: values[i : i + 1] for port, values in out.items()}, situations, mode, started)
            for i, (situations, mode) in enumerate(asked)
        ]

    def _chosen(self, out: Outputs, situations: Situations, mode: Mode, started: float) -> ActLists:
        """What is answered where the policy's graph gave this."""
        name, candidates = _name_mode(mode)
        status = CalibrationStatus.CALIBRATED if (name, candidates) in self._calibrated else CalibrationStatus.MODE
        prediction = self._predict(out, situations, status)
        feasible = zip(out["feasible"], prediction.violation, strict=True)
        return ActLists(
            self.served,
            self._bounded(out["action"]),
            [found and True not in flags for found, flags in feasible],
            out["chosen"],
            prediction,
            time.perf_counter() - started,
        )

    def evaluate_action(self, situations: Situations, action: Rows) -> EvaluateActionLists:
        """Predict the costs of actions [N, A] that come from elsewhere.

        Raises:
            InternalError: the graph gave a value that is not finite.
        """
        started = time.perf_counter()
        out = self._critic.run(self._inputs(situations, action=action))
        prediction = self._predict(out, situations, CalibrationStatus.EXTERNAL_ACTION)
        return EvaluateActionLists(self.served, prediction, time.perf_counter() - started)

    def keep_warm(self, since: float) -> float:
        """Run the network that acts for nobody, unless others have after `since`; return the seconds it took."""
        return self._policy.keep_warm(since)

    def speaks_of(self, steps: int, control_period_ms: float | None) -> bool:
        """Whether its predictions may be of so many steps of this length."""
        return steps <= self.frame.horizon_steps and control_period_ms == self.manifest.control_period_ms

    def shifted(self, situations: Situations, shift_score: list[float]) -> list[bool]:
        """Return which observations are outside of what was seen in training or of the observation space, or frozen."""
        far = [score > self._shift_threshold for score in shift_score]
        if self.frame.observation_bounds is not None:
            outside: list[list[bool]] = self.frame.outside(situations.observation).tolist()
            far = [found or True in values for found, values in zip(far, outside, strict=True)]
        if situations.repeats is not None:
            limits = self._frozen_after_steps
            frozen = [any(steps) and any(map(gt, steps, limits)) for steps in situations.repeats]
            far = [found or stuck for found, stuck in zip(far, frozen, strict=True)]
        return far

    def _inputs(self, situations: Situations, **free: list[Any]) -> Inputs:
        """What a graph is given, with the noise or the action."""
        return {
            "observation": situations.observation,
            "steps_left": situations.steps_left,
            "cost_allowed": situations.cost_allowed,
            "alarm_level": self._alarm_level,
            **free,
        }

    def _predict(self, out: Outputs, situations: Situations, status: CalibrationStatus) -> PredictionLists:
        """Say how far a graph's predictions can be trusted: NONE before SHIFTED before `status`."""
        violation = out["violation"]
        statuses = [status] * len(violation)
        all_flags = [True] * len(self._constraints)
        if self.manifest.calibration is None:
            statuses = [CalibrationStatus.NONE] * len(violation)
            violation = [all_flags] * len(violation)
        else:
            shifted = self.shifted(situations, out["shift_score"])
            if True in shifted:
                statuses = [CalibrationStatus.SHIFTED if far else status for far in shifted]
                violation = [all_flags if far else flags for far, flags in zip(shifted, violation, strict=True)]
        return PredictionLists(
            self._constraints,
            out["cost_value"],
            out["cost_to_go"],
            out["cost_upper"],
            out["violation_probability"],
            violation,
            situations.cost_allowed,
            self._alarm_level,
            situations.steps_left,
            out["reward_value"],
            out["shift_score"],
            statuses,
        )

    def _bounded(self, action: Rows) -> Rows:
        low, high = self.frame.action_low, self.frame.action_high
        least, most = low.tolist(), high.tolist()
        if all(all(map(le, least, row)) and all(map(le, row, most)) for row in action):
            return action
        chosen = np.array(action, np.float32)
        bounded = np.minimum(np.maximum(chosen, low), high)
        if not (abs(chosen - bounded) <= _ROUNDING * (high - low)).all():
            raise InternalError("The policy chose an action outside its bounds.")
        rows: Rows = bounded.tolist()
        return rows


class Asked(NamedTuple):
    """Who is asked for actions in which situations, and how they are to be chosen."""

    policy: PolicyRuntime
    situations: Situations
    mode: Mode

    def answer(self) -> ActLists:
        """Raises InternalError, as `PolicyRuntime.act` does."""
        return self.policy.act(self.situations, self.mode)


def draw_noise(mode: Mode, count: int, action_size: int) -> list[Rows]:
    """Return standard normal noise [N, K, A]: zero where the action is deterministic, the first shielded one included.

    The same mode, seed and sizes give the same noise.
    """
    match mode:
        case Deterministic():
            return [[[0.0] * action_size]] * count
        case Sampled(seed):
            noise = np.random.default_rng(seed).standard_normal((count, 1, action_size), np.float32)
        case Shielded(candidates, seed):
            noise = np.random.default_rng(seed).standard_normal((count, candidates, action_size), np.float32)
            noise[:, 0] = 0
    rows: list[Rows] = noise.tolist()
    return rows


def _name_mode(mode: Mode) -> tuple[str, int]:
    """Return the name and the number of candidates by which calibration knows a mode."""
    match mode:
        case Deterministic():
            return "deterministic", 1
        case Sampled():
            return "sampled", 1
        case Shielded(candidates):
            return "shielded", candidates


def load(bundle: Bundle) -> PolicyRuntime:
    """Make a verified bundle ready to answer: load its graphs, ask the golden request, and run every mode once.

    Raises:
        RefusedBundleError: a graph does not load, does not answer here what it did at export, or gives values that
            must not be sent.
    """
    manifest = bundle.manifest
    calibration = manifest.calibration
    runtime = PolicyRuntime(
        manifest=manifest,
        served=ServedPolicy(manifest.name, manifest.version, manifest.fingerprint),
        frame=Frame(
            observation_size=manifest.observation.size,
            observation_bounds=_bounds(manifest.observation),
            action_low=np.array(manifest.action.low, np.float32),
            action_high=np.array(manifest.action.high, np.float32),
            cost_limit=tuple(c.limit_or_inf for c in manifest.constraints),
            horizon_steps=manifest.horizon_steps,
            window_steps=manifest.window_steps,
        ),
        _policy=_load_graph(bundle, POLICY_GRAPH),
        _critic=_load_graph(bundle, CRITIC_GRAPH),
        _calibrated=frozenset((m.mode, m.candidates) for m in calibration.modes) if calibration else frozenset(),
        _constraints=tuple(constraint.name for constraint in manifest.constraints),
        _alarm_level=manifest.alarm_levels,
        _shift_threshold=manifest.observation_statistics.shift_threshold,
        _frozen_after_steps=_frozen_after_steps(manifest),
    )
    _warm_up(runtime)
    return replace(runtime, shares=_answers_alike(runtime))


def _bounds(space: Space) -> tuple[Floats, Floats] | None:
    if all(bound is None for bound in (*space.low, *space.high)):
        return None
    low = np.array([-np.inf if bound is None else bound for bound in space.low], np.float32)
    return low, np.array([np.inf if bound is None else bound for bound in space.high], np.float32)


def _frozen_after_steps(manifest: Manifest) -> tuple[float, ...]:
    found = manifest.observation_statistics.frozen_after_steps or (None,) * manifest.observation.size
    return tuple(math.inf if steps is None else steps for steps in found)


def _load_graph(bundle: Bundle, name: str) -> Graph:
    graph = Graph(name, bundle.graph(name), bundle.manifest.sizes)
    try:
        expected = bundle.golden.outputs[name]
        found = {
            port: np.array(values, expected[port].dtype)
            for port, values in graph.run(bundle.golden.inputs[name]).items()
        }
        bundle.golden.check(name, found, bundle.manifest.golden_tolerance)
    except BundleError as error:
        raise RefusedBundleError(str(error)) from error
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise RefusedBundleError(f"{name} fails when run: {reason} Export it again.") from error
    return graph


def _warm_up(runtime: PolicyRuntime) -> None:
    """Run every mode on what the policy saw in training, one situation and several, with and without a limit."""
    frame = runtime.frame
    mean = list(runtime.manifest.observation_statistics.mean)
    for count, allowed in itertools.product((1, 3), (0.0, np.inf)):
        situations = Situations(
            observation=[mean] * count,
            steps_left=[frame.window_steps] * count,
            cost_allowed=[[allowed] * len(frame.cost_limit)] * count,
        )
        try:
            for mode in (Deterministic(), Sampled(seed=0), Shielded(candidates=4, seed=0)):
                runtime.evaluate_action(situations, runtime.act(situations, mode).action)
        except Exception as error:  # ONNX Runtime's own errors have no common parent
            reason = str(error).splitlines()[0]
            raise RefusedBundleError(f"The graphs fail when run: {reason} Export it again.") from error


def _answers_alike(runtime: PolicyRuntime) -> bool:
    """Whether robots that share a run are answered here, to the bit, as each alone is.

    That depends on graph and processor (see `cvpo.exporting.graphs`), so it is tried.
    """
    frame, seen = runtime.frame, runtime.manifest.observation_statistics
    generator = np.random.default_rng(0)
    rows = 4 * SHARED_ROWS
    observation = generator.normal(seen.mean, seen.standard_deviation, (rows, frame.observation_size))
    steps_left = generator.integers(1, frame.horizon_steps + 1, rows).tolist()
    asked: list[tuple[Situations, Mode]] = [
        (Situations([values], [steps], [frame.share(steps)]), Sampled(seed))
        for seed, (values, steps) in enumerate(zip(observation.astype(np.float32).tolist(), steps_left, strict=True))
    ]
    try:
        alone = [_timeless(runtime.act(*each)) for each in asked]
        for count in range(2, SHARED_ROWS + 1):
            place = slice(3 * count, 4 * count)
            if [_timeless(each) for each in runtime.act_each(asked[place])] != alone[place]:
                return False
    except InternalError:  # it gives nothing for what it may well have seen: nobody else's answer is to depend on that
        return False
    return True


def _timeless(answer: ActLists) -> ActLists:
    return answer._replace(compute_seconds=0.0)
