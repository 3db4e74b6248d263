"""A loaded bundle: values worked out by hand, how far they may be trusted, and graphs that are refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvpo.bundle import Manifest, Space, read_bundle
from serve.errors import InternalError, RefusedBundleError
from serve.server.runtime import PolicyRuntime, draw_noise, load
from serve.values import CalibrationStatus, Deterministic, Mode, Sampled, Shielded, Situations
from tests.serve import bundles

CALIBRATED, NONE, MODE, EXTERNAL, SHIFTED = (
    CalibrationStatus.CALIBRATED,
    CalibrationStatus.NONE,
    CalibrationStatus.MODE,
    CalibrationStatus.EXTERNAL_ACTION,
    CalibrationStatus.SHIFTED,
)


def situations(*observations: list[float], steps: int = 10, allowed: tuple[float, float] = (2.0, 4.0)) -> Situations:
    count = len(observations)
    return Situations(list(observations), [steps] * count, [list(allowed)] * count)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> PolicyRuntime:
    return load(read_bundle(bundles.write(tmp_path_factory.mktemp("bundles") / "bundle")))


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> PolicyRuntime:
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    return load(read_bundle(bundles.write(path, bundles.manifest(calibration=None))))


def test_an_answer_worked_out_by_hand(runtime: PolicyRuntime) -> None:
    # u = (1·0.5 - 1·0.25, -2·0.25 - 1·0.5) = (0.25, -1), action = (0.25, -2), 10 steps.
    result = runtime.act(situations([1, 2, -1]), Deterministic())
    prediction = result.prediction
    assert result.action == [[0.25, -2.0]]
    assert prediction.reward_value == [-0.75]
    assert prediction.cost_value == [[2.5, 10.0]]
    assert prediction.cost_to_go == [[2.5, 10.0]]
    assert prediction.cost_upper == [[6.0, 21.0]]
    np.testing.assert_allclose(prediction.violation_probability, [[2.5 / 4.5, 10 / 14]], rtol=1e-5)
    assert prediction.violation == [[False, True]]  # over 0.6
    assert prediction.cost_allowed == [[2.0, 4.0]]
    assert prediction.steps_left == [10]
    assert prediction.calibration_status == [CALIBRATED]
    assert result.feasible == [False]
    assert result.chosen == [0]


def test_an_action_from_elsewhere_judged_by_hand(runtime: PolicyRuntime) -> None:
    # u = (0.5, -0.25), 4 steps: cost to go (2, 1), allowed (2, 4), so probabilities 1/2 and 1/5.
    prediction = runtime.evaluate_action(situations([1, 2, -1], steps=4), [[0.5, -0.5]]).prediction
    assert prediction.cost_to_go == [[2.0, 1.0]]
    np.testing.assert_allclose(prediction.violation_probability, [[0.5, 0.2]], rtol=1e-5)
    assert prediction.violation == [[False, False]]
    assert prediction.calibration_status == [EXTERNAL]


def test_the_policys_own_action_is_judged_as_when_it_was_chosen(runtime: PolicyRuntime) -> None:
    case = situations([1, 2, -1], [0.5, 0, 1])
    acted = runtime.act(case, Deterministic())
    judged = runtime.evaluate_action(case, acted.action)
    for name in ("reward_value", "cost_value", "cost_to_go", "cost_upper", "violation_probability", "violation"):
        np.testing.assert_array_equal(getattr(acted.prediction, name), getattr(judged.prediction, name), err_msg=name)


def test_a_shield_prefers_a_candidate_that_raises_no_flag(runtime: PolicyRuntime) -> None:
    case = situations([1, 2, -1])
    assert runtime.act(case, Deterministic()).prediction.flagged == [True]
    shielded = runtime.act(case, Shielded(32, seed=1))
    assert shielded.feasible == [True]
    assert shielded.prediction.flagged == [False]
    assert shielded.chosen[0] > 0


def test_an_unconstrained_cost_is_never_a_violation(runtime: PolicyRuntime) -> None:
    result = runtime.act(situations([1, 2, -1], allowed=(np.inf, np.inf)), Deterministic())
    assert result.prediction.violation_probability == [[0.0, 0.0]]
    assert result.feasible == [True]


@pytest.mark.parametrize(
    ("mode", "status"),
    [
        (Deterministic(), CALIBRATED),
        (Shielded(8, seed=0), CALIBRATED),
        (Shielded(4, seed=0), MODE),
        (Sampled(seed=0), MODE),
    ],
)
def test_only_modes_whose_rollouts_were_seen_are_calibrated(
    runtime: PolicyRuntime, mode: Mode, status: CalibrationStatus
) -> None:
    result = runtime.act(situations([0.1, 0, 0], allowed=(1e6, 1e6)), mode)
    assert result.prediction.calibration_status == [status]
    assert result.prediction.flagged == [False]  # the flag stays as computed


def test_an_observation_outside_of_training_raises_every_flag_of_its_own_answer(runtime: PolicyRuntime) -> None:
    # Scores 0, 1 and 1.5; the threshold is 1 and must be passed.
    case = situations([0, 0, 0], [0, 4, 0], [0, 4.5, 0], allowed=(np.inf, np.inf))
    result = runtime.act(case, Sampled(seed=0))
    assert result.prediction.calibration_status == [MODE, MODE, SHIFTED]
    assert result.prediction.violation == [[False, False], [False, False], [True, True]]
    assert result.feasible == [True, True, False]
    judged = runtime.evaluate_action(case, result.action).prediction
    assert judged.calibration_status == [EXTERNAL, EXTERNAL, SHIFTED]


def test_without_calibration_every_answer_is_flagged(uncalibrated: PolicyRuntime) -> None:
    case = situations([0, 0, 0], [0, 4.5, 0], allowed=(np.inf, np.inf))
    result = uncalibrated.act(case, Deterministic())
    judged = uncalibrated.evaluate_action(case, result.action).prediction
    for prediction in (result.prediction, judged):
        assert prediction.calibration_status == [NONE, NONE]
        assert prediction.violation == [[True, True]] * 2
    assert result.feasible == [False, False]


def test_noise_is_drawn_from_the_seed_alone() -> None:
    assert not np.any(draw_noise(Deterministic(), 2, 3))
    for mode in (Sampled(seed=5), Shielded(4, seed=5)):
        assert draw_noise(mode, 2, 3) == draw_noise(mode, 2, 3)
    assert draw_noise(Sampled(seed=5), 2, 3) != draw_noise(Sampled(seed=6), 2, 3)
    assert draw_noise(Sampled(), 2, 3) != draw_noise(Sampled(), 2, 3)
    shielded = np.array(draw_noise(Shielded(4, seed=5), 2, 3))
    assert shielded.shape == (2, 4, 3)
    assert not shielded[:, 0].any()
    assert shielded[:, 1:].all()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", [Deterministic(), Shielded(4, seed=0)])
def test_a_value_that_is_not_finite_is_never_sent(runtime: PolicyRuntime, mode: Mode, count: int) -> None:
    case = situations(*[[0.0, 0.0, 0.0]] * (count - 1), [1e20, 0, 0])  # the last one's square overflows in the graph
    with pytest.raises(InternalError, match="not finite"):
        runtime.act(case, mode)
    with pytest.raises(InternalError, match="not finite"):
        runtime.evaluate_action(case, [[0.0, 0.0]] * count)


@pytest.mark.parametrize("count", [1, 2])
def test_a_graph_that_fails_is_an_error_that_a_fallback_can_answer(tmp_path: Path, count: int) -> None:
    """ONNX Runtime's own errors are others: here a row is looked up that is not there."""

    def look_up(text: str) -> str:
        looked_up = """whole = Cast <to = 7> (first)
          row = Gather <axis = 0> (weights, whole)
          row_sum = ReduceSum <keepdims = 0> (row, last)
          nothing = Mul(row_sum, float_zero)
          square_and_row = Add(square, nothing)
          poison = Mul(square_and_row, float_zero)"""
        return text.replace("poison = Mul(square, float_zero)", looked_up)

    runtime = load(read_bundle(bundles.write(tmp_path / "bundle", policy=bundles.policy_graph(look_up))))
    with pytest.raises(InternalError):
        runtime.act(situations(*[[3.0, 2.0, -1.0]] * count), Deterministic())


