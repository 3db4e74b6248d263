"""What is encoded is what is decoded, and what cannot be encoded is named."""

from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike

from serve.codec import (
    Limits,
    decode_act_response,
    decode_description,
    decode_evaluate_response,
    decode_mode,
    decode_situated_actions,
    decode_situations,
    encode_act_request,
    encode_act_response,
    encode_description,
    encode_evaluate_response,
    encode_situated_actions,
    encode_situations,
    fill_duration,
    float32_below,
    vector,
)
from serve.errors import InvalidRequestError
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.values import (
    ActLists,
    ActResult,
    CalibrationDescription,
    CalibrationStatus,
    ConstraintDescription,
    Deterministic,
    EvaluateActionLists,
    EvaluateActionResult,
    Frame,
    Mode,
    PolicyDescription,
    Prediction,
    PredictionLists,
    Sampled,
    ServedPolicy,
    Shielded,
    Space,
)

FRAME = Frame(
    observation_size=3,
    observation_bounds=(np.array([-np.inf, -5, -np.inf], np.float32), np.array([np.inf, 5, np.inf], np.float32)),
    action_low=np.array([-1, -2], np.float32),
    action_high=np.array([1, 2], np.float32),
    cost_limit=(20.0, np.inf),
    horizon_steps=100,
    window_steps=10,
)

any_float32 = st.floats(width=32, allow_nan=False)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
uint64 = st.integers(0, 2**64 - 1)
text = st.text(max_size=8)
served = st.builds(ServedPolicy, text, uint64, text)
nanoseconds = st.integers(0, 10**10)


def floats(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shape, elements=any_float32)


@st.composite
def predictions(draw: st.DrawFn, count: int) -> Prediction:
    constraints = draw(st.lists(text, min_size=1, max_size=3))
    size = len(constraints)
    return Prediction(
        constraints=tuple(constraints),
        cost_value=draw(floats(count, size)),
        cost_to_go=draw(floats(count, size)),
        cost_upper=draw(floats(count, size)),
        violation_probability=draw(floats(count, size)),
        violation=draw(hnp.arrays(np.bool_, (count, size))),
        cost_allowed=draw(floats(count, size)),
        alarm_level=draw(floats(size)),
        steps_left=draw(hnp.arrays(np.int64, count, elements=st.integers(0, 2**32 - 1))),
        reward_value=draw(floats(count)),
        shift_score=draw(floats(count)),
        calibration_status=draw(
            hnp.arrays(np.int64, count, elements=st.sampled_from([int(s) for s in CalibrationStatus]))
        ),
    )


@st.composite
def act_results(draw: st.DrawFn) -> ActResult:
    count = draw(st.integers(1, 4))
    return ActResult(
        policy=draw(served),
        action=draw(floats(count, draw(st.integers(1, 3)))),
        feasible=draw(hnp.arrays(np.bool_, count)),
        chosen=draw(hnp.arrays(np.int64, count, elements=st.integers(0, 2**32 - 1))),
        prediction=draw(predictions(count)),
        compute_seconds=draw(nanoseconds) * 1e-9,
    )


def assert_same(one: object, other: object) -> None:
    """Compare records field by field, arrays to the bit and with their type."""
    assert type(one) is type(other)
    for name in vars(one):
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right, err_msg=name, strict=True)
        elif isinstance(left, Prediction):
            assert_same(left, right)
        elif isinstance(left, float):
            assert left == pytest.approx(right), name
        else:
            assert left == right, name


def listed(result: ActResult) -> ActLists:
    """What the server has when this is what the client is to get."""
    prediction = result.prediction
    return ActLists(
        result.policy,
        result.action.tolist(),
        result.feasible.tolist(),
        result.chosen.tolist(),
        PredictionLists(
            **{name: getattr(value, "tolist", lambda value=value: value)() for name, value in vars(prediction).items()}
        ),
        result.compute_seconds,
    )


