"""A graph of a bundle, opened to be run here by ONNX Runtime."""

import os
from typing import TypeAlias

# Since 1.29 the import itself starts an upload thread and writes into the user's cache folder, unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

Session: TypeAlias = ort.InferenceSession
RUNTIME = f"onnxruntime {ort.__version__}"


def open_graph(graph: bytes) -> Session:
    """Load a graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
