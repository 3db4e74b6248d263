"""What a bundle's graph may be: its interface, the operators of our exporter, and a bound on memory and work.

The operators below are all there are, each with the rule by which the shapes of its outputs follow. So before ONNX
Runtime sees a graph, the size of every value in it is known, and there is no loop, no file, no code of someone else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle.interface import INPUTS, OUTPUTS, PORTS
from cvpo.bundle.onnxfile import MOST_AXES, Attribute, Graph, Node, Value, read_graph
from cvpo.errors import BundleError

MOST_NODES = 2_000  # ours have about a hundred
# Per situation and candidate. Networks of the default size take 2^13 values and 2^18 multiplications.
MOST_VALUES = 2**18
MOST_MULTIPLICATIONS = 2**26
MOST_CONSTANTS = 2**26  # values: as many as the largest file has in float32

_N, _K = 3, 5  # sizes to try a graph with; small, and neither is 1, which broadcasts

Shape: TypeAlias = tuple[int, ...]


def check_graph(name: str, data: bytes, sizes: Mapping[str, int]) -> None:
    """Refuse a graph that is not one of ours.

    Args:
        name: POLICY_GRAPH or CRITIC_GRAPH.
        data: the ONNX file.
        sizes: of the axes O, A and C, as the manifest states them.

    Raises:
        BundleError: it uses what our exporter does not write, has another interface than the manifest asks for, takes
            too much memory or work, or more than in proportion to the number of situations and of candidates.
    """
    try:
        graph = read_graph(data)
        _check_interface("inputs", graph.inputs, INPUTS[name], sizes)
        _check_interface("outputs", graph.outputs, OUTPUTS[name], sizes)
        if len(graph.nodes) > MOST_NODES:
            raise BundleError(f"it has {len(graph.nodes)} operators, more than {MOST_NODES}")
        for axis, size in (("N", _N), ("K", _K)):
            one, two, three = (_effort(graph, {**sizes, "N": _N, "K": _K, axis: times * size}) for times in (1, 2, 3))
            # By differences: however much there is that does not grow, it hides nothing that grows faster.
            if (
                three.values - two.values > two.values - one.values
                or three.multiplications - two.multiplications > two.multiplications - one.multiplications
            ):
                raise BundleError(f"its memory or work grows faster than {axis}")
    except BundleError as error:
        raise BundleError(f"{name} is refused: {error}. Export it again.") from error


def _check_interface(what: str, values: tuple[Value, ...], names: tuple[str, ...], sizes: Mapping[str, int]) -> None:
    found = {value.name: value for value in values}
    if found.keys() != set(names) or len(values) != len(names):
        raise BundleError(f"its {what} are {sorted(value.name for value in values)}, not {sorted(names)}")
    for name in names:
        port, value = PORTS[name], found[name]
        axes = tuple(sizes.get(axis, axis) for axis in port.axes)
        if (value.type, value.axes) != (port.type, axes):
            raise BundleError(
                f"{name} is of type {value.type} and axes {list(value.axes)}; the manifest asks for type {port.type} "
                f"and axes {list(axes)}"
            )


@dataclass
class _Effort:
    """What a graph takes: numbers that it holds, and multiplications in its matrix products."""

    values: int = 0  # but those of constants
    multiplications: int = 0
    constants: int = 0  # values in the file, and those that follow from them alone, once


@dataclass(frozen=True)
class _Step:
    """An operator with the shapes of its inputs, and the values of those that are whole numbers of the file."""

    operator: str
    shapes: tuple[Shape, ...]
    known: tuple[NDArray[np.int64] | None, ...]
    attributes: Mapping[str, Attribute]
    outputs: int
    effort: _Effort

    def number(self, name: str, default: int | None) -> int:
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise BundleError(f"its attribute {name!r} must be a whole number")
        return value

    def axis(self, default: int | None = None) -> int:
        rank = len(self.shapes[0])
        axis = self.number("axis", default)
        if not -rank <= axis < rank:
            raise BundleError(f"it has no axis {axis}")
        return axis % rank

    def constant(self, index: int) -> list[int]:
        value = self.known[index] if index < len(self.known) else None
        if value is None or value.ndim != 1:
            raise BundleError(f"its input {index} must be a list of whole numbers in the file")
        return [int(item) for item in value]

    def axes(self, index: int, rank: int) -> set[int]:
        axes = self.constant(index)
        found = {axis % rank for axis in axes if -rank <= axis < rank}
        if len(found) < len(axes):
            raise BundleError(f"it has no axes {axes}")
        return found


def _effort(graph: Graph, sizes: Mapping[str, int]) -> _Effort:
    """Follow shapes through the graph, for these sizes of its axes."""
    effort, rows = _Effort(), sizes["N"] * sizes["K"]
    shapes: dict[str, Shape] = {
        value.name: tuple(axis if isinstance(axis, int) else sizes[axis] for axis in value.axes)
        for value in graph.inputs
    }
    known: dict[str, NDArray[np.int64]] = {}
    fixed, narrow = set(graph.constants), set()
    for name, constant in graph.constants.items():
        if name in shapes:
            raise BundleError(f"two values are named {name!r}")
        shapes[name] = constant.shape
        effort.constants += constant.size
        if constant.dtype in (np.float16, np.int8):
            narrow.add(name)
        if constant.dtype == np.int64 and constant.size <= MOST_AXES:
            known[name] = constant
    most_constants = min(3 * effort.constants, MOST_CONSTANTS)  # our exporter casts and scales each at most once
    for position, node in enumerate(graph.nodes):
        try:
            if node.operator != "Cast" and narrow.intersection(node.inputs):
                raise BundleError("our exporter casts float16 and int8 to float32 before it computes with them")
            for name, shape in zip(node.outputs, _compute(node, shapes, known, effort), strict=True):
                if name in shapes or not name:
                    raise BundleError(f"two values are named {name!r}")
                if len(shape) > MOST_AXES or any(size < 1 for size in shape):
                    raise BundleError(f"{name} has the shape {shape}")
                shapes[name] = shape
                if fixed.issuperset(node.inputs):
                    fixed.add(name)
                    effort.constants += math.prod(shape)
                else:
                    effort.values += math.prod(shape)
            if (
                effort.values > MOST_VALUES * rows
                or effort.multiplications > MOST_MULTIPLICATIONS * rows
                or effort.constants > most_constants
            ):
                raise BundleError("so far the graph takes more memory or work than any policy needs")
        except BundleError as error:
            raise BundleError(f"operator {position}, {node.operator}: {error}") from error
    for output in graph.outputs:
        expected = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in output.axes)
        if shapes.get(output.name) != expected:
            raise BundleError(f"it computes {output.name} of shape {shapes.get(output.name)}, not {expected}")
    return effort


def _compute(
    node: Node, shapes: Mapping[str, Shape], known: Mapping[str, NDArray[np.int64]], effort: _Effort
) -> list[Shape]:
    """Return the shapes of a node's outputs."""
    operator = _OPERATORS.get(node.operator)
    if operator is None:
        raise BundleError("our exporter writes no such operator")
    if len(node.inputs) not in operator.inputs:
        raise BundleError(f"it has {len(node.inputs)} inputs")
    if unknown := node.attributes.keys() - operator.attributes:
        raise BundleError(f"our exporter gives it no attribute {sorted(unknown)[0]!r}")
    if missing := [name for name in node.inputs if name not in shapes]:
        raise BundleError(f"nothing before it computes {missing[0]!r}")
    if node.operator != "Split" and len(node.outputs) != 1:
        raise BundleError(f"it has {len(node.outputs)} outputs")
    step = _Step(
        node.operator,
        tuple(shapes[name] for name in node.inputs),
        tuple(known.get(name) for name in node.inputs),
        node.attributes,
        len(node.outputs),
        effort,
    )
    found = operator.shapes(step)
    if len(found) != step.outputs:
        raise BundleError(f"it has {step.outputs} outputs, not {len(found)}")
    return found


