"""One graph of a bundle, loaded and run on arrays by name."""

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
            InternalError: an output has other axes.
        """
        if self._one.fits(inputs) and (answer := self._one.run(inputs)) is not None:
            return answer
        values: Arrays = dict(zip(self._outputs, self._session.run(list(self._outputs), inputs), strict=True))
        count = len(inputs["observation"])
        for name, shape in self._outputs.items():
            if values[name].shape != (count, *shape):
                raise InternalError(f"The graph gave {name} of shape {values[name].shape} for {count} situations.")
        return values


class _OneRow:
    """One situation and one candidate, on memory that the session knows: it allocates and looks up nothing, which is a
    fifth of what such a run costs."""

    def __init__(self, session: ort.InferenceSession, name: str, sizes: Mapping[str, int]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs, self._outputs = _record(INPUTS[name], sizes), _record(OUTPUTS[name], sizes)
        self._fields = [(port, self._inputs[port]) for port in INPUTS[name]]
        self._names = OUTPUTS[name]
        self._widest = INPUTS[name][1]  # noise or action: its shape has both N and K
        self._shape = self._inputs[self._widest].shape
        for bind, record, ports in (
            (self._binding.bind_input, self._inputs, INPUTS[name]),
            (self._binding.bind_output, self._outputs, OUTPUTS[name]),
        ):
            for port in ports:
                field = record[port]
                bind(port, "cpu", 0, field.dtype, field.shape, field.ctypes.data)
        self._lock = threading.Lock()  # there is one such memory; who comes while it is in use goes the other way

    def fits(self, inputs: Mapping[str, NDArray[Any]]) -> bool:
        """Whether it is one situation with one candidate."""
        return inputs[self._widest].shape == self._shape

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays | None:
        """Return the outputs, or None where another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            for name, field in self._fields:
                field[...] = inputs[name]
            self._session.run_with_iobinding(self._binding)
            values = self._outputs.copy()
        finally:
            self._lock.release()
        return {name: values[name] for name in self._names}


def _record(ports: tuple[str, ...], sizes: Mapping[str, int]) -> NDArray[Any]:
    """Memory with a field per input or output, for N and K of 1."""
    fields = [
        (port, _DTYPES[PORTS[port].type], tuple(sizes.get(axis, 1) for axis in PORTS[port].axes)) for port in ports
    ]
    return np.zeros((), np.dtype(fields, align=True))