@given(act_results())
def test_an_answer_comes_back_as_it_was(result: ActResult) -> None:
    wire = encode_act_response(listed(result)).SerializeToString()
    assert_same(decode_act_response(pb.ActResponse.FromString(wire)), result)


@given(act_results())
def test_a_judgement_comes_back_as_it_was(result: ActResult) -> None:
    judged = EvaluateActionResult(result.policy, result.prediction, result.compute_seconds)
    lists = EvaluateActionLists(judged.policy, listed(result).prediction, judged.compute_seconds)
    wire = encode_evaluate_response(lists).SerializeToString()
    assert_same(decode_evaluate_response(pb.EvaluateActionResponse.FromString(wire)), judged)


@given(act_results())
def test_the_answers_violation_says_whether_any_constraint_is_flagged(result: ActResult) -> None:
    message = encode_act_response(listed(result))
    flags = [answer.prediction.violation for answer in message.results]
    assert flags == [any(c.violation for c in answer.prediction.constraints) for answer in message.results]


float_tuple = st.lists(any_float32, max_size=3).map(tuple)
double_tuple = st.lists(st.floats(allow_nan=False), max_size=3).map(tuple)
doubles = st.floats(allow_nan=False)
uint32 = st.integers(0, 2**32 - 1)
spaces = st.builds(Space, st.lists(text, max_size=3).map(tuple), float_tuple, float_tuple)
calibrations = st.builds(
    CalibrationDescription,
    text,
    st.lists(text, max_size=3).map(tuple),
    doubles,
    doubles,
    double_tuple,
    st.dictionaries(text, uint32, max_size=3),
)
descriptions = st.builds(
    PolicyDescription,
    policy=served,
    environment=text,
    observation=spaces,
    action=spaces,
    constraints=st.lists(st.builds(ConstraintDescription, text, text, doubles, doubles, doubles), max_size=3).map(
        tuple
    ),
    horizon_steps=uint32,
    window_steps=uint32,
    control_period_seconds=st.none() | nanoseconds.map(lambda value: value * 1e-9),
    safe_action=float_tuple,
    calibration=st.none() | calibrations,
    shift_threshold=any_float32,
    versions=st.lists(uint64, max_size=3).map(tuple),
)


@given(descriptions)
def test_a_description_comes_back_as_it_was(description: PolicyDescription) -> None:
    wire = encode_description(description).SerializeToString()
    assert_same(decode_description(pb.PolicyDescription.FromString(wire)), description)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=finite32), st.data())
def test_situations_come_back_as_they_were(observation: np.ndarray, data: st.DataObject) -> None:
    count = len(observation)
    steps_left = data.draw(hnp.arrays(np.int64, count, elements=st.integers(1, FRAME.horizon_steps)))
    allowed = st.floats(0, width=32) | st.just(np.inf)
    cost_allowed = data.draw(hnp.arrays(np.float32, (count, 2), elements=allowed))
    messages, single = encode_situations(observation, steps_left, cost_allowed)
    situations = decode_situations(messages, FRAME, Limits())
    assert not single
    assert situations.observation == observation.tolist()
    assert situations.steps_left == steps_left.tolist()
    assert situations.cost_allowed == cost_allowed.tolist()


@given(st.floats(0, 3e38))
def test_rounding_never_allows_more_than_was_said(allowed: float) -> None:
    (message,), _ = encode_situations([0, 0, 0], 20, [allowed, np.inf])
    finite, unconstrained = message.cost_allowed
    assert unconstrained == np.inf
    assert finite <= allowed
    assert float(np.nextafter(np.float32(finite), np.float32(np.inf))) > allowed  # and hardly less


def test_a_cost_beyond_all_float32_is_the_largest_of_them() -> None:
    assert float32_below(1e300) == np.finfo(np.float32).max
    assert float32_below(np.inf) == np.inf