@pytest.mark.parametrize("high", [2.5, 2.001])  # where 2 is the bound: beyond it by 1/8 and by 1/4000 of the range
def test_an_action_outside_its_bounds_is_never_sent(tmp_path: Path, high: float) -> None:
    graph = bundles.policy_graph(lambda text: text.replace("float[2] {1.0, 2.0}", f"float[2] {{1.0, {high}}}"))
    loose = load(read_bundle(bundles.write(tmp_path / "bundle", policy=graph)))
    assert loose.act(situations([0, 1, 0]), Deterministic()).action == [[0.0, pytest.approx(-high / 4, rel=1e-6)]]
    with pytest.raises(InternalError, match="outside its bounds"):
        loose.act(situations([0, 10, 0]), Deterministic())


def test_rounding_at_the_bounds_is_taken_off(tmp_path: Path) -> None:
    graph = bundles.policy_graph(lambda text: text.replace("float[2] {1.0, 2.0}", "float[2] {1.0, 2.000001}"))
    rounded = load(read_bundle(bundles.write(tmp_path / "bundle", policy=graph)))
    assert rounded.act(situations([0, 10, 0]), Deterministic()).action == [[0.0, -2.0]]


Spoil = Callable[[str], str]


def replacing(old: str, new: str, count: int = -1) -> Spoil:
    def spoil(text: str) -> str:
        assert old in text
        return text.replace(old, new, count)

    return spoil


def test_a_graph_that_onnx_runtime_does_not_take_is_refused(tmp_path: Path) -> None:
    spoil = replacing("far = Max(observation, minus_observation)", "far = Where(observation, observation, observation)")
    graph = bundles.policy_graph(spoil)
    path = bundles.write(tmp_path / "bundle", policy=graph, request=bundles.golden())
    with pytest.raises(RefusedBundleError, match=r"policy\.onnx cannot be loaded: .*Type Error"):
        load(read_bundle(path))


