"""KServe's Python server with our network as a model, the way its documentation has one; and a client that checks it.

Runs in the peer's environment: `serve` becomes the server, `ask` reads an observation from stdin, asks, checks the
answer, and writes the request as it goes over the wire.
"""

import argparse
import base64
import importlib.metadata
import json
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

from benchmarks.serving.network import Network

NAME = "benchmark"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
_DATATYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}


class Served(Model):  # type: ignore[misc]  # not installed here
    """The network behind the Open Inference Protocol."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(NAME)
        self._network = Network(bundle)
        self.ready = True

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        values = self._network.run(self._network.inputs(payload.inputs[0].as_numpy()))
        outputs = []
        for name, value in zip(self._network.outputs, values, strict=True):
            output = InferOutput(name, list(value.shape), _DATATYPES[value.dtype.name])
            output.set_data_from_numpy(value, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id or "", NAME, outputs)


def serve(bundle: Path) -> None:
    """Serve on free ports until the process is ended."""
    http_port, grpc_port = _free_ports(2)
    versions = {f"kserve's {name}": importlib.metadata.version(name) for name in ("kserve", "onnxruntime", "grpcio")}
    print(json.dumps({"address": f"127.0.0.1:{grpc_port}", "versions": versions}), flush=True)
    ModelServer(http_port=http_port, grpc_port=grpc_port, enable_grpc=True).start([Served(bundle)])


def ask(bundle: Path, address: str) -> None:
    """Check one answer, and write the request."""
    observation = np.array(json.load(sys.stdin), np.float32)
    request = pb.ModelInferRequest(
        model_name=NAME,
        inputs=[{"name": "observation", "datatype": "FP32", "shape": [1, len(observation)]}],
        raw_input_contents=[observation.tobytes()],
    )
    with grpc.insecure_channel(address) as channel:
        answer = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=5)
    names = [output.name for output in answer.outputs]
    action = np.frombuffer(answer.raw_output_contents[names.index("action")], np.float32)
    network = Network(bundle)
    expected = network.run(network.inputs(observation))[network.outputs.index("action")]
    np.testing.assert_allclose(action.reshape(-1), expected.reshape(-1), rtol=1e-5)
    encoded = base64.b64encode(request.SerializeToString()).decode()
    print(json.dumps({"method": METHOD, "request": encoded, "answer_bytes": answer.ByteSize()}))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("serve", "ask"))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--address", default="")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # KServe reads it, too
    if arguments.what == "serve":
        serve(arguments.bundle)
    else:
        ask(arguments.bundle, arguments.address)


if __name__ == "__main__":
    main()