def test_what_a_situation_leaves_out_is_the_window_and_the_limits_share_of_it() -> None:
    messages, single = encode_situations([1, 2, 3], None, None)
    situations = decode_situations(messages, FRAME, Limits())
    assert single
    assert situations.steps_left == [10]
    assert situations.cost_allowed == [[2.0, np.inf]]  # 20 · 10/100; unconstrained


def test_the_share_follows_the_steps_that_are_left() -> None:
    messages, _ = encode_situations([1, 2, 3], 25, None)
    assert decode_situations(messages, FRAME, Limits()).cost_allowed == [[5.0, np.inf]]  # 20 · 25/100


def test_each_situation_of_a_batch_has_its_own_defaults() -> None:
    messages = [
        pb.Situation(observation=[0, 0, 0], steps_left=50),
        pb.Situation(observation=[0, 0, 0], cost_allowed=[3, 0]),
    ]
    situations = decode_situations(messages, FRAME, Limits())
    assert situations.steps_left == [50, 10]
    assert situations.cost_allowed == [[10.0, np.inf], [3.0, 0.0]]


def test_one_number_of_steps_and_one_allowance_serve_a_whole_batch() -> None:
    messages, _ = encode_situations(np.zeros((3, 3)), 7, [1, 2])
    assert [m.steps_left for m in messages] == [7, 7, 7]
    assert [list(m.cost_allowed) for m in messages] == [[1, 2]] * 3


@given(
    st.builds(Deterministic)
    | st.builds(Sampled, st.none() | uint64)
    | st.builds(Shielded, st.integers(2, 8), st.none() | uint64)
)
def test_a_mode_comes_back_as_it_was(mode: Mode) -> None:
    assert decode_mode(encode_act_request(pb.PolicySelector(), [], mode), Limits(max_candidates=8)) == mode


@given(hnp.arrays(np.float32, (2, 2), elements=st.floats(-1, 1, width=32)))
def test_situated_actions_come_back_as_they_were(action: np.ndarray) -> None:
    messages, single = encode_situated_actions(np.zeros((2, 3)), action, None, None)
    _, decoded = decode_situated_actions(messages, FRAME, Limits())
    assert not single
    assert decoded == action.tolist()


@pytest.mark.parametrize(
    ("field", "observation", "steps_left", "cost_allowed"),
    [
        ("observation", "north", None, None),
        ("observation", None, None, None),
        ("observation", [[1, 2], [3]], None, None),
        ("observation", 3.0, None, None),
        ("observation", np.zeros((1, 1, 3)), None, None),
        ("steps_left", [1, 2, 3], 1.5, None),
        ("steps_left", [1, 2, 3], -1, None),
        ("steps_left", [1, 2, 3], 2**32, None),
        ("steps_left", np.zeros((2, 3)), [1, 2, 3], None),
        ("steps_left", np.zeros((2, 3)), [[1], [1, 2]], None),
        ("cost_allowed", [1, 2, 3], None, "much"),
        ("cost_allowed", [1, 2, 3], None, []),
        ("cost_allowed", [[1, 2, 3]], None, [[]]),
        ("cost_allowed", np.zeros((2, 3)), None, np.zeros((3, 2))),
    ],
)
def test_arguments_that_fit_into_no_message_are_named(
    field: str, observation: ArrayLike, steps_left: ArrayLike | None, cost_allowed: ArrayLike | None
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        encode_situations(observation, steps_left, cost_allowed)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "values",
    [
        torch.ones(3, requires_grad=True),
        [10**400, 0, 0],
        np.array([1 + 1j, 0, 0]),
        np.array([1, 2, 3], "datetime64[s]"),
        ["1", "2", "3"],
        np.array(["1", "2", "3"], object),
        [1, None, 3],
        np.zeros(3, [("x", np.float32)]),
    ],
)
def test_what_is_not_of_real_numbers_is_named_and_not_converted(values: Any) -> None:
    for encode in (partial(encode_situations, values, None, None), partial(vector, "observation", values)):
        with pytest.raises(InvalidRequestError, match=r"^observation: is not an array of numbers: .") as caught:
            encode()
        assert caught.value.field == "observation"


