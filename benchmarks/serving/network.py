"""The network alone: ONNX Runtime and one fixed input. Shared with peers' environments, so it needs numpy and
onnxruntime only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29 importing it starts an upload thread

import onnxruntime as ort

Arrays = dict[str, NDArray[Any]]
STEPS_LEFT, COST_ALLOWED, ALARM_LEVEL = 100, 12.5, 0.1


class Network:
    """A bundle's policy.onnx with the settings that the service has for it."""

    def __init__(self, bundle: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(bundle / "policy.onnx"), options, providers=["CPUExecutionProvider"])
        self.outputs = [node.name for node in self.session.get_outputs()]
        shapes = {node.name: node.shape for node in self.session.get_inputs()}
        constraints = shapes["cost_allowed"][1]
        self._rest: Arrays = {
            "noise": np.zeros((1, 1, shapes["noise"][2]), np.float32),
            "steps_left": np.full(1, STEPS_LEFT, np.int64),
            "cost_allowed": np.full((1, constraints), COST_ALLOWED, np.float32),
            "alarm_level": np.full(constraints, ALARM_LEVEL, np.float32),
        }

    def inputs(self, observation: Sequence[float] | NDArray[np.float32]) -> Arrays:
        """One deterministic situation, K = 1."""
        return {"observation": np.asarray(observation, np.float32).reshape(1, -1), **self._rest}

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """All outputs, in the order of `outputs`."""
        values: list[NDArray[Any]] = self.session.run(self.outputs, inputs)
        return values
