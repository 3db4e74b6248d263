"""The served policy as ONNX graphs, node by node: the arithmetic of `served`, at any N and K.

Written out instead of traced: torch's tracing exporter is deprecated and cannot follow a layer norm over a dynamic
shape, its successor needs a further package, and in a control loop every node that they would add costs time.
The parity check of `export` holds the result against torch.

Matrices of the networks may be stored in fewer bits (`precision`). A Cast, and of int8 a Mul by the scales, make
float32 of them again; both are of constants alone, so ONNX Runtime computes them once, as it loads the graph. Why
neither DequantizeLinear nor products of whole numbers take their place is said in docs/bundle.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from cvpo.bundle import (
    CRITIC_GRAPH,
    FLOAT,
    INPUTS,
    INT64,
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
from cvpo.calibration.forecast import QUANTILES, CostForecast
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
        return self._add("Split", [value, self.integers(*sizes)], outputs or [""] * len(sizes), {"axis": axis})

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
        stored: NDArray[Any] = np.ascontiguousarray(value)  # gives a scalar an axis
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

    def reduce(self, operator: str, value: str, axis: int, output: str = "") -> str:
        return self.node(operator, value, self.integers(axis), keepdims=0, output=output)

    def weight(self, value: Tensor, outputs: int | None = None) -> str:
        """A matrix of a network, as the graph's precision stores it; see `cvpo.exporting.precision.store`."""
        stored = store(value.detach().numpy(), self._precision, outputs)
        name = self.array(stored.values)
        whole = name if self._precision == "float32" else self.cast(name, FLOAT)
        return whole if stored.scale is None else self.node("Mul", whole, self.array(stored.scale))

    def linear(self, value: str, layer: nn.Linear, outputs: int | None = None) -> str:
        return self.node("Gemm", value, self.weight(layer.weight, outputs), self.tensor(layer.bias), transB=1)

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
    within: str  # [N, C, K], how many atoms are at most what is allowed
    unconstrained: str  # [N, C, 1]


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
    spread = graph.node("Softplus", graph.linear(hidden, policy.spread))
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
    C = critics.num_costs
    state = graph.node("MatMul", NORMALIZED, graph.weight(critics.observation_weight))
    state = graph.node("Add", state, graph.tensor(critics.first_bias))  # [E, N, H]
    action_weight = graph.weight(critics.action_weight.unsqueeze(1))
    first = graph.node("MatMul", CANDIDATE_ACTION, action_weight)  # [E, N, K, H]
    first = graph.node("Add", first, graph.unsqueeze(state, 2))
    hidden = graph.norm_relu(graph.node("Reshape", first, graph.integers(E, -1, H)), H)
    hidden = graph.node("MatMul", hidden, graph.weight(critics.second_weight, -1))
    hidden = graph.norm_relu(graph.node("Add", hidden, graph.tensor(critics.second_bias)), H)
    value = graph.node("MatMul", hidden, graph.weight(critics.output_weight))
    value = graph.node("Add", value, graph.tensor(critics.output_bias))  # [E, N·K, 1]
    reward_value, cost_value = graph.split(value, 0, critics.reward_heads, critics.cost_heads * C)

    candidates = graph.node("Shape", CANDIDATE_ACTION, start=0, end=2)
    shape = graph.node("Concat", graph.integers(critics.reward_heads), candidates, axis=0)
    reward_value = graph.reduce("ReduceMean", graph.node("Reshape", reward_value, shape), 0)
    graph.node("Mul", reward_value, graph.floats(served.reward_scale), output=CANDIDATE_REWARD_VALUE)
    shape = graph.node("Concat", graph.integers(critics.cost_heads, C), candidates, axis=0)
    cost_value = graph.node("Reshape", graph.node("Softplus", cost_value), shape)
    cost_value = graph.reduce("ReduceMean", cost_value, 0)  # [C, N, K]
    cost_value = graph.node("Mul", cost_value, graph.tensor(served.model.cost_factor.view(C, 1, 1)))
    graph.node("Transpose", cost_value, perm=[1, 0, 2], output=CANDIDATE_COST_VALUE)


def _shift_score(graph: _Graph, served: Served, standardized: str) -> None:
    shift = served.shift
    bounded = graph.clip(standardized, -FARTHEST, FARTHEST)
    along = graph.node("MatMul", bounded, graph.tensor(shift.directions))
    below = graph.node("Sub", graph.tensor(shift.low), along)
    above = graph.node("Sub", along, graph.tensor(shift.high))
    graph.reduce("ReduceMax", graph.node("Max", below, above, graph.floats(0.0)), 1, output="shift_score")


def _judge(graph: _Graph, answering: Answering) -> _Judged:
    forecast = CANDIDATE_COST_VALUE if answering.forecast is None else _forecast(graph, answering.forecast)
    asked, *predicted = _predict(graph, answering.cost_map, forecast)
    return _Judged(asked, predicted[-1], graph.node("Concat", CANDIDATE_COST_VALUE, *predicted, axis=1))


