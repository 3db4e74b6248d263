"""What every contestant is asked, and our answers, which the yardsticks repeat: equal payloads both ways."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.message import Message

from benchmarks.errors import BenchmarkError
from benchmarks.serving.network import STEPS_LEFT
from cvpo.commands.load import act_request, connect, control_messages
from serve.gen.cvpo.v1 import control_pb2, policy_pb2
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceStub
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub

NAME, OBSERVATIONS, CONSTRAINTS = "benchmark", 60, 1
ACT = "/cvpo.v1.PolicyService/Act"
PATIENCE_SECONDS = 5.0


def observation() -> list[float]:
    """What every request of every contestant sees: inside of what training saw, so that nothing is flagged by it."""
    values: list[float] = np.random.default_rng(1).uniform(-1.0, 1.0, OBSERVATIONS).astype(np.float32).tolist()
    return values


def act_bytes() -> bytes:
    """The ActRequest."""
    return act_request(NAME, observation())


def session() -> tuple[control_pb2.OpenSession, control_pb2.ControlStep]:
    """The opening and the step of a control stream."""
    return control_messages(NAME, observation(), STEPS_LEFT, CONSTRAINTS)


@dataclass(frozen=True)
class Answers:
    """One answer of each kind."""

    act: policy_pb2.ActResponse
    opened: control_pb2.ControlResponse
    result: control_pb2.ControlResponse

    def write(self, path: Path) -> None:
        path.write_text(json.dumps([message.SerializeToString().hex() for message in self._messages()]))

    @classmethod
    def read(cls, path: Path) -> "Answers":
        act, opened, result = (bytes.fromhex(text) for text in json.loads(path.read_text()))
        control = control_pb2.ControlResponse
        return cls(policy_pb2.ActResponse.FromString(act), control.FromString(opened), control.FromString(result))

    def sizes(self) -> dict[str, int]:
        """Bytes of each message both ways."""
        opening, step = session()
        requests = {
            "act_request": len(act_bytes()),
            "control_open": control_pb2.ControlRequest(open=opening).ByteSize(),
            "control_step": control_pb2.ControlRequest(step=step).ByteSize(),
        }
        names = ("act_response", "control_opened", "control_result")
        return requests | {name: message.ByteSize() for name, message in zip(names, self._messages(), strict=True)}

    def _messages(self) -> tuple[Message, ...]:
        return self.act, self.opened, self.result


def ask_ours(address: str) -> Answers:
    """Ask our server once in each way with the generated client, and check what it says.

    Raises:
        BenchmarkError: an answer is an error, or not of the policy that was asked.
    """
    opening, step = session()

    def requests() -> Iterator[control_pb2.ControlRequest]:
        yield control_pb2.ControlRequest(open=opening)
        yield control_pb2.ControlRequest(step=step)

    with connect(address) as channel:
        try:
            policy = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]
            act = policy.Act(policy_pb2.ActRequest.FromString(act_bytes()), timeout=PATIENCE_SECONDS)
            control = ControlServiceStub(channel)  # type: ignore[no-untyped-call]
            opened, result = list(control.Control(requests(), timeout=PATIENCE_SECONDS))
        except grpc.RpcError as error:
            raise BenchmarkError(f"{address} does not answer as it should: {error}") from error
    if not opened.HasField("opened") or not result.HasField("result") or act.policy.name != NAME:
        raise BenchmarkError(f"{address} does not answer as it should: {act} {opened} {result}")
    if list(act.results[0].action) != list(result.result.action):
        raise BenchmarkError(f"{address}: Act and Control disagree about the action: {act} {result}")
    return Answers(act, opened, result)
