"""One graph of a bundle, loaded and run by the names of its inputs and outputs.

In lists: messages have no arrays, and when a network has passed through the cache, making an array of a handful of
numbers takes longer than all that is done with them.
"""

import itertools
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from cvpo.bundle import DTYPES, FLOAT, INPUTS, OUTPUTS, PORTS
from serve.errors import InternalError, RefusedBundleError

# Since 1.29 the import itself starts an upload thread and writes into the user's cache folder, unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

Inputs = Mapping[str, Any]  # by name, in nested lists or arrays
Outputs = dict[str, list[Any]]  # by name, in nested lists

_BOUND = "cost_upper"
_FINITE = {port for port, (kind, _) in PORTS.items() if kind == FLOAT and port != _BOUND}  # all others

SHARED_ROWS = 16  # robots that are answered in one run at most: it takes four times as long as of one

_WARM_SECONDS = 3e-3  # others have run it so shortly before: it is warm enough
_LONG_SECONDS = 2e-3  # and that takes too long: a step that comes meanwhile waits


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
        self._rows = [_Rows(self._session, name, sizes, count) for count in range(1, SHARED_ROWS + 1)]
        self._ran = self._seconds = 0.0  # when it was run last, of time.perf_counter, and how long that took

    def run(self, inputs: Inputs) -> Outputs:
        """Return the outputs for inputs of the graph's axes.

        Raises:
            InternalError: it fails, an output has other axes, or is not finite; cost_upper may be infinite.
        """
        started = time.perf_counter()
        try:
            count = len(inputs["observation"])
            one_candidate = "noise" not in inputs or len(inputs["noise"][0]) == 1
            if count <= SHARED_ROWS and one_candidate and (answer := self._rows[count - 1].run(inputs)) is not None:
                self._has_run(started)
                return answer
            given = {name: np.array(values, DTYPES[PORTS[name].type]) for name, values in inputs.items()}
            values = dict(zip(self._outputs, self._session.run(list(self._outputs), given), strict=True))
            self._has_run(started)
        except InternalError:
            raise
        except Exception as error:  # ONNX Runtime's own errors have no common parent
            self._seconds = math.inf  # on what it fails at it is not run for nobody
            raise InternalError(str(error)) from error
        for name, shape in self._outputs.items():
            if values[name].shape != (count, *shape):
                raise InternalError(f"The graph gave {name} of shape {values[name].shape} for {count} situations.")
        finite = np.concatenate([values[name].ravel() for name in self._outputs if name in _FINITE])
        _check(finite.tolist(), values[_BOUND].ravel().tolist())
        return {name: array.tolist() for name, array in values.items()}

    def keep_warm(self, since: float) -> float:
        """Run it for nobody; return the seconds it took, 0 where it takes long or others have run it after `since`."""
        started = time.perf_counter()
        others = since < self._ran and started - self._ran < _WARM_SECONDS
        if others or self._seconds > _LONG_SECONDS or not self._rows[0].run_again():
            return 0.0
        self._has_run(started)
        return self._seconds

    def _has_run(self, started: float) -> None:
        self._ran = time.perf_counter()
        self._seconds = self._ran - started


class _Rows:
    """So many situations with one candidate each, on memory that the session knows: it allocates and looks up nothing,
    which is a fifth of what a run of one situation costs."""

    def __init__(self, session: ort.InferenceSession, name: str, sizes: Mapping[str, int], count: int) -> None:
        self._session = session
        self._lock = threading.Lock()  # there is one such memory; who comes while it is in use goes the other way
        self._free = "noise" if "noise" in INPUTS[name] else "action"
        self._binding = session.io_binding()
        shapes = {port: tuple({**sizes, "N": count, "K": 1}[axis] for axis in PORTS[port].axes) for port in PORTS}
        self._input, self._input_layout = _bind(self._binding.bind_input, INPUTS[name], shapes)
        outputs = sorted(OUTPUTS[name], key=lambda port: (port not in _FINITE, port != _BOUND))
        self._output, self._output_layout = _bind(self._binding.bind_output, outputs, shapes)
        ends = [*itertools.accumulate(math.prod(shapes[port]) for port in outputs)]
        places = dict(zip(outputs, map(slice, [0, *ends], ends), strict=False))
        self._finite, self._cost_upper = slice(places[_BOUND].start), places[_BOUND]
        self._places: list[tuple[str, slice | list[slice]]] = [
            (port, place if len(shapes[port]) == 1 else _parts(place, count)) for port, place in places.items()
        ]

    def run(self, inputs: Inputs) -> Outputs | None:
        """Return the outputs, or None where another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            free = inputs[self._free]
            self._input_layout.pack_into(
                self._input,
                0,
                *chain.from_iterable(inputs["observation"]),
                *chain.from_iterable(chain.from_iterable(free) if self._free == "noise" else free),
                *inputs["steps_left"],
                *chain.from_iterable(inputs["cost_allowed"]),
                *inputs["alarm_level"],
            )
            self._session.run_with_iobinding(self._binding)
            values = self._output_layout.unpack(self._output)
        finally:
            self._lock.release()
        _check(values[self._finite], values[self._cost_upper])
        return {
            port: [list(values[row]) for row in place] if isinstance(place, list) else list(values[place])
            for port, place in self._places
        }

    def run_again(self) -> bool:
        """Run on what was given last, and give the answer to nobody; False where another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._session.run_with_iobinding(self._binding)
        finally:
            self._lock.release()
        return True


def _bind(
    bind: Callable[..., None], ports: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[bytearray, struct.Struct]:
    """Give the session memory for these ports: a C struct. Return it, and its layout."""
    layout, offsets = "", []
    for port in ports:
        code = np.dtype(DTYPES[PORTS[port].type]).char
        offsets.append(struct.calcsize(f"{layout}0{code}"))
        layout += f"{math.prod(shapes[port])}{code}"
    record = struct.Struct(layout)
    memory = bytearray(record.size)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    for port, offset in zip(ports, offsets, strict=True):
        bind(port, "cpu", 0, DTYPES[PORTS[port].type], shapes[port], address + offset)
    return memory, record


def _parts(place: slice, count: int) -> list[slice]:
    """So many slices of the same length, one after the other."""
    length = (place.stop - place.start) // count
    return [slice(start, start + length) for start in range(place.start, place.stop, length)]


def _check(finite: Sequence[float], cost_upper: Sequence[float]) -> None:
    """Refuse what must not be sent."""
    # A sum of float32 in Python's floats does not overflow, so it is finite where every one of them is.
    if not math.isfinite(sum(finite)):
        raise InternalError("The policy predicted or chose a value that is not finite.")
    if any(map(math.isnan, cost_upper)):  # infinity is an honest bound
        raise InternalError("The policy predicted a bound that is not a number.")
