"""Bundles with a policy small enough to compute by hand: three observations, two actions, two constraints.

The policy: u = clip(observation @ WEIGHTS + 0.5 · noise, -1, 1), action = u · HIGH, reward value u_0 + u_1. An action
costs |u_c| a step of constraint c, so cost_value = 10 |u|, cost_to_go = steps_left |u|, cost_upper = 2 cost_to_go + 1,
violation_probability = cost_to_go / (cost_to_go + cost_allowed + 1e-6), shift_score = max(0, max |observation| - 3). An
observation whose square overflows makes the reward value NaN.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.numpy_helper
import onnx.parser
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from cvpo.bundle import (
    CRITIC_GRAPH,
    POLICY_GRAPH,
    CalibratedMode,
    Calibration,
    CalibrationResult,
    Constraint,
    CurvePoint,
    EpisodeExample,
    Evaluation,
    Golden,
    Interval,
    Manifest,
    ObservationStatistics,
    Provenance,
    Space,
    write_bundle,
)
from cvpo.exporting.record import record

WEIGHTS = np.array([[0.5, 0.0], [0.0, -0.25], [0.25, 0.5]], np.float32)
HIGH = np.array([1.0, 2.0], np.float32)
COST_LIMIT = (20.0, 8.0)
HORIZON, WINDOW = 100, 10
ALARM = (0.6, 0.6)
OBSERVATIONS = np.random.default_rng(0).normal(0, 1, (64, 3)).astype(np.float32)

_JUDGE = """
  minus_u = Sub(float_zero, u)
  magnitude = Max(u, minus_u)
  total = ReduceSum <keepdims = 0> (u, last)
  first = Gather <axis = 1> (observation, zero)
  square = Mul(first, first)
  poison = Mul(square, float_zero)
  ten = Constant <value = float {10.0}> ()
  two = Constant <value = float {2.0}> ()
  one = Constant <value = float {1.0}> ()
  tiny = Constant <value = float {1e-6}> ()
  steps_float = Cast <to = 1> (steps_left)
  minus_observation = Sub(float_zero, observation)
  far = Max(observation, minus_observation)
  farthest = ReduceMax <keepdims = 0> (far, middle)
  three = Constant <value = float {3.0}> ()
  beyond = Sub(farthest, three)
  shift_score = Relu(beyond)
"""

_CONSTANTS = """
  last = Constant <value = int64[1] {-1}> ()
  zero = Constant <value = int64 {0}> ()
  float_zero = Constant <value = float {0.0}> ()
  middle = Constant <value = int64[1] {1}> ()
