"""Graphs that our exporter would not write are refused, with the reason, before anything runs them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cvpo.bundle import CRITIC_GRAPH, POLICY_GRAPH, Precision, check_graph
from cvpo.bundle.onnxfile import read_graph
from cvpo.errors import BundleError
from cvpo.exporting.graphs import critic_graph as exported_critic
from cvpo.exporting.graphs import policy_graph as exported_policy
from tests.serve import bundles
from tests.small_policies import ACTION_SIZE, OBSERVATION_SIZE, served

SIZES = {"O": 3, "A": 2, "C": 2}
Change = Callable[[onnx.ModelProto], object]


def changed(change: Change) -> bytes:
    """critic.onnx, changed."""
    model = onnx.load_from_string(bundles.critic_graph())
    change(model)
    return model.SerializeToString()


def constant(model: onnx.ModelProto, name: str, value: object, dtype: type = np.float32) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))


def node(model: onnx.ModelProto, operator: str, inputs: list[str], output: str = "extra", **attributes: Any) -> None:
    """Put an operator at the end, whose output nobody uses."""
    model.graph.node.append(helper.make_node(operator, inputs, [output], **attributes))


def refusal(data: bytes, name: str = CRITIC_GRAPH, sizes: dict[str, int] = SIZES) -> str:
    with pytest.raises(BundleError) as caught:
        check_graph(name, data, sizes)
    said = str(caught.value)
    assert said.startswith(f"{name} is refused: ")
    return said


@pytest.mark.parametrize("num_costs", [1, 3])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_what_the_exporter_writes_is_accepted(num_costs: int, covariance: str) -> None:
    policy = served(num_costs, covariance=covariance)  # type: ignore[arg-type]
    sizes = {"O": OBSERVATION_SIZE, "A": ACTION_SIZE, "C": num_costs}
    check_graph(POLICY_GRAPH, exported_policy(policy), sizes)
    check_graph(CRITIC_GRAPH, exported_critic(policy), sizes)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_networks_in_fewer_bits_are_accepted(precision: Precision) -> None:
    sizes = {"O": OBSERVATION_SIZE, "A": ACTION_SIZE, "C": 2}
    check_graph(POLICY_GRAPH, exported_policy(served(2), precision), sizes)
    check_graph(CRITIC_GRAPH, exported_critic(served(2), precision), sizes)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_constants_are_read_as_onnx_reads_them(precision: Precision) -> None:
    data = exported_policy(served(2), precision)
    expected = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
    found = read_graph(data).constants
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


# The interface


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("observation", "state", "its inputs are"),
        ("feasible", "fine", "its outputs are"),
        ("float[N,3] observation", "float[1,3] observation", "observation is of type 1 and axes [1, 3]"),
        ("float[N,3] observation", "float[K,3] observation", "observation is of type 1 and axes ['K', 3]"),
        ("float[N,K,2] noise", "float[N,1,2] noise", "noise is of type 1 and axes ['N', 1, 2]"),
        ("int64[N] steps_left", "float[N] steps_left", "steps_left is of type 1 and axes ['N']; the manifest asks for"),
    ],
)
def test_a_graph_of_another_interface_is_refused(old: str, new: str, says: str) -> None:
    graph = bundles.policy_graph(lambda text: text.replace(old, new, -1 if "[" not in old else 1))
    assert says in refusal(graph, POLICY_GRAPH)


def test_a_graph_in_the_place_of_the_other_is_refused() -> None:
    assert "its inputs are" in refusal(bundles.policy_graph(), CRITIC_GRAPH)


@pytest.mark.parametrize(("axis", "name"), [("O", "observation"), ("A", "noise"), ("C", "cost_allowed")])
def test_a_graph_of_other_sizes_than_the_manifest_says_is_refused(axis: str, name: str) -> None:
    assert f"{name} is of type 1" in refusal(bundles.policy_graph(), POLICY_GRAPH, SIZES | {axis: 7})


def test_a_graph_that_computes_another_shape_than_it_declares_is_refused() -> None:
    graph = bundles.critic_graph(
        lambda text: text.replace("cost_value = Mul(magnitude, ten)", "cost_value = Add(u, u)")
    )
    check_graph(CRITIC_GRAPH, graph, SIZES)  # the same shape: whether it is right is for the golden request
    graph = bundles.critic_graph(
        lambda text: text.replace("cost_value = Mul(magnitude, ten)", "cost_value = Add(ten, ten)")
    )
    assert "it computes cost_value of shape (), not (3, 2)" in refusal(graph)


# What the format has beyond our needs


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def half(model: onnx.ModelProto) -> None:
    constant(model, "half", [1.0], np.float16)
    node(model, "Add", ["half", "half"])


def branch(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("steps_left", TensorProto.INT64, ["N"])])
    node(model, "If", ["violation"], then_branch=body, else_branch=body)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (external, "it uses external_data"),
        (lambda m: setattr(m.graph.initializer[0], "data_location", TensorProto.EXTERNAL), "it uses data_location"),
        (branch, "it uses g of"),
        (lambda m: m.graph.node.append(helper.make_node("Add", ["u", "u"], ["x"], domain="evil")), "it uses domain"),
        (lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)), "2 values of opset_import"),
        (lambda m: setattr(m.opset_import[0], "domain", "com.microsoft"), "'com.microsoft'"),
        (lambda m: setattr(m.opset_import[0], "version", 21), "version 21 of the operators"),
        (lambda m: setattr(m, "ir_version", 12), "IR version 12"),
        (lambda m: m.metadata_props.add(key="a", value="b"), "it uses field 14"),
        (lambda m: m.functions.add(name="f"), "it uses functions"),
        (lambda m: m.graph.sparse_initializer.add(), "it uses field 15"),
        (lambda m: m.graph.initializer[0].float_data.append(1), "it uses field 4"),
        (lambda m: node(m, "Constant", [], value=numpy_helper.from_array(np.zeros(2))), "it uses t of"),
        (lambda m: node(m, "LeakyRelu", ["u"], alpha=0.1), "LeakyRelu: our exporter writes no such operator"),
        (lambda m: constant(m, "d", [1.0], np.float64), "is not of float32, float16, int64 or int8"),
        (half, "casts float16 and int8 to float32 before it computes"),
        (lambda m: constant(m, "empty", np.zeros((2**40, 0))), "has 0 bytes of values"),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", b"123"), "has 3 bytes of values"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two constants are named"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "two values are named"),
        (lambda m: m.graph.output.append(m.graph.output[0]), "its outputs are"),
        (lambda m: node(m, "Add", ["u", "nothing"]), "nothing before it computes 'nothing'"),
        (lambda m: m.graph.node.reverse(), "nothing before it computes"),
        (lambda m: node(m, "Add", ["u", "total"]), "do not go together"),
        (lambda m: node(m, "Add", ["u"]), "it has 1 inputs"),
        (lambda m: node(m, "Relu", ["u"], axis=3), "no attribute 'axis'"),
        (lambda m: node(m, "Reshape", ["u", "steps_left"]), "whole numbers in the file"),
    ],
)
def test_what_our_exporter_does_not_write_is_refused(change: Change, says: str) -> None:
    assert says in refusal(changed(change))


@pytest.mark.parametrize("axes", [9, 33, 65])
@pytest.mark.parametrize("operator", ["Add", "MatMul"])
def test_a_constant_of_more_axes_than_ours_is_refused(axes: int, operator: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        constant(model, "wide", 0)
        model.graph.initializer[-1].dims.extend([1] * axes)
        node(model, operator, ["wide", "wide"])

    assert f"constant 'wide' has {axes} axes, more than 8" in refusal(changed(change))


@pytest.mark.parametrize(
    "data", [b"", b"not a graph", b"\xff" * 100, b"\x08\x09", b"\x08", b"\x3a\xff\xff\xff\xff\x0f", b"\x0b" * 9]
)
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    refusal(data)


@pytest.mark.parametrize("operator", ["Abs", "Neg", "Not", "Shape", "ArgMax"])
def test_an_operator_that_only_other_exporters_write_is_refused(operator: str) -> None:
    assert "our exporter writes no such operator" in refusal(changed(lambda model: node(model, operator, ["u"])))


# Memory and work


@pytest.mark.parametrize(
    "operator", ["Expand", "Tile", "ConstantOfShape", "Range", "Loop", "Scan", "If", "Pad", "OneHot"]
)
def test_operators_that_make_sizes_out_of_values_are_refused(operator: str) -> None:
    assert "our exporter writes no such operator" in refusal(changed(lambda model: node(model, operator, ["u"])))


def outer(model: onnx.ModelProto) -> None:
    constant(model, "column", np.zeros((100_000, 1)))
    constant(model, "row", np.zeros((1, 100_000)))
    node(model, "Add", ["column", "row"])


def doubled(model: onnx.ModelProto) -> None:
    node(model, "Concat", ["u", "u"], "x0", axis=1)
    for step in range(60):
        node(model, "Concat", [f"x{step}", f"x{step}"], f"x{step + 1}", axis=1)


def cast(model: onnx.ModelProto) -> None:
    constant(model, "narrow", np.zeros(100_000), np.int8)
    for step in range(4):  # ours are cast once
        node(model, "Cast", ["narrow"], f"x{step}", to=TensorProto.FLOAT)


def gathered(model: onnx.ModelProto) -> None:
    constant(model, "column", np.zeros((1, 100_000)))
    constant(model, "zeros", np.zeros(100_000), np.int64)
    node(model, "Gather", ["column", "zeros"], axis=0)


def multiplied(model: onnx.ModelProto) -> None:
    constant(model, "row", np.zeros((1, 65_536)))
    constant(model, "matrix", np.zeros((65_536, 64)))
    for step in range(300):
        node(model, "MatMul", ["row", "matrix"], f"x{step}")


@pytest.mark.parametrize("change", [outer, doubled, cast, gathered, multiplied])
def test_a_graph_that_takes_memory_or_work_without_end_is_refused(change: Change) -> None:
    assert "more memory or work than any policy needs" in refusal(changed(change))


def square(model: onnx.ModelProto, name: str, operator: str = "MatMul") -> None:
    """Each row of a matrix with each of its rows."""
    constant(model, "second_axis", [1], np.int64)
    node(model, "ReduceMax", [name, "second_axis"], "column_of_it", keepdims=1)
    node(model, "Transpose", ["column_of_it"], "row_of_it", perm=[1, 0])
    node(model, operator, ["column_of_it", "row_of_it"], "squared")


def ballast(model: onnx.ModelProto) -> None:
    """Millions of values and multiplications, as many for any number of situations and candidates."""
    constant(model, "column", np.zeros((1_000, 1)))
    constant(model, "row", np.zeros((1, 1_000)))
    constant(model, "first_axis", [0], np.int64)
    node(model, "ReduceMax", ["alarm_level", "first_axis"], "any_level", keepdims=1)
    node(model, "Mul", ["column", "any_level"], "levels")
    node(model, "MatMul", ["levels", "row"], "ballast")
    node(model, "MatMul", ["ballast", "levels"], "product")


def test_a_graph_that_takes_more_than_in_proportion_to_the_batch_is_refused() -> None:
    assert "grows faster than N" in refusal(changed(lambda model: square(model, "observation")))


@pytest.mark.parametrize("axis", ["N", "K"])
@pytest.mark.parametrize("operator", ["MatMul", "Add"])  # grows in multiplications and values, or in values alone
def test_what_does_not_grow_hides_nothing_that_grows_too_fast(axis: str, operator: str) -> None:
    model = onnx.load_from_string(bundles.policy_graph())
    ballast(model)
    check_graph(POLICY_GRAPH, model.SerializeToString(), SIZES)
    constant(model, "first_situation", 0, np.int64)
    node(model, "Gather", ["noise", "first_situation"], "candidates", axis=0)  # [K, A]
    square(model, {"N": "observation", "K": "candidates"}[axis], operator)
    assert f"grows faster than {axis}" in refusal(model.SerializeToString(), POLICY_GRAPH)


def test_a_graph_of_too_many_operators_is_refused() -> None:
    def long(model: onnx.ModelProto) -> None:
        for number in range(3_000):
            node(model, "Relu", ["u"], f"x{number}")

    assert "operators, more than 2000" in refusal(changed(long))
