"""The golden request: real situations with the answers that both graphs gave at export, to be given again anywhere."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle.interface import CRITIC_GRAPH, DTYPES, INPUTS, OUTPUTS, POLICY_GRAPH, PORTS
from cvpo.errors import BundleError

GRAPHS = (POLICY_GRAPH, CRITIC_GRAPH)
MOST_SITUATIONS, MOST_CANDIDATES = 256, 64

Arrays: TypeAlias = Mapping[str, NDArray[Any]]  # by name of input or output


@dataclass(frozen=True)
class Golden:
    """Inputs and expected outputs of each graph."""

    inputs: Mapping[str, Arrays]
    outputs: Mapping[str, Arrays]

    def render(self) -> bytes:
        """As JSON. It has no infinity: there, null is one."""
        document = {
            graph: {
                "inputs": {name: _plain(self.inputs[graph][name]) for name in INPUTS[graph]},
                "outputs": {name: _plain(self.outputs[graph][name]) for name in OUTPUTS[graph]},
            }
            for graph in GRAPHS
        }
        return (json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n").encode()

    def check(self, graph: str, found: Arrays, tolerance: float) -> None:
        """Compare what a graph answers here with what it answered at export.

        Args:
            graph: POLICY_GRAPH or CRITIC_GRAPH.
            found: its outputs for the inputs of this request.
            tolerance: see `slack`.

        Raises:
            BundleError: they differ by more; names the output and the difference.
        """
        for name, expected in self.outputs[graph].items():
            difference = distance(found[name], expected)
            bound = slack(name, expected, tolerance)
            if not difference <= bound:  # NaN is not
                raise BundleError(
                    f"{graph} does not answer the golden request as it did at export: {name} differs by "
                    f"{difference:.3g}, and {bound:.3g} is allowed. What runs it here computes something else; use "
                    "another version of onnxruntime, or export again."
                )


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference of two arrays of the same shape; infinity less itself is nothing."""
    if found.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return float(np.where(found == expected, 0.0, difference).max(initial=0.0))


def slack(name: str, values: NDArray[Any], tolerance: float) -> float:
    """By how much an output may differ: a share of its largest finite value; flags and choices not at all.

    Of a shift score at least that share of 1: inside of what was seen it is zero, and where a value never varied the
    least rounding lifts it.
    """
    if values.dtype != np.float32:
        return 0.0
    return tolerance * max(scale(values), 1.0 if name == "shift_score" else 0.0)


def scale(values: NDArray[Any]) -> float:
    """Largest finite size of an output's values."""
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    return float(finite.max(initial=0.0))


def read_golden(data: bytes, sizes: Mapping[str, int]) -> Golden:
    """Read a golden request.

    Args:
        data: as `Golden.render` wrote it.
        sizes: of the axes O, A and C, as the manifest states them.

    Raises:
        BundleError: it is not one, or not of these sizes.
    """
    try:
        document = json.loads(data)
        parts = {
            what: {
                graph: {name: _array(name, document[graph][what][name]) for name in names[graph]} for graph in GRAPHS
            }
            for what, names in (("inputs", INPUTS), ("outputs", OUTPUTS))
        }
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BundleError(f"the golden request is damaged: {type(error).__name__}: {error}.") from error
    golden = Golden(parts["inputs"], parts["outputs"])
    N, K, *_ = (*golden.inputs[POLICY_GRAPH]["noise"].shape, 0, 0)
    if not (0 < N <= MOST_SITUATIONS and 0 < K <= MOST_CANDIDATES):
        raise BundleError(f"the golden request has {N} situations and {K} candidates.")
    for graph, what in ((graph, what) for graph in GRAPHS for what in (golden.inputs, golden.outputs)):
        for name, array in what[graph].items():
            shape = tuple({**sizes, "N": N, "K": K}[axis] for axis in PORTS[name].axes)
            if array.shape != shape:
                raise BundleError(f"the golden request's {name} has the shape {array.shape}, not {shape}.")
    return golden


def _plain(array: NDArray[Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if value == math.inf else value

    # The shortest decimal that is this float32, not the longer one that is the same float64.
    values = array.astype(str).astype(np.float64) if array.dtype == np.float32 else array
    return plain(values.tolist())


def _array(name: str, values: Any) -> NDArray[Any]:
    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        if not isinstance(value, int | float | None):
            raise TypeError(f"{name} has a value that is no number")
        return math.inf if value is None else value

    return np.array(filled(values), DTYPES[PORTS[name].type])