def test_a_graph_that_answers_otherwise_than_at_export_is_refused(tmp_path: Path) -> None:
    graph = bundles.critic_graph(replacing("float {10.0}", "float {10.1}"))
    path = bundles.write(tmp_path / "bundle", critic=graph, request=bundles.golden())
    with pytest.raises(RefusedBundleError, match=r"critic\.onnx does not answer .* cost_value differs by 0\.0"):
        load(read_bundle(path))


def test_a_graph_that_fails_its_warm_up_is_refused(tmp_path: Path) -> None:
    # 1 where something is allowed, as in every golden request; 0 / 0 where nothing is.
    share = "least = Min(cost_allowed, one)  ratio = Div(least, least)  share = ReduceMean <keepdims = 0> (ratio, last)"
    spoil = replacing("reward_value = Add(total, poison)", f"{share}  reward_value = Mul(total, share)")
    graph = bundles.critic_graph(spoil)
    with pytest.raises(RefusedBundleError, match="fail when run"):
        load(read_bundle(bundles.write(tmp_path / "bundle", critic=graph)))


@pytest.mark.parametrize(
    "failing",
    [
        # 0 / 0 where there are three, and 1 otherwise.
        "rows = Constant <value = int64[1] {0}> ()  of_each = ReduceMin <keepdims = 1> (observation, last)"
        "  nothing = Mul(of_each, float_zero)  each_one = Add(nothing, one)"
        "  count = ReduceSum <keepdims = 0> (each_one, rows)  rest = Sub(count, three)  own = Div(rest, rest)",
        # Infinity times 0 where nothing is limited in any of them: in golden requests something always is.
        "rows = Constant <value = int64[1] {0}> ()  of_each = ReduceMin <keepdims = 1> (cost_allowed, last)"
        "  least = ReduceMin <keepdims = 0> (of_each, rows)  nothing = Mul(least, float_zero)  own = Add(nothing, one)",
    ],
    ids=["several situations", "no limit"],
)
def test_a_graph_that_fails_for_several_situations_or_without_a_limit_is_refused(tmp_path: Path, failing: str) -> None:
    graph = bundles.critic_graph(
        replacing("reward_value = Add(total, poison)", f"{failing}  reward_value = Mul(total, own)")
    )
    with pytest.raises(RefusedBundleError, match="fail when run: The policy predicted or chose a value"):
        load(read_bundle(bundles.write(tmp_path / "bundle", critic=graph)))


def test_onnx_runtime_sends_nothing_home_whatever_the_environment_says(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading\n"
        "import serve.server.runtime\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert list(tmp_path.iterdir()) == []  # no device id, no database
    quiet = int(run.stdout)
    loud = subprocess.run(
        [sys.executable, "-c", "import os, numpy, onnxruntime, grpc\nprint(len(os.listdir('/proc/self/task')))"],
        env={**environment, "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert quiet == int(loud.stdout)  # no upload thread


def test_an_observation_outside_its_space_is_answered_and_marked_as_shifted(tmp_path: Path) -> None:
    space = Space(names=("x", "y", "z"), low=(None, -1.0, None), high=(None, 2.0, None))
    manifest = Manifest(**bundles.manifest().model_dump() | {"observation": space, "fingerprint": ""})
    runtime = load(read_bundle(bundles.write(tmp_path / "bundle", manifest)))
    # All within what was seen in training, -3 to 3; the bounds themselves are inside.
    result = runtime.act(situations([1, 2, -1], [1, -1, -1], [1, 2.5, -1], [1, -1.5, -1]), Deterministic())
    assert result.prediction.calibration_status == [CALIBRATED, CALIBRATED, SHIFTED, SHIFTED]
    assert result.prediction.violation[2:] == [[True, True]] * 2
    assert result.feasible[2:] == [False, False]


def test_an_answer_stays_as_it_is_when_the_next_is_given(runtime: PolicyRuntime) -> None:
    result = runtime.act(situations([1, 2, -1]), Deterministic())
    runtime.act(situations([0, 0, 0], allowed=(np.inf, np.inf)), Deterministic())
    assert result.action == [[0.25, -2.0]]
    assert result.prediction.cost_upper == [[6.0, 21.0]]
    assert result.prediction.violation == [[False, True]]


def test_two_threads_at_once_get_what_one_gets(runtime: PolicyRuntime) -> None:
    case = situations([1, 2, -1])
    alone = runtime.act(case, Deterministic())
    with runtime._policy._rows[0]._lock:  # as if another thread were in the middle of its answer
        beside = runtime.act(case, Deterministic())
    assert beside.action == alone.action
    for name in ("reward_value", "cost_value", "cost_to_go", "cost_upper", "violation_probability", "violation"):
        np.testing.assert_array_equal(getattr(beside.prediction, name), getattr(alone.prediction, name), err_msg=name)
