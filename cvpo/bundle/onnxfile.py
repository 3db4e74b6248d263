"""Reads the part of the ONNX format that our graphs are written in, and refuses every other: a strict subset.

ONNX Runtime reads far more than a bundle needs: data in files elsewhere, operators of other domains, graphs inside of
graphs, functions, training. A field that is not in the tables below is refused whatever it says. This needs neither the
onnx package, which a server does not have, nor its message classes, which would pass over fields they do not know.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cvpo.errors import BundleError

FLOAT, INT8, INT64, BOOL, FLOAT16 = 1, 3, 7, 9, 10  # TensorProto.DataType
OPSET = 18
MOST_AXES = 8  # of a value; ours have four
IR_VERSION = 9  # read by every onnxruntime that the service admits

_DTYPES: Mapping[int, np.dtype[Any]] = {
    FLOAT: np.dtype("<f4"),
    INT64: np.dtype("<i8"),
    FLOAT16: np.dtype("<f2"),
    INT8: np.dtype("i1"),
}

Attribute: TypeAlias = float | int | tuple[int, ...]
Kind: TypeAlias = Literal["int", "float", "text", "bytes", "refused"]


@dataclass(frozen=True)
class Value:
    """An input or output of the graph: name, element type, and axes, by size or by name where any size will do."""

    name: str
    type: int
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class Node:
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Graph:
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[str, NDArray[Any]]
    nodes: tuple[Node, ...]  # in the order in which they are computed


def read_graph(data: bytes) -> Graph:
    """Read an ONNX file.

    Raises:
        BundleError: it is no such file, or uses a part of the format that our exporter does not.
    """
    model = _read(memoryview(data), _MODEL)
    ir_version, (opset,) = model.one("ir_version"), [_read(part, _OPSET) for part in model.some("opset_import", 1)]
    if ir_version != IR_VERSION or opset.one("domain", "") != "" or opset.one("version") != OPSET:
        raise BundleError(
            f"it is written in IR version {ir_version} and version {opset.one('version')} of the operators of "
            f"{opset.one('domain', '') or 'ONNX'!r}, not {IR_VERSION} and {OPSET} of 'ONNX'"
        )
    graph = _read(model.one("graph"), _GRAPH)
    constants: dict[str, NDArray[Any]] = {}
    for part in graph.some("initializer"):
        name, array = _constant(_read(part, _TENSOR))
        if name in constants:
            raise BundleError(f"two constants are named {name!r}")
        constants[name] = array
    return Graph(
        inputs=tuple(_value(_read(part, _VALUE)) for part in graph.some("input")),
        outputs=tuple(_value(_read(part, _VALUE)) for part in graph.some("output")),
        constants=constants,
        nodes=tuple(_node(_read(part, _NODE)) for part in graph.some("node")),
    )


# The messages of onnx.proto, and of their fields those that the exporter writes: number to name and kind. All others
# are refused; those that a reason should name are here, too.
_MODEL: Mapping[int, tuple[str, Kind]] = {
    1: ("ir_version", "int"),
    2: ("producer_name", "text"),
    7: ("graph", "bytes"),
    8: ("opset_import", "bytes"),
    25: ("functions", "refused"),
}
_OPSET: Mapping[int, tuple[str, Kind]] = {1: ("domain", "text"), 2: ("version", "int")}
_GRAPH: Mapping[int, tuple[str, Kind]] = {
    1: ("node", "bytes"),
    2: ("name", "text"),
    5: ("initializer", "bytes"),
    11: ("input", "bytes"),
    12: ("output", "bytes"),
}
_NODE: Mapping[int, tuple[str, Kind]] = {
    1: ("input", "text"),
    2: ("output", "text"),
    4: ("op_type", "text"),
    5: ("attribute", "bytes"),
    7: ("domain", "refused"),
}
_ATTRIBUTE: Mapping[int, tuple[str, Kind]] = {
    1: ("name", "text"),
    2: ("f", "float"),
    3: ("i", "int"),
    5: ("t", "refused"),
    6: ("g", "refused"),
    8: ("ints", "int"),
    11: ("graphs", "refused"),
    20: ("type", "int"),
}
_TENSOR: Mapping[int, tuple[str, Kind]] = {
    1: ("dims", "int"),
    2: ("data_type", "int"),
    8: ("name", "text"),
    9: ("raw_data", "bytes"),
    13: ("external_data", "refused"),
    14: ("data_location", "refused"),
}
_VALUE: Mapping[int, tuple[str, Kind]] = {1: ("name", "text"), 2: ("type", "bytes")}
_TYPE: Mapping[int, tuple[str, Kind]] = {1: ("tensor_type", "bytes")}
_TENSOR_TYPE: Mapping[int, tuple[str, Kind]] = {1: ("elem_type", "int"), 2: ("shape", "bytes")}
_SHAPE: Mapping[int, tuple[str, Kind]] = {1: ("dim", "bytes")}
_DIMENSION: Mapping[int, tuple[str, Kind]] = {1: ("dim_value", "int"), 2: ("dim_param", "text")}


class _Message(NamedTuple):
    """The fields of a message, each as often as it came."""

    fields: dict[str, list[Any]]

    def some(self, name: str, count: int | None = None) -> list[Any]:
        """Return all values of a field; exactly `count` of them, where it is given."""
        values = self.fields.get(name, [])
        if count is not None and len(values) != count:
            raise BundleError(f"it has {len(values)} values of {name}, not {count}")
        return values

    def one(self, name: str, default: Any = None) -> Any:
        """Return the only value of a field; where there is none, the default, unless that is None."""
        if default is not None and name not in self.fields:
            return default
        return self.some(name, 1)[0]


def _read(data: memoryview, fields: Mapping[int, tuple[str, Kind]]) -> _Message:
    found: dict[str, list[Any]] = {}
    for number, wire_type, value in _wire(data):
        name, kind = fields.get(number, (f"field {number}", "refused"))
        if kind == "refused":
            beside = ", ".join(known for known, other in fields.values() if other != "refused")
            raise BundleError(f"it uses {name} of the ONNX format beside {beside}, which our exporter does not")
        found.setdefault(name, []).extend(_decode(name, kind, wire_type, value))
    return _Message(found)


def _decode(name: str, kind: Kind, wire_type: int, value: int | memoryview) -> list[Any]:
    match kind, wire_type, value:
        case "int", 0, int():
            return [value - 2**64 if value >= 2**63 else value]
        case "float", 5, memoryview():
            return list(struct.unpack("<f", value))
        case "text", 2, memoryview():
            try:
                return [str(value, "utf-8")]
            except UnicodeDecodeError:
                raise BundleError(f"{name} is no text") from None
        case "bytes", 2, memoryview():
            return [value]
    raise BundleError(f"{name} is of another kind than the ONNX format says")


def _wire(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield number, wire type and value of each field of a protobuf message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, wire_type, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type == 5:
            size = 4
        else:
            raise BundleError("it is no ONNX file, or damaged")
        if size > len(data) - position:
            raise BundleError("it is no ONNX file, or cut short")
        yield number, wire_type, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise BundleError("it is no ONNX file, or cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    if value >= 2**64 or byte >= 0x80:
        raise BundleError("it is no ONNX file, or damaged")
    return value, position


def _constant(tensor: _Message) -> tuple[str, NDArray[Any]]:
    name, dims, raw = tensor.one("name"), tensor.some("dims"), tensor.one("raw_data", memoryview(b""))
    dtype = _DTYPES.get(tensor.one("data_type"))
    if dtype is None:
        raise BundleError(f"constant {name!r} is not of float32, float16, int64 or int8 values")
    if len(dims) > MOST_AXES:
        raise BundleError(f"constant {name!r} has {len(dims)} axes, more than {MOST_AXES}")
    if any(size < 1 for size in dims) or math.prod(dims) * dtype.itemsize != len(raw):
        raise BundleError(f"constant {name!r} of shape {dims} has {len(raw)} bytes of values")
    return name, np.frombuffer(raw, dtype).reshape(dims)


def _value(value: _Message) -> Value:
    tensor_type = _read(_read(value.one("type"), _TYPE).one("tensor_type"), _TENSOR_TYPE)
    dimensions = [_read(part, _DIMENSION) for part in _read(tensor_type.one("shape"), _SHAPE).some("dim")]
    axes: list[int | str] = []
    for dimension in dimensions:
        if len(dimension.fields) != 1:
            raise BundleError(f"an axis of {value.one('name')!r} has neither just a size nor just a name")
        (name,) = dimension.fields
        axes.append(dimension.one(name))
    return Value(value.one("name"), tensor_type.one("elem_type"), tuple(axes))


def _node(node: _Message) -> Node:
    operator = node.one("op_type")
    attributes: dict[str, Attribute] = {}
    for part in node.some("attribute"):
        name, value = _attribute(_read(part, _ATTRIBUTE))
        if name in attributes:
            raise BundleError(f"operator {operator} has two attributes {name!r}")
        attributes[name] = value
    return Node(operator, tuple(node.some("input")), tuple(node.some("output")), attributes)


def _attribute(attribute: _Message) -> tuple[str, Attribute]:
    name, kind = attribute.one("name"), attribute.one("type")
    given = attribute.fields.keys() - {"name", "type"}
    match kind, *given:
        case 1, "f":
            return name, float(attribute.one("f"))
        case 2, "i":
            return name, int(attribute.one("i"))
        case 7, "ints":
            return name, tuple(attribute.some("ints"))
    raise BundleError(f"attribute {name!r} is not one number or a list of whole numbers")