def test_a_masked_value_is_no_number_and_is_refused() -> None:
    masked = np.ma.masked_equal([1.0, 2.0, 3.0], 2.0)  # type: ignore[no-untyped-call]
    for name, encode in (
        ("observation", partial(encode_situations, masked, None, None)),
        ("observation", partial(encode_situations, [[1.0, 2.0, 3.0], masked], None, None)),
        ("steps_left", partial(encode_situations, [1, 2, 3], np.ma.masked, None)),
        ("cost_allowed", partial(encode_situations, [1, 2, 3], None, masked[:2])),
        ("cost", partial(vector, "cost", np.ma.masked, 1)),
    ):
        with pytest.raises(InvalidRequestError, match=f"^{name}: has masked values; give a number for each$"):
            encode()
    whole = np.ma.masked_equal([1.0, 2.0, 3.0], 4.0)  # type: ignore[no-untyped-call]
    messages, _ = encode_situations(whole, None, None)
    assert list(messages[0].observation) == [1, 2, 3]


@pytest.mark.parametrize(
    "values",
    [
        (1, 2, 3),
        np.array([1, 2, 3], object),
        np.array([1, 2, 3], np.uint8),
        np.array([1, 2, 3], np.float16),
        torch.tensor([1.0, 2.0, 3.0]),
        [Fraction(1), Decimal(2), 3],
    ],
)
def test_real_numbers_of_any_type_are_taken(values: Any) -> None:
    assert vector("observation", values) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("action", [[1.0], [[1.0, 2.0], [1.0, 2.0]], "left"])
def test_an_action_that_does_not_go_with_its_observation_is_named(action: ArrayLike) -> None:
    messages = encode_situated_actions([0, 0, 0], [1.0, 2.0], None, None)[0]
    assert len(messages) == 1
    with pytest.raises(InvalidRequestError) as caught:
        decode_situated_actions(encode_situated_actions([0, 0, 0], action, None, None)[0], FRAME, Limits())
    assert "action" in caught.value.field


@pytest.mark.parametrize("mode", [Sampled(-1), Sampled(2**64), Shielded(-1), Shielded(2**32), Shielded(8, seed=-1)])
def test_a_mode_that_fits_into_no_message_is_refused(mode: Mode) -> None:
    with pytest.raises(InvalidRequestError):
        encode_act_request(pb.PolicySelector(), [], mode)


@pytest.mark.parametrize("mode", [Sampled, "shielded", None])
def test_what_is_no_mode_is_refused_and_does_not_run_as_the_deterministic_one(mode: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^mode: is .*; give Deterministic\(\), Sampled\(\) or Shielded"):
        encode_act_request(pb.PolicySelector(), [], mode)


def test_only_a_strict_server_refuses_an_observation_outside_its_space() -> None:
    inside, outside = pb.Situation(observation=[9, -5, 9]), pb.Situation(observation=[9, 5.5, 9])
    assert len(decode_situations([inside, outside], FRAME, Limits()).observation) == 2
    strict = Limits(strict_observations=True)
    assert len(decode_situations([inside], FRAME, strict).observation) == 1
    with pytest.raises(InvalidRequestError) as caught:
        decode_situations([inside, outside], FRAME, strict)
    assert caught.value.field == "situations[1].observation[1]"
    assert caught.value.description == "is 5.5; the observation space is -5 to 5 there"


@pytest.mark.parametrize("seconds", [0.0, 4e-10, 1.5e-6, 0.02, 1 - 1e-10, 1.0, 1.25, 60.0, 86_400.0])
def test_a_time_span_has_less_than_a_second_of_nanoseconds(seconds: float) -> None:
    message = Duration()
    fill_duration(message, seconds)
    assert 0 <= message.nanos < 10**9  # more are no duration
    assert message.ToNanoseconds() == round(seconds * 1e9)
