"""Ray Serve over gRPC with our messages: a deployment that runs our network for Act; and a client that checks it.

Runs in the peer's environment: `serve` becomes the server, `ask` reads an observation from stdin, asks, checks the
answer, and writes the request as it goes over the wire.
"""

import argparse
import base64
import importlib.metadata
import json
import os
import signal
import socket
import sys
import types
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # else it writes a token into the home folder
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # 5 s are too few for its imports on a busy machine

import grpc
import numpy as np
import ray
from ray import serve as ray_serve
from ray.serve.config import gRPCOptions

from benchmarks.serving.network import Network
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub, add_PolicyServiceServicer_to_server

# Ray pickles messages between its proxy and the deployment, by the name that protoc gave their module.
sys.modules.setdefault("cvpo.v1", types.ModuleType("cvpo.v1"))
sys.modules["cvpo.v1.policy_pb2"] = pb
add_servicer = add_PolicyServiceServicer_to_server  # by a name in here, so that the proxy imports this module, too

METHOD = "/cvpo.v1.PolicyService/Act"
_OBJECT_STORE_BYTES = 200 * 2**20


class Served:
    """The network behind PolicyService.Act."""

    def __init__(self, bundle: str) -> None:
        self._network = Network(Path(bundle))

    def Act(self, request: pb.ActRequest) -> pb.ActResponse:  # noqa: N802
        values = self._network.run(self._network.inputs(request.situations[0].observation[:]))
        out = {name: value.tolist() for name, value in zip(self._network.outputs, values, strict=True)}
        constraints = [
            pb.ConstraintPrediction(cost_value=value, cost_to_go=to_go, cost_upper=upper, violation_probability=likely)
            for value, to_go, upper, likely in zip(
                out["cost_value"][0],
                out["cost_to_go"][0],
                out["cost_upper"][0],
                out["violation_probability"][0],
                strict=True,
            )
        ]
        prediction = pb.Prediction(constraints=constraints, reward_value=out["reward_value"][0])
        return pb.ActResponse(results=[pb.ActResult(action=out["action"][0], prediction=prediction)])


def serve(bundle: Path) -> None:
    """Serve on a free port until the process is ended."""
    from benchmarks.peers.ray.serving import Served  # by a name that a worker process can import

    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as free_too:
        port, http_port = free.getsockname()[1], free_too.getsockname()[1]
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=_OBJECT_STORE_BYTES)
    functions = ["benchmarks.peers.ray.serving.add_servicer"]
    ray_serve.start(
        http_options={"host": "127.0.0.1", "port": http_port},
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=functions),
    )
    ray_serve.run(ray_serve.deployment(Served).bind(str(bundle)))
    versions = {f"ray's {name}": importlib.metadata.version(name) for name in ("ray", "onnxruntime", "grpcio")}
    print(json.dumps({"address": f"127.0.0.1:{port}", "versions": versions}), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Ray has put its own there
    try:
        signal.pause()
    finally:
        ray.shutdown()


def ask(bundle: Path, address: str) -> None:
    """Check one answer, and write the request."""
    observation = json.load(sys.stdin)
    request = pb.ActRequest(situations=[pb.Situation(observation=observation)])
    with grpc.insecure_channel(address) as channel:
        stub = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        answer = stub.Act(request, timeout=10)
    network = Network(bundle)
    expected = network.run(network.inputs(observation))[network.outputs.index("action")]
    np.testing.assert_allclose(list(answer.results[0].action), expected.reshape(-1), rtol=1e-5)
    encoded = base64.b64encode(request.SerializeToString()).decode()
    print(json.dumps({"method": METHOD, "request": encoded, "answer_bytes": answer.ByteSize()}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("serve", "ask"))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--address", default="")
    arguments = parser.parse_args()
    if arguments.what == "serve":
        serve(arguments.bundle)
    else:
        ask(arguments.bundle, arguments.address)


if __name__ == "__main__":
    main()