def _forecast(graph: _Graph, forecast: CostForecast) -> str:
    """`CostForecast.forward`, [N, C, K]."""
    C, _, F = forecast.state_weight.shape
    steps = graph.unsqueeze(graph.cast("steps_left", FLOAT), 1)
    share = graph.node("Sub", graph.node("Mul", steps, graph.floats(2 / forecast.horizon)), graph.floats(1.0))
    logarithm = graph.node("Mul", graph.node("Log", steps), graph.floats(1 / np.log(forecast.horizon + 1)))
    state = graph.node("Concat", NORMALIZED, share, logarithm, axis=1)
    state = graph.node("MatMul", state, graph.tensor(forecast.state_weight))
    state = graph.unsqueeze(graph.node("Add", state, graph.tensor(forecast.first_bias)), 2)  # [C, N, 1, F]
    by_constraint = graph.node("Transpose", CANDIDATE_COST_VALUE, perm=[1, 0, 2])  # [C, N, K]
    value = graph.unsqueeze(by_constraint, 3)
    typical = graph.tensor(forecast.typical_value.unsqueeze(1))
    value = graph.node("Div", value, graph.node("Add", value, typical))
    value = graph.node("Mul", value, graph.tensor(forecast.value_weight.unsqueeze(1)))  # [C, N, K, F]
    hidden = graph.node("Relu", graph.node("Add", state, value))
    hidden = graph.node("Reshape", hidden, graph.integers(C, -1, F))
    hidden = graph.node("MatMul", hidden, graph.tensor(forecast.second_weight))
    hidden = graph.node("Relu", graph.node("Add", hidden, graph.tensor(forecast.second_bias)))
    output = graph.node("MatMul", hidden, graph.tensor(forecast.output_weight))
    increments = graph.node("Relu", graph.node("Add", output, graph.tensor(forecast.output_bias)))  # [C, N·K, Q]
    # The mean of quantiles that are sums of increments: the first one counts Q times, the last once.
    count = np.arange(len(QUANTILES), 0, -1.0)[:, None] / len(QUANTILES)
    relative = graph.node("MatMul", increments, graph.array(count.astype(np.float32)))
    relative = graph.node("Reshape", relative, graph.node("Shape", by_constraint))
    return graph.node("Transpose", relative, perm=[1, 0, 2])


def _predict(graph: _Graph, cost_map: CostMap, forecast: str) -> tuple[_Asked, str, str, str]:
    """`CostMap.forward`: what it was asked, and the fields of CostPrediction, [N, C, K] each."""
    C, B, M = cost_map.num_costs, cost_map.num_nodes, cost_map.num_atoms
    steps_left = graph.unsqueeze(graph.cast("steps_left", FLOAT), 1)
    lower = graph.tensor(cost_map.horizon_lower)
    along_horizon = graph.node("Div", graph.node("Sub", steps_left, lower), graph.tensor(cost_map.horizon_width))
    table = graph.node("MatMul", graph.clip(along_horizon, 0.0, 1.0), graph.tensor(cost_map.table))
    table = graph.node("Reshape", table, graph.integers(-1, C, B, M + 1))
    along_nodes = graph.node("Sub", graph.unsqueeze(forecast, 3), graph.tensor(cost_map.node_lower))
    along_nodes = graph.node("Div", along_nodes, graph.tensor(cost_map.node_width))
    values = graph.node("MatMul", graph.clip(along_nodes, 0.0, 1.0), table)  # [N, C, K, M + 1]
    atoms, mean = graph.split(values, 3, M, 1)

    cell = graph.reduce("ReduceSum", graph.cast(graph.node("Greater", steps_left, lower), INT64), 1)  # [N]
    within = graph.node("LessOrEqual", atoms, graph.unsqueeze("cost_allowed", 2, 3))
    within = graph.reduce("ReduceSum", graph.cast(within, INT64), 3)
    unconstrained = graph.unsqueeze(graph.node("Equal", "cost_allowed", graph.floats(np.inf)), 2)
    asked = _Asked(cell, within, unconstrained)
    probability = _beyond(graph, cost_map.tail, asked)
    bound = graph.unsqueeze(graph.node("Gather", graph.tensor(cost_map.bound), cell, axis=0), 2)
    cost_upper = graph.reduce("ReduceMax", graph.node("Add", atoms, bound), 3)
    return asked, graph.node("Squeeze", mean, graph.integers(3)), cost_upper, probability


def _beyond(graph: _Graph, tail: Tensor, asked: _Asked) -> str:
    """Probability beyond what is allowed, [N, C, K]."""
    rows = graph.node("Gather", graph.tensor(tail), asked.cell, axis=0)
    probability = graph.node("GatherElements", rows, asked.within, axis=2)
    return graph.node("Where", asked.unconstrained, graph.floats(0.0), probability)


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
    flags = graph.cast(graph.node("Greater", probability, graph.unsqueeze("alarm_level", 1)), FLOAT)  # [N, C, K]
    of_first = graph.node("Gather", flags, graph.integers(0), axis=2)  # [N, C, 1]
    below = graph.node("Neg", graph.reduce("ReduceSum", flags, 1))  # minus their number, [N, K]
    fewest = graph.reduce("ReduceMax", below, 1)
    graph.node("Greater", fewest, graph.floats(-1.0), output="feasible")
    relative = graph.node("Div", CANDIDATE_COST_VALUE, graph.tensor(answering.typical_cost_value))
    worst = graph.reduce("ReduceMax", graph.node("Mul", relative, of_first), 1)  # [N, K]
    more = graph.node("Less", below, graph.unsqueeze(fewest, 1))
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