def _elementwise(step: _Step) -> list[Shape]:
    try:
        return [np.broadcast_shapes(*step.shapes)]
    except ValueError:
        raise BundleError(f"shapes {', '.join(map(str, step.shapes))} do not go together") from None


def _layer_norm(step: _Step) -> list[Shape]:
    values, scale = step.shapes
    if step.axis() != len(values) - 1 or scale != values[-1:]:
        raise BundleError(f"a scale of shape {scale} does not fit {values}")
    return [values]


def _reduce(step: _Step) -> list[Shape]:
    axes = step.axes(1, len(step.shapes[0]))
    return [_without(step.shapes[0], axes, keep=bool(step.number("keepdims", 1)))]


def _arg(step: _Step) -> list[Shape]:
    return [_without(step.shapes[0], {step.axis(0)}, keep=bool(step.number("keepdims", 1)))]


def _without(shape: Shape, axes: set[int], *, keep: bool) -> Shape:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes)


def _matmul(step: _Step) -> list[Shape]:
    left, right = step.shapes
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        raise BundleError(f"shapes {left} and {right} do not go together")
    try:
        shape = (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])
    except ValueError:
        raise BundleError(f"shapes {left} and {right} do not go together") from None
    step.effort.multiplications += math.prod(shape) * left[-1]
    return [shape]


def _gemm(step: _Step) -> list[Shape]:
    left, right, bias = step.shapes
    if len(left) != 2 or len(right) != 2 or step.number("transB", 0) != 1 or left[1] != right[1]:
        raise BundleError(f"shapes {left} and {right} do not go together")
    if bias != right[:1]:
        raise BundleError(f"a bias of shape {bias} does not fit {right}")
    step.effort.multiplications += math.prod(left) * right[0]
    return [(left[0], right[0])]


