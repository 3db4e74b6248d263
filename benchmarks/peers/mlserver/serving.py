"""MLServer with our network as a custom runtime, the way its documentation has one; and a client that checks it.

Runs in the peer's environment: `serve` becomes the server, `ask` reads an observation from stdin, asks until there is
an answer, checks it, and writes the request as it goes over the wire.
"""

import argparse
import base64
import importlib.metadata
import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import grpc
import numpy as np
from mlserver import MLModel, types
from mlserver.codecs import NumpyCodec
from mlserver.grpc import dataplane_pb2, dataplane_pb2_grpc

from benchmarks.serving.network import Network

NAME = "benchmark"
METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Runtime(MLModel):  # type: ignore[misc]  # not installed here
    """The network behind the Open Inference Protocol."""

    async def load(self) -> bool:
        assert self.settings.parameters is not None
        assert self.settings.parameters.uri is not None
        self._network = Network(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        observation = NumpyCodec.decode_input(payload.inputs[0])
        values = self._network.run(self._network.inputs(observation))
        outputs = [
            NumpyCodec.encode_output(name, value) for name, value in zip(self._network.outputs, values, strict=True)
        ]
        return types.InferenceResponse(model_name=self.name, outputs=outputs)


def serve(bundle: Path, workers: int) -> None:
    """Become `mlserver start` on free ports."""
    http_port, grpc_port, metrics_port = _free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "parallel_workers": workers,
    }
    model = {
        "name": NAME,
        "implementation": "benchmarks.peers.mlserver.serving.Runtime",
        "parameters": {"uri": str(bundle)},
    }
    folder = Path(tempfile.mkdtemp())
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    names = ("mlserver", "uvloop", "onnxruntime", "grpcio")
    versions = {f"mlserver's {name}": importlib.metadata.version(name) for name in names}
    print(json.dumps({"address": f"127.0.0.1:{grpc_port}", "versions": versions}), flush=True)
    os.chdir(folder)  # its metrics are files in the working directory
    os.execv(sys.executable, [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)])


def ask(bundle: Path, address: str) -> None:
    """Check one answer, and write the request."""
    observation = np.array(json.load(sys.stdin), np.float32)
    request = dataplane_pb2.ModelInferRequest(
        model_name=NAME,
        inputs=[{"name": "observation", "datatype": "FP32", "shape": [1, len(observation)]}],
        raw_input_contents=[observation.tobytes()],
    )
    with grpc.insecure_channel(address) as channel:
        answer = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=5)
    names = [output.name for output in answer.outputs]
    got = answer.outputs[names.index("action")].contents.fp32_contents
    raw = answer.raw_output_contents
    action = np.frombuffer(raw[names.index("action")], np.float32) if raw else np.array(got, np.float32)
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
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--address", default="")
    arguments = parser.parse_args()
    if arguments.what == "serve":
        serve(arguments.bundle, arguments.workers)
    else:
        ask(arguments.bundle, arguments.address)


if __name__ == "__main__":
    main()