"""

# The same values for candidates [N, K, A] and for one action [N, A]; C == A.
_CANDIDATES = f"""
<ir_version: 9, opset_import: ["" : 18]>
policy (float[N,3] observation, float[N,K,2] noise, int64[N] steps_left, float[N,2] cost_allowed, float[2] alarm_level)
  => (float[N,2] action, int64[N] chosen, bool[N] feasible, float[N] reward_value, float[N,2] cost_value,
      float[N,2] cost_to_go, float[N,2] cost_upper, float[N,2] violation_probability, bool[N,2] violation,
      float[N] shift_score)
{{
  {_CONSTANTS}
  weights = Constant <value = float[3,2] {{0.5, 0.0, 0.0, -0.25, 0.25, 0.5}}> ()
  high = Constant <value = float[2] {{@HIGH@}}> ()
  mean = MatMul(observation, weights)
  mean_k = Unsqueeze(mean, middle)
  half = Constant <value = float {{0.5}}> ()
  spread = Mul(noise, half)
  unclipped = Add(mean_k, spread)
  below = Constant <value = float {{-1.0}}> ()
  above = Constant <value = float {{1.0}}> ()
  u = Clip(unclipped, below, above)
  {_JUDGE}
  poison_k = Unsqueeze(poison, middle)
  reward_k = Add(total, poison_k)
  steps_1 = Unsqueeze(steps_float, middle)
  steps_11 = Unsqueeze(steps_1, middle)
  to_go_k = Mul(magnitude, steps_11)
  allowed_k = Unsqueeze(cost_allowed, middle)
  denominator_k = Add(to_go_k, allowed_k)
  denominator = Add(denominator_k, tiny)
  probability_k = Div(to_go_k, denominator)
  raised_k = Greater(probability_k, alarm_level)
  raised_float = Cast <to = 1> (raised_k)
  flags = ReduceSum <keepdims = 0> (raised_float, last)
  minus_flags = Sub(float_zero, flags)
  fewest = ReduceMax <keepdims = 0> (minus_flags, middle)
  minus_one = Sub(float_zero, one)
  feasible = Greater(fewest, minus_one)
  of_first = Gather <axis = 1> (raised_float, zero)
  of_first_k = Unsqueeze(of_first, middle)
  counted = Mul(magnitude, of_first_k)
  worst = ReduceMax <keepdims = 0> (counted, last)
  fewest_k = Unsqueeze(fewest, middle)
  more = Greater(fewest_k, minus_flags)
  infinite = Div(one, float_zero)
  eligible = Where(more, infinite, worst)
  chosen = ArgMin <axis = 1, keepdims = 0> (eligible)
  index = Unsqueeze(chosen, middle)
  reward_value = GatherND <batch_dims = 1> (reward_k, index)
  action_k = Mul(u, high)
  action = GatherND <batch_dims = 1> (action_k, index)
  magnitude_c = GatherND <batch_dims = 1> (magnitude, index)
  cost_value = Mul(magnitude_c, ten)
  cost_to_go = GatherND <batch_dims = 1> (to_go_k, index)
  doubled = Mul(cost_to_go, two)
  cost_upper = Add(doubled, one)
  violation_probability = GatherND <batch_dims = 1> (probability_k, index)
  violation = Greater(violation_probability, alarm_level)
}}
"""

_JUDGED = f"""
<ir_version: 9, opset_import: ["" : 18]>
critic (float[N,3] observation, float[N,2] action, int64[N] steps_left, float[N,2] cost_allowed, float[2] alarm_level)
  => (float[N] reward_value, float[N,2] cost_value, float[N,2] cost_to_go, float[N,2] cost_upper,
      float[N,2] violation_probability, bool[N,2] violation, float[N] shift_score)
{{
  {_CONSTANTS}
  high = Constant <value = float[2] {{@HIGH@}}> ()
  u = Div(action, high)
  {_JUDGE}
  reward_value = Add(total, poison)
  cost_value = Mul(magnitude, ten)
  steps_1 = Unsqueeze(steps_float, middle)
  cost_to_go = Mul(magnitude, steps_1)
  doubled = Mul(cost_to_go, two)
  cost_upper = Add(doubled, one)
  sum_1 = Add(cost_to_go, cost_allowed)
  denominator = Add(sum_1, tiny)
  violation_probability = Div(cost_to_go, denominator)
  violation = Greater(violation_probability, alarm_level)
}}
"""


def policy_graph(text: Callable[[str], str] = lambda text: text) -> bytes:
    """Return policy.onnx; `text` may spoil its source first."""
    return _compile(text(_CANDIDATES.replace("@HIGH@", "1.0, 2.0")))


def critic_graph(text: Callable[[str], str] = lambda text: text) -> bytes:
    """Return critic.onnx; `text` may spoil its source first."""
    return _compile(text(_JUDGED.replace("@HIGH@", "1.0, 2.0")))


def _compile(text: str) -> bytes:
    """As our exporter would write it: constants among the graph's own, not as operators."""
    model = onnx.parser.parse_model(text)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "Constant":
            constant = onnx.numpy_helper.to_array(node.attribute[0].t)
            model.graph.initializer.append(onnx.numpy_helper.from_array(constant, node.output[0]))
        else:
            node.ClearField("domain")
            model.graph.node.append(node)
    return model.SerializeToString()


def calibration() -> Calibration:
    return Calibration(
        method="by hand",
        modes=(CalibratedMode(mode="deterministic"), CalibratedMode(mode="shielded", candidates=8)),
        confidence=0.9,
        miss_rate=0.1,
        alarm_levels=ALARM,
        episodes={"fit": 50, "alarm": 30, "test": 20},
        results=tuple(
            CalibrationResult(
                constraint=name,
                test_episodes=20,
                coverage=0.92,
                missed_share=0.05,
                flagged_share=0.1,
                cost_to_go_mean=10.0,
                episode_cost_mean=11.0,
            )
            for name in ("heat", "wear")
        ),
    )