def _reshape(step: _Step) -> list[Shape]:
    count, shape = math.prod(step.shapes[0]), step.constant(1)
    if any(size < -1 or size == 0 for size in shape) or shape.count(-1) > 1:
        raise BundleError(f"{shape} is no shape to give it")
    fixed = math.prod(size for size in shape if size > 0)
    shape = [count // fixed if size == -1 else size for size in shape]
    if math.prod(shape) != count:
        raise BundleError(f"{count} values do not have the shape {shape}")
    return [tuple(shape)]


def _transpose(step: _Step) -> list[Shape]:
    order, shape = step.attributes.get("perm"), step.shapes[0]
    if not isinstance(order, tuple) or sorted(order) != list(range(len(shape))):
        raise BundleError(f"{order} is no order of {len(shape)} axes")
    return [tuple(shape[axis] for axis in order)]


def _squeeze(step: _Step) -> list[Shape]:
    shape = step.shapes[0]
    axes = step.axes(1, len(shape))
    if any(shape[axis] != 1 for axis in axes):
        raise BundleError(f"shape {shape} is not 1 along {sorted(axes)}")
    return [_without(shape, axes, keep=False)]


def _unsqueeze(step: _Step) -> list[Shape]:
    rank = len(step.shapes[0]) + len(step.constant(1))
    axes, sizes = step.axes(1, rank), iter(step.shapes[0])
    return [tuple(1 if axis in axes else next(sizes) for axis in range(rank))]


def _concat(step: _Step) -> list[Shape]:
    first, axis = step.shapes[0], step.axis()
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in step.shapes}
    if len(rests) > 1 or any(len(shape) != len(first) for shape in step.shapes):
        raise BundleError(f"shapes {', '.join(map(str, step.shapes))} do not go together")
    return [(*first[:axis], sum(shape[axis] for shape in step.shapes), *first[axis + 1 :])]


def _split(step: _Step) -> list[Shape]:
    shape, axis, sizes = step.shapes[0], step.axis(0), step.constant(1)
    if any(size < 0 for size in sizes) or sum(sizes) != shape[axis]:
        raise BundleError(f"{shape[axis]} along axis {axis} are not {sizes}")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _gather(step: _Step) -> list[Shape]:
    values, indices = step.shapes
    axis = step.axis(0)
    return [(*values[:axis], *indices, *values[axis + 1 :])]


def _gather_nd(step: _Step) -> list[Shape]:
    values, indices = step.shapes
    batch = step.number("batch_dims", 0)
    fits = 0 <= batch < min(len(values), len(indices)) and values[:batch] == indices[:batch]
    if not fits or batch + indices[-1] > len(values):
        raise BundleError(f"indices of shape {indices} do not fit {values}")
    return [(*indices[:-1], *values[batch + indices[-1] :])]


@dataclass(frozen=True)
class _Operator:
    """How many inputs an operator has, which attributes, and how the shapes of its outputs follow."""

    shapes: Callable[[_Step], list[Shape]]
    inputs: range
    attributes: frozenset[str] = frozenset()


def _operators(shapes: Callable[[_Step], list[Shape]], names: str, inputs: range, *attributes: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), _Operator(shapes, inputs, frozenset(attributes)))


_ONE, _TWO, _THREE = range(1, 2), range(2, 3), range(3, 4)
_OPERATORS: Mapping[str, _Operator] = {
    **_operators(_elementwise, "Log Relu Softplus Tanh", _ONE),
    **_operators(_elementwise, "Cast", _ONE, "to"),
    **_operators(_elementwise, "Add Sub Mul Div Greater LessOrEqual", _TWO),
    **_operators(_elementwise, "Clip Where", _THREE),
    **_operators(_elementwise, "Max Min", range(2, 5)),
    **_operators(_layer_norm, "LayerNormalization", _TWO, "axis", "epsilon"),
    **_operators(_reduce, "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum", _TWO, "keepdims"),
    **_operators(_arg, "ArgMin", _ONE, "axis", "keepdims"),
    **_operators(_matmul, "MatMul", _TWO),
    **_operators(_gemm, "Gemm", _THREE, "transB"),
    **_operators(_reshape, "Reshape", _TWO),
    **_operators(_transpose, "Transpose", _ONE, "perm"),
    **_operators(_squeeze, "Squeeze", _TWO),
    **_operators(_unsqueeze, "Unsqueeze", _TWO),
    **_operators(_concat, "Concat", range(1, 257), "axis"),  # of as many critics
    **_operators(_split, "Split", _TWO, "axis"),
    **_operators(_gather, "Gather", _TWO, "axis"),
    **_operators(_gather_nd, "GatherND", _TWO, "batch_dims"),
}
