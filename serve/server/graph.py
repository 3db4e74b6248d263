"""One graph of a bundle, loaded and run on arrays by name."""

import math
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle import BOOL, FLOAT, INPUTS, INT64, OUTPUTS, PORTS
from serve.errors import InternalError, RefusedBundleError

# Since 1.29 the import itself starts an upload thread and writes into the user's cache folder, unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

Arrays = dict[str, NDArray[Any]]  # by name of input or output
_DTYPES: dict[int, type[np.generic]] = {FLOAT: np.float32, INT64: np.int64, BOOL: np.bool_}

_BOUND = "cost_upper"
_FINITE = {port for port, (kind, _) in PORTS.items() if kind == FLOAT and port != _BOUND}  # all others


class Graph:
    """One graph; `read_bundle` has checked its interface. Safe to use from several threads."""

    def __init__(self, name: str, graph: bytes, sizes: Mapping[str, int]) -> None:
        """Load it.

        Args:
            name: POLICY_GRAPH or CRITIC_GRAPH.
            graph: its ONNX file.
            sizes: of the axes O, A and C.

        Raises:
            RefusedBundleError: it does not load.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # a small network gains nothing from more, and spinning threads cost the tail
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors have no common parent
            raise RefusedBundleError(
                f"{name} cannot be loaded: {str(error).splitlines()[0]} Export it again."
            ) from error
        self._outputs = {output: tuple(sizes[axis] for axis in PORTS[output].axes[1:]) for output in OUTPUTS[name]}
        self._one = _OneRow(self._session, name, sizes)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs for inputs of the graph's types and axes.

        Raises:
            InternalError: it fails, an output has other axes, or is not finite; cost_upper may be infinite.
        """
        try:
            if self._one.fits(inputs) and (answer := self._one.run(inputs)) is not None:
                return answer
            values: Arrays = dict(zip(self._outputs, self._session.run(list(self._outputs), inputs), strict=True))
        except InternalError:
            raise
        except Exception as error:  # ONNX Runtime's own errors have no common parent
            raise InternalError(str(error)) from error
        count = len(inputs["observation"])
        for name, shape in self._outputs.items():
            if values[name].shape != (count, *shape):
                raise InternalError(f"The graph gave {name} of shape {values[name].shape} for {count} situations.")
        finite = np.concatenate([values[name].ravel() for name in self._outputs if name in _FINITE])
        _check(finite, values[_BOUND].ravel())
        return values


class _OneRow:
    """One situation and one candidate, on memory that the session knows: it allocates and looks up nothing, which is a
    fifth of what such a run costs."""

    def __init__(self, session: ort.InferenceSession, name: str, sizes: Mapping[str, int]) -> None:
        self._session = session
        self._names = OUTPUTS[name]
        self._lock = threading.Lock()  # there is one such memory; who comes while it is in use goes the other way
        shapes = {
            port: tuple(sizes.get(axis, 1) for axis in PORTS[port].axes) for port in (*INPUTS[name], *self._names)
        }
        dtypes = {port: np.dtype(_DTYPES[PORTS[port].type]) for port in shapes}
        self._widest = INPUTS[name][1]  # noise or action: its shape has both N and K
        self._shape = shapes[self._widest]
        self._binding = session.io_binding()
        self._inputs = [(port, np.zeros(shapes[port], dtypes[port])) for port in INPUTS[name]]
        for port, field in self._inputs:
            self._binding.bind_input(port, "cpu", 0, field.dtype, field.shape, field.ctypes.data)
        # One row of one record, whose floats come first, those that must be finite before all others.
        order = sorted(self._names, key=lambda port: (dtypes[port] != np.float32, port not in _FINITE))
        self._record = np.dtype([(port, dtypes[port], shapes[port][1:]) for port in order], align=True)
        self._memory = np.zeros(self._record.itemsize, np.uint8)
        row = self._memory.view(self._record)
        for port in self._names:
            self._binding.bind_output(port, "cpu", 0, dtypes[port], shapes[port], row[port].ctypes.data)
        finite = sum(row[port].nbytes for port in order if port in _FINITE)
        self._finite, self._cost_upper = self._memory[:finite].view(np.float32), row[_BOUND].ravel()

    def fits(self, inputs: Mapping[str, NDArray[Any]]) -> bool:
        """Whether it is one situation with one candidate."""
        return inputs[self._widest].shape == self._shape

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays | None:
        """Return the outputs, or None where another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            for name, field in self._inputs:
                field[...] = inputs[name]
            self._session.run_with_iobinding(self._binding)
            _check(self._finite, self._cost_upper)
            values = np.frombuffer(bytearray(self._memory), self._record)
        finally:
            self._lock.release()
        return {name: values[name] for name in self._names}


def _check(finite: NDArray[np.float32], cost_upper: NDArray[np.float32]) -> None:
    """Refuse what must not be sent. In lists: for a handful of numbers numpy takes three times as long."""
    # A sum of float32 in Python's floats does not overflow, so it is finite where every one of them is.
    if not math.isfinite(sum(finite.tolist())):
        raise InternalError("The policy predicted or chose a value that is not finite.")
    if any(map(math.isnan, cost_upper.tolist())):  # infinity is an honest bound
        raise InternalError("The policy predicted a bound that is not a number.")
