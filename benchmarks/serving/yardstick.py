"""The yardsticks, as a server process: our two services on grpc.aio, with prepared answers of ours.

`python -m benchmarks.serving.yardstick --answers FILE` answers at once: the echo. With `--bundle BUNDLE` each answer is
preceded by one `session.run` on a fixed input and nothing else: the served bare run. What an answer costs beyond that
is what the service adds.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc

from benchmarks.serving.messages import Answers, observation
from benchmarks.serving.network import Network
from serve.gen.cvpo.v1 import control_pb2, control_pb2_grpc, policy_pb2, policy_pb2_grpc


class Policy(policy_pb2_grpc.PolicyServiceServicer):
    """Act, with one answer for all."""

    def __init__(self, work: Callable[[], object], answers: Answers) -> None:
        self._work, self._act = work, answers.act

    async def Act(self, request: policy_pb2.ActRequest, context: object) -> policy_pb2.ActResponse:  # noqa: N802
        self._work()
        return self._act


class Control(control_pb2_grpc.ControlServiceServicer):
    """Control, with one answer for the opening and one for all steps."""

    def __init__(self, work: Callable[[], object], answers: Answers) -> None:
        self._work, self._opened, self._result = work, answers.opened, answers.result

    async def Control(  # noqa: N802
        self, requests: AsyncIterator[control_pb2.ControlRequest], context: object
    ) -> AsyncIterator[control_pb2.ControlResponse]:
        async for request in requests:
            if request.HasField("open"):
                yield self._opened
                continue
            self._work()
            yield self._result


async def serve(address: str, work: Callable[[], object], answers: Answers) -> None:
    """Answer until the process is ended."""
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(Policy(work, answers), server)  # type: ignore[no-untyped-call]
    control_pb2_grpc.add_ControlServiceServicer_to_server(Control(work, answers), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(address)
    await server.start()
    bound = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    print(json.dumps({"address": bound}), flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.yardstick", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:0")
    parser.add_argument("--answers", type=Path, required=True, help="file that Answers.write wrote")
    parser.add_argument("--bundle", type=Path, help="run its network before each answer")
    arguments = parser.parse_args()
    work: Callable[[], object] = lambda: None  # noqa: E731
    if arguments.bundle:
        network = Network(arguments.bundle)
        inputs = network.inputs(observation())
        work = lambda: network.run(inputs)  # noqa: E731
    asyncio.run(serve(arguments.address, work, Answers.read(arguments.answers)))


if __name__ == "__main__":
    main()