def manifest(
    name: str = "goal",
    version: int = 1,
    *,
    calibration: Calibration | None = calibration(),  # noqa: B008  # frozen
    cost_limit: tuple[float | None, float | None] = COST_LIMIT,
    constraint_names: tuple[str, str] = ("heat", "wear"),
    control_period_ms: float | None = 20.0,
    horizon_steps: int = HORIZON,
) -> Manifest:
    interval = Interval(mean=5.0, low=4.0, high=6.0)
    return Manifest(
        name=name,
        version=version,
        observation=Space(names=("x", "y", "z"), low=(None, -5.0, None), high=(None, 5.0, None)),
        action=Space(names=("left", "right"), low=(-1.0, -2.0), high=(1.0, 2.0)),
        control_period_ms=control_period_ms,
        safe_action=(0.0, 0.0),
        constraints=tuple(
            Constraint(
                name=name, unit="J", cost_limit=limit, discount=0.9, horizon_steps=horizon_steps, window_steps=WINDOW
            )
            for name, limit in zip(constraint_names, cost_limit, strict=True)
        ),
        calibration=calibration,
        observation_statistics=ObservationStatistics(
            mean=(0.1, 0.2, 0.3),
            standard_deviation=(1.0, 1.0, 1.0),
            low=(-3.0, -3.0, -3.0),
            high=(3.0, 3.0, 3.0),
            shift_threshold=1.0,
        ),
        evaluations=(
            Evaluation(
                mode="deterministic",
                episodes=20,
                episode_return=interval,
                episode_cost=(interval, interval),
                cost_cvar90=(9.0, 9.0),
                over_limit_share=(0.1, 0.0),
            ),
        ),
        provenance=Provenance(
            environment="ByHand-v0",
            seed=0,
            steps=1000,
            selection="last",
            created="2026-11-24T00:00:00Z",
            packages={"numpy": np.__version__},
            config={"seed": 0, "limits": [20.0, None]},
        ),
    )


def drawn(document: Manifest) -> Manifest:
    """The manifest with all that may be drawn: three evaluations, four episodes, and flags along one of ten steps."""
    curve = [
        CurvePoint(
            steps=steps,
            episode_return=Interval(mean=gain, low=gain - 1, high=gain + 1),
            episode_cost=(Interval(mean=cost, low=cost - 1, high=cost + 1), Interval(mean=1.0, low=0.5, high=1.5)),
        )
        for steps, gain, cost in ((250, 1.0, 40.0), (500, 3.0, 15.0), (1000, 5.0, 19.0))
    ]
    example = EpisodeExample(
        budget=20.0,
        crossing=7,
        steps=tuple(range(10)),
        spent=(0.0, 0.0, 5.0, 5.0, 9.0, 12.0, 15.0, 18.0, 21.0, 21.0),
        violation_probability=(0.1, 0.1, 0.7, 0.3, 0.6, 0.8, 0.9, 0.9, 1.0, 1.0),
    )
    (evaluation,) = document.evaluations
    changes: dict[str, object] = {
        "provenance": document.provenance.model_copy(update={"learning_curve": tuple(curve)}),
        "evaluations": (evaluation.model_copy(update={"costs": ((4.0, 0.0), (21.0, 8.0), (20.0, 1.0), (4.0, 9.0))}),),
    }
    if document.calibration is not None:
        heat, wear = document.calibration.results
        results = (heat.model_copy(update={"example": example}), wear)
        changes["calibration"] = document.calibration.model_copy(update={"results": results})
    return document.model_copy(update=changes)


def golden(policy: bytes | None = None, critic: bytes | None = None, document: Manifest | None = None) -> Golden:
    """The golden request of these graphs, or of the ones by hand."""
    graphs = {POLICY_GRAPH: policy or policy_graph(), CRITIC_GRAPH: critic or critic_graph()}
    return record(graphs, OBSERVATIONS, document or manifest())


def write(
    path: Path,
    document: Manifest | None = None,
    *,
    policy: bytes | None = None,
    critic: bytes | None = None,
    key: Ed25519PrivateKey | None = None,
    request: Golden | None = None,
) -> Path:
    """Write a bundle, the policy by hand where nothing else is given.

    Args:
        path: must not exist.
        document: the manifest.
        policy: policy.onnx.
        critic: critic.onnx.
        key: to sign with.
        request: the golden request; where it is not given, that of these graphs.
    """
    return write_bundle(
        path,
        document or manifest(),
        policy_graph=policy or policy_graph(),
        critic_graph=critic or critic_graph(),
        model_card="# By hand\n",
        golden=request or golden(policy, critic, document),
        key=key,
    )


def expected_u(observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """The deterministic action in [-1, 1], [N, A]."""
    return np.clip(observation @ WEIGHTS, -1, 1)
