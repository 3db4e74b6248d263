"""The served policy as ONNX graphs, node by node: the arithmetic of `served`, at any N and K.

Written out instead of traced: torch's tracing exporter is deprecated and cannot follow a layer norm over a dynamic
shape, its successor needs a further package, and in a control loop every node that they would add costs time.
The check in `parity` holds the result against torch.

Matrices of the networks may be stored in fewer bits (`precision`). A Cast, and of int8 a Mul by the scales, make
float32 of them again; both are of constants alone, so ONNX Runtime computes them once, as it loads the graph. Why
neither DequantizeLinear nor products of whole numbers take their place is said in docs/bundle.md.

The service answers several robots in one run, and no answer may depend on who shares it, not in its last bit. ONNX
Runtime computes Softplus and Log of many values with the processor's vectors, and of what is left over with other
code; so each situation has whole vectors of them (`_whole`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn.functional import pad

from cvpo.bundle import (
    CRITIC_GRAPH,
    FLOAT,
    INPUTS,
    IR_VERSION,
    OPSET,
    OUTPUTS,
    POLICY_GRAPH,
    PORTS,
    SITUATION,
    Port,
    Precision,
)
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast import QUANTILES, TIMES, CostForecast
from cvpo.calibration.shift import FARTHEST
from cvpo.errors import BundleError
from cvpo.exporting.precision import store
from cvpo.exporting.served import Answering, Served
from cvpo.learning.networks import (
    MAX_SPREAD,
    MIN_STANDARD_DEVIATION,
    NEAREST,
    NORM_EPSILON,
    NORMALIZED_BOUND,
    VARIANCE_FLOOR,
    GaussianPolicy,
)

_VECTOR = 16  # float32, the widest that a processor has

# What the networks compute, by fixed names: all that the rest of a graph is made from, as in `NetworkValues`.
NORMALIZED, CANDIDATE_ACTION = "normalized", "candidate_action"
CANDIDATE_REWARD_VALUE, CANDIDATE_COST_VALUE = "candidate_reward_value", "candidate_cost_value"
NETWORK_VALUES: Mapping[str, Port] = {
    NORMALIZED: Port(FLOAT, "NF"),
    CANDIDATE_ACTION: Port(FLOAT, "NKA"),
    CANDIDATE_REWARD_VALUE: Port(FLOAT, "NK"),
    CANDIDATE_COST_VALUE: Port(FLOAT, "NCK"),
    "shift_score": PORTS["shift_score"],
}


def policy_graph(served: Served, precision: Precision = "float32") -> bytes:
    """`policy.onnx`, which computes what `Served.act` does.

    Args:
        served: its model rounded to the precision (`cvpo.exporting.precision.rounded`).
        precision: that the matrices of the networks are stored in.
    """
    graph = _Graph(_sizes(served), precision)
    standardized = _normalize(graph, served)
    _sample(graph, served.model.policy)
    _value(graph, served)
    _shift_score(graph, served, standardized)
    return _finish(POLICY_GRAPH, graph, served)


def critic_graph(served: Served, precision: Precision = "float32") -> bytes:
    """`critic.onnx`, which computes what `Served.evaluate` does; for the arguments see `policy_graph`."""
    graph = _Graph(_sizes(served), precision)
    action = graph.node("Sub", "action", graph.tensor(served.action_low))
    action = graph.node("Div", action, graph.tensor((served.action_high - served.action_low) / 2))
    unit = graph.clip(graph.node("Sub", action, graph.floats(1.0)), -1.0, 1.0)
    graph.node("Unsqueeze", unit, graph.integers(1), output=CANDIDATE_ACTION)
    standardized = _normalize(graph, served)
    _value(graph, served)
    _shift_score(graph, served, standardized)
    return _finish(CRITIC_GRAPH, graph, served)


def graph_again(name: str, exported: bytes, answering: Answering) -> bytes:
    """An exported graph whose networks answer with another forecast and map of costs.

    With those that it was exported with, it is the same to the byte.

    Args:
        name: POLICY_GRAPH or CRITIC_GRAPH.
        exported: of a verified bundle.
        answering: what is made of the values of its networks.

    Raises:
        BundleError: its networks cannot be told from the rest.
    """
    return _finish(name, _Graph.of_networks(name, exported), answering)


def networks_graph(name: str, exported: bytes) -> bytes:
    """The networks of an exported graph, as a graph whose outputs are NETWORK_VALUES; in the critic's, K is 1.

    Raises:
        BundleError: its networks cannot be told from the rest.
    """
    graph = _Graph.of_networks(name, exported)
    inputs = [port for port in INPUTS[name] if port not in SITUATION]
    return graph.serialize(f"networks of {name}", inputs, NETWORK_VALUES)


def _sizes(served: Served) -> dict[str, int]:
    return {"O": served.model.normalizer.observation_size, "A": len(served.action_low), "C": served.cost_map.num_costs}


def _whole(size: int) -> list[int]:
    """Places of so many values, and of some of them again until they are whole vectors."""
    return [place % size for place in range(-(-size // _VECTOR) * _VECTOR)]


class _Graph:
    """A graph under construction; a value is known by its name, and by a number where it needs none."""

    def __init__(self, sizes: Mapping[str, int], precision: Precision = "float32") -> None:
        """An empty graph with sizes of the axes O, A and C; other axes are dynamic.

        The precision is that of the matrices that networks are added with.
        """
        self._sizes, self._precision = sizes, precision
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    @classmethod
    def of_networks(cls, name: str, exported: bytes) -> Self:
        """The part of an exported graph that NETWORK_VALUES follow from; a BundleError if that cannot be told."""
        written = onnx.load_model_from_string(exported).graph
        needed, kept = set(NETWORK_VALUES), []
        for node in reversed(written.node):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        untold = set(NETWORK_VALUES).difference(*(node.output for node in kept))
        if untold or needed.intersection(SITUATION):
            raise BundleError(
                f"{name} does not say what of it the networks are, so it cannot be calibrated again. "
                "Export the policy again, with this version."
            )
        graph = cls(_fixed_sizes(written))
        names = {c.name: graph.array(numpy_helper.to_array(c)) for c in written.initializer if c.name in needed}
        for node in reversed(kept):
            attributes = {part.name: helper.get_attribute_value(part) for part in node.attribute}
            inputs = [names.get(value, value) for value in node.input]
            outputs = [value if value in NETWORK_VALUES else "" for value in node.output]
            names.update(zip(node.output, graph._add(node.op_type, inputs, outputs, attributes), strict=True))
        return graph

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        return self._add(operator, inputs, [output], attributes)[0]

    def split(self, value: str, axis: int, *sizes: int, outputs: tuple[str, ...] = ()) -> list[str]:
        if len(sizes) == 1:
            return [value]
        return self._add("Split", [value, self.integers(*sizes)], outputs or [""] * len(sizes), {"axis": axis})

    def concat(self, values: Sequence[str], axis: int) -> str:
        return values[0] if len(values) == 1 else self.node("Concat", *values, axis=axis)

    def _add(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Any]
    ) -> list[str]:
        number = f"{operator}_{len(self._nodes)}"
        numbers = [number] if len(outputs) == 1 else [f"{number}_{part}" for part in range(len(outputs))]
        names = [output or number for output, number in zip(outputs, numbers, strict=True)]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def array(self, value: NDArray[Any]) -> str:
        constants = self._constants
        stored: NDArray[Any] = np.asarray(value, order="C")
        tensor = numpy_helper.from_array(stored, f"constant_{len(constants)}")
        return constants.setdefault((stored.dtype.name, stored.shape, stored.tobytes()), tensor).name

    def tensor(self, value: Tensor) -> str:
        return self.array(value.detach().numpy().astype(np.float32))

    def floats(self, value: float) -> str:
        return self.array(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.array(np.array(values, np.int64))

    def cast(self, value: str, to: int) -> str:
        return self.node("Cast", value, to=to)

    def unsqueeze(self, value: str, *axes: int) -> str:
        return self.node("Unsqueeze", value, self.integers(*axes))

    def clip(self, value: str, low: float, high: float) -> str:
        return self.node("Clip", value, self.floats(low), self.floats(high))

    def reduce(self, operator: str, value: str, axis: int) -> str:
        return self.node(operator, value, self.integers(axis), keepdims=0)

    def weight(self, value: Tensor, outputs: int | None = None) -> str:
        """A matrix of a network, as the graph's precision stores it; see `cvpo.exporting.precision.store`."""
        stored = store(value.detach().numpy(), self._precision, outputs)
        name = self.array(stored.values)
        whole = name if self._precision == "float32" else self.cast(name, FLOAT)
        return whole if stored.scale is None else self.node("Mul", whole, self.array(stored.scale))

    def linear(self, value: str, layer: nn.Linear, outputs: int | None = None) -> str:
        return self.gemm(value, self.weight(layer.weight, outputs), layer.bias)

    def gemm(self, value: str, weight: str, bias: Tensor) -> str:
        """A layer with a weight [outputs, inputs]."""
        return self.node("Gemm", value, weight, self.tensor(bias), transB=1)

    def products(self, value: str, matrices: Sequence[str]) -> str:
        """Of the values of each of E members, [N, E, K, ·], with its matrix. One by one: ONNX Runtime lays a matrix out
        for the processor only if it has two axes, and takes a fifth less time then, when it was out of the cache."""
        parts = self.split(value, 1, *[1] * len(matrices))
        return self.concat([self.node("MatMul", *pair) for pair in zip(parts, matrices, strict=True)], 1)

    def whole(self, operator: str, value: str, weight: Tensor) -> tuple[str, Tensor]:
        """Of values [N, size, ...] in whole vectors, and the weights [·, size] that are to take them: of those that are
        there again, zero."""
        size = weight.shape[1]
        places = _whole(size)
        again = self.node("Gather", value, self.integers(*places), axis=1)
        return self.node(operator, again), pad(weight, (0, len(places) - size))

    def norm_relu(self, value: str, width: int) -> str:
        scale = self.array(np.ones(width, np.float32))
        return self.node("Relu", self.node("LayerNormalization", value, scale, axis=-1, epsilon=NORM_EPSILON))

    def serialize(self, name: str, inputs: Iterable[str], outputs: Iterable[str]) -> bytes:
        """The graph with these of PORTS and NETWORK_VALUES as its interface."""

        def describe(ports: Iterable[str]) -> list[onnx.ValueInfoProto]:
            known = {port: {**PORTS, **NETWORK_VALUES}[port] for port in ports}
            return [
                helper.make_tensor_value_info(port, kind, [self._sizes.get(axis, axis) for axis in axes])
                for port, (kind, axes) in known.items()
            ]

        graph = helper.make_graph(self._nodes, name, describe(inputs), describe(outputs), [*self._constants.values()])
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, producer_name="cvpo", opset_imports=[opset], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def _fixed_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Sizes of the axes O, A and C."""
    return {
        axis: dimension.dim_value
        for port in graph.input
        for axis, dimension in zip(PORTS[port.name].axes, port.type.tensor_type.shape.dim, strict=True)
        if dimension.dim_value
    }


class _Asked(NamedTuple):
    """What is asked of a map of costs, as it finds it in its tables."""

    cell: str  # [N], of steps left
    within: str  # [N, C, K, M + 1], whether an atom is at most what is allowed


class _Judged(NamedTuple):
    asked: _Asked
    probability: str  # [N, C, K]
    costs: str  # [N, 4·C, K]: cost_value, cost_to_go, cost_upper, violation_probability


def _normalize(graph: _Graph, served: Served) -> str:
    """Add NORMALIZED, and return what it is before it is bounded."""
    seen = served.model.normalizer
    features = "observation"
    if seen.closeness:
        near = graph.node("Gather", "observation", graph.integers(*seen.closeness), axis=1)
        away = graph.node("Sub", graph.floats(1 + NEAREST), graph.clip(near, 0.0, 1.0))
        features = graph.node("Concat", "observation", graph.node("Div", graph.floats(1.0), away), axis=1)
    centred = graph.node("Sub", features, graph.tensor(seen.mean))
    standardized = graph.node("Mul", centred, graph.tensor((seen.variance + VARIANCE_FLOOR).rsqrt()))
    graph.node("Clip", standardized, graph.floats(-NORMALIZED_BOUND), graph.floats(NORMALIZED_BOUND), output=NORMALIZED)
    return standardized


def _sample(graph: _Graph, policy: GaussianPolicy) -> None:
    width = policy.first.out_features
    hidden = graph.norm_relu(graph.linear(NORMALIZED, policy.first), width)
    hidden = graph.norm_relu(graph.linear(hidden, policy.second, -2), width)
    mean = graph.unsqueeze(graph.linear(hidden, policy.mean), 1)
    size = policy.spread.out_features
    places = _whole(size)
    spread = graph.gemm(hidden, graph.weight(policy.spread.weight[places]), policy.spread.bias[places])
    spread = graph.node("Gather", graph.node("Softplus", spread), graph.integers(*range(size)), axis=1)
    spread = graph.node("Tanh", graph.node("Div", spread, graph.floats(MAX_SPREAD)))
    spread = graph.node("Mul", spread, graph.floats(MAX_SPREAD))
    deviation = graph.unsqueeze(graph.node("Add", spread, graph.floats(MIN_STANDARD_DEVIATION)), 1)
    noise = "noise"
    if policy.correlation is not None:
        noise = _correlated(graph, policy.mean.out_features, graph.linear(hidden, policy.correlation))
    graph.node("Tanh", graph.node("Add", mean, graph.node("Mul", deviation, noise)), output=CANDIDATE_ACTION)


def _correlated(graph: _Graph, A: int, below: str) -> str:  # noqa: N803
    """The noise with the policy's correlations, [N, K, A]; `below` [N, A·(A − 1)/2] is what is under its diagonal."""
    places = np.zeros((A * (A - 1) // 2, A * A), np.float32)
    row, column = np.tril_indices(A, -1)
    places[np.arange(len(places)), row * A + column] = 1.0
    rows = graph.node(
        "Add", graph.node("MatMul", below, graph.array(places)), graph.array(np.eye(A, dtype=np.float32).ravel())
    )
    rows = graph.node("Reshape", rows, graph.integers(-1, A, A))
    length = graph.node("ReduceL2", rows, graph.integers(2), keepdims=1)
    return graph.node("MatMul", "noise", graph.node("Transpose", graph.node("Div", rows, length), perm=[0, 2, 1]))


def _value(graph: _Graph, served: Served) -> None:
    """`Model.values` of the candidates."""
    critics = served.model.critics
    E, _, H = critics.observation_weight.shape
    C, reward_heads, cost_heads = critics.num_costs, critics.reward_heads, critics.cost_heads
    observation_weight = graph.weight(critics.observation_weight.mT.flatten(0, 1))
    state = graph.gemm(NORMALIZED, observation_weight, critics.first_bias.flatten())
    state = graph.node("Reshape", state, graph.integers(-1, E, 1, H))
    first = graph.node("MatMul", graph.unsqueeze(CANDIDATE_ACTION, 1), graph.weight(critics.action_weight))
    hidden = graph.norm_relu(graph.node("Add", first, state), H)  # [N, E, K, H]
    hidden = graph.products(hidden, [graph.weight(weight, -1) for weight in critics.second_weight])
    hidden = graph.norm_relu(graph.node("Add", hidden, graph.tensor(critics.second_bias)), H)
    value = graph.reduce("ReduceSum", graph.node("Mul", hidden, graph.weight(critics.output_weight.mT)), 3)
    value = graph.node("Add", value, graph.tensor(critics.output_bias[..., 0]))  # [N, E, K]
    reward_value, cost_value = graph.split(value, 1, reward_heads, cost_heads * C)
    reward_value = graph.reduce("ReduceMean", reward_value, 1)
    graph.node("Mul", reward_value, graph.floats(served.reward_scale), output=CANDIDATE_REWARD_VALUE)
    mean = torch.eye(C).tile(cost_heads) / cost_heads * served.model.cost_factor[:, None]  # of the heads of each cost
    cost_value, mean = graph.whole("Softplus", cost_value, mean)
    graph.node("MatMul", graph.tensor(mean), cost_value, output=CANDIDATE_COST_VALUE)


def _shift_score(graph: _Graph, served: Served, standardized: str) -> None:
    shift = served.shift
    bounded = graph.clip(standardized, -FARTHEST, FARTHEST)
    weight = graph.tensor(torch.cat([shift.directions, -shift.directions], 1).T)
    beyond = graph.gemm(bounded, weight, torch.cat([-shift.high, shift.low]))
    graph.node("Relu", graph.reduce("ReduceMax", beyond, 1), output="shift_score")


def _judge(graph: _Graph, answering: Answering) -> _Judged:
    steps_left = graph.unsqueeze(graph.cast("steps_left", FLOAT), 1)
    cost_value = graph.unsqueeze(CANDIDATE_COST_VALUE, 3)
    forecast = answering.forecast
    asked_with = cost_value if forecast is None else _forecast(graph, forecast, cost_value, steps_left)
    asked, *predicted = _predict(graph, answering.cost_map, asked_with, steps_left)
    return _Judged(asked, predicted[-1], graph.node("Concat", CANDIDATE_COST_VALUE, *predicted, axis=1))


def _forecast(graph: _Graph, forecast: CostForecast, cost_value: str, steps_left: str) -> str:
    """`CostForecast.forward`, [N, C, K, 1], of cost values of that shape."""
    C, _, F = forecast.state_weight.shape
    # Steps and their logarithm go in as they are: what `CostForecast.times` makes of them is left to the weights.
    times = torch.tensor([2 / forecast.horizon, 1 / np.log(forecast.horizon + 1)])
    of_times = forecast.state_weight[:, -TIMES:]
    weight = torch.cat([forecast.state_weight[:, :-TIMES], of_times * times[:, None]], 1).mT.flatten(0, 1)
    bias = (forecast.first_bias - of_times[:, :1]).flatten()
    logarithm, of_logarithm = graph.whole("Log", steps_left, weight[:, -1:])
    state = graph.node("Concat", NORMALIZED, steps_left, logarithm, axis=1)
    state = graph.gemm(state, graph.tensor(torch.cat([weight[:, :-1], of_logarithm], 1)), bias)
    state = graph.node("Reshape", state, graph.integers(-1, C, 1, F))
    value = graph.node("Div", cost_value, graph.node("Add", cost_value, graph.tensor(forecast.typical_value)))
    value = graph.node("Mul", value, graph.tensor(forecast.value_weight))  # [N, C, K, F]
    hidden = graph.node("Relu", graph.node("Add", state, value))
    hidden = graph.products(hidden, [graph.tensor(weight) for weight in forecast.second_weight])
    hidden = graph.node("Relu", graph.node("Add", hidden, graph.tensor(forecast.second_bias)))
    output = graph.products(hidden, [graph.tensor(weight) for weight in forecast.output_weight])
    increments = graph.node("Relu", graph.node("Add", output, graph.tensor(forecast.output_bias)))  # [N, C, K, Q]
    # The mean of quantiles that are sums of increments: the first one counts Q times, the last once.
    count = np.arange(len(QUANTILES), 0, -1.0)[:, None] / len(QUANTILES)
    return graph.node("MatMul", increments, graph.array(count.astype(np.float32)))


def _predict(graph: _Graph, cost_map: CostMap, forecast: str, steps_left: str) -> tuple[_Asked, str, str, str]:
    """`CostMap.forward`: what it was asked, and the fields of CostPrediction, [N, C, K] each."""
    C, B, M = cost_map.num_costs, cost_map.num_nodes, cost_map.num_atoms
    # One more ramp, which never begins: the first that has not begun is then the cell.
    lower = pad(cost_map.horizon_lower, (0, 1), value=torch.inf)
    along_horizon = graph.node("Sub", steps_left, graph.tensor(lower))
    along_horizon = graph.node("Div", along_horizon, graph.tensor(pad(cost_map.horizon_width, (0, 1), value=1.0)))
    along_horizon = graph.clip(along_horizon, 0.0, 1.0)
    cell = graph.node("ArgMin", along_horizon, axis=1, keepdims=0)  # [N]
    table = graph.node("MatMul", along_horizon, graph.tensor(pad(cost_map.table, (0, 0, 0, 1))))
    table = graph.node("Reshape", table, graph.integers(-1, C, B, M + 1))
    along_nodes = graph.node("Sub", forecast, graph.tensor(cost_map.node_lower))
    along_nodes = graph.node("Div", along_nodes, graph.tensor(cost_map.node_width))
    values = graph.node("MatMul", graph.clip(along_nodes, 0.0, 1.0), table)  # [N, C, K, M + 1]: atoms, mean

    # In the mean's place an atom of an infinite cost, which is within only what is not constrained.
    atoms = graph.node("Add", values, graph.array(np.array([0.0] * M + [np.inf], np.float32)))
    asked = _Asked(cell, graph.node("LessOrEqual", atoms, graph.unsqueeze("cost_allowed", 2, 3)))
    bound = _of_cell(graph, asked, cost_map.bound, -torch.inf)
    cost_upper = graph.reduce("ReduceMax", graph.node("Add", values, bound), 3)
    mean = graph.node("Gather", values, graph.array(np.array(M)), axis=3)
    return asked, mean, cost_upper, _beyond(graph, cost_map.tail, asked)


def _beyond(graph: _Graph, tail: Tensor, asked: _Asked) -> str:
    """Probability beyond what is allowed, [N, C, K]: that beyond the last atom within."""
    beyond = _of_cell(graph, asked, tail[..., 1:], 0.0)  # each atom; descending
    return graph.reduce("ReduceMin", graph.node("Where", asked.within, beyond, graph.floats(1.0)), 3)


def _of_cell(graph: _Graph, asked: _Asked, rows: Tensor, last: float) -> str:
    """The row of the cell, [N, C, 1, M + 1], with one more value."""
    table = graph.tensor(pad(rows, (0, 1), value=last).unsqueeze(2))
    return graph.node("Gather", table, asked.cell, axis=0)


def _finish(name: str, graph: _Graph, answering: Answering) -> bytes:
    """Add what is made of the networks' values: the chosen action, what is predicted of it, and its flags."""
    judged = _judge(graph, answering)
    costs = _choose(graph, answering, judged) if name == POLICY_GRAPH else _only(graph, judged)
    C = answering.cost_map.num_costs
    graph.split(costs, 1, C, C, C, C, outputs=("cost_value", "cost_to_go", "cost_upper", "violation_probability"))
    graph.node("Greater", "violation_probability", "alarm_level", output="violation")
    return graph.serialize(name, INPUTS[name], OUTPUTS[name])


def _choose(graph: _Graph, answering: Answering, judged: _Judged) -> str:
    """The action of `Answering.act`; its costs are returned, [N, 4·C]."""
    cost_map, probability = answering.cost_map, judged.probability
    if not torch.equal(cost_map.choosing_tail, cost_map.tail):  # a shield was calibrated
        probability = _beyond(graph, cost_map.choosing_tail, judged.asked)
    flagged = graph.cast(graph.node("Greater", probability, graph.unsqueeze("alarm_level", 1)), FLOAT)  # [N, C, K]
    of_first = graph.node("Gather", flagged, graph.integers(0), axis=2)  # [N, C, 1]
    flags = graph.reduce("ReduceSum", flagged, 1)  # [N, K]
    fewest = graph.reduce("ReduceMin", flags, 1)
    graph.node("Greater", graph.floats(1.0), fewest, output="feasible")
    relative = graph.node("Div", CANDIDATE_COST_VALUE, graph.tensor(answering.typical_cost_value))
    worst = graph.reduce("ReduceMax", graph.node("Mul", relative, of_first), 1)  # [N, K]
    more = graph.node("Greater", flags, graph.unsqueeze(fewest, 1))
    worst = graph.node("Where", more, graph.floats(np.inf), worst)
    graph.node("ArgMin", worst, axis=1, keepdims=0, output="chosen")

    row = graph.unsqueeze("chosen", 1)  # [N, 1]
    low, high = graph.tensor(answering.action_low), graph.tensor(answering.action_high)
    action = graph.node("Add", graph.node("GatherND", CANDIDATE_ACTION, row, batch_dims=1), graph.floats(1.0))
    action = graph.node("Mul", action, graph.tensor((answering.action_high - answering.action_low) / 2))
    graph.node("Min", graph.node("Max", graph.node("Add", low, action), low), high, output="action")
    graph.node("GatherND", CANDIDATE_REWARD_VALUE, row, batch_dims=1, output="reward_value")
    by_candidate = graph.node("Transpose", judged.costs, perm=[0, 2, 1])  # [N, K, 4·C]
    return graph.node("GatherND", by_candidate, row, batch_dims=1)


def _only(graph: _Graph, judged: _Judged) -> str:
    """The only action, which was asked about; its costs are returned, [N, 4·C]."""
    graph.node("Squeeze", CANDIDATE_REWARD_VALUE, graph.integers(1), output="reward_value")
    return graph.node("Squeeze", judged.costs, graph.integers(2))
