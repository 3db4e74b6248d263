"""Half an hour of everyday load, and what the server holds meanwhile: `python -m benchmarks.faults.endurance`.

Robots in control streams that end, or break off, and begin anew; single and batched questions, judged actions, calls
that are refused, connections that ask once and go, health checks and scrapes of the metrics, each at its own pace.
Every answer must be the one that is due. Memory, open files and threads are looked at every ten seconds; through those
after the first third, a line says what they grow by.
"""

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from benchmarks import errors
from benchmarks.contestant import versions
from benchmarks.errors import BenchmarkError
from benchmarks.rounds import finish
from benchmarks.serving.messages import ACT, NAME, OBSERVATIONS, observation
from benchmarks.serving.network import STEPS_LEFT
from benchmarks.serving.processes import Holdings, ServerProcess, python_server
from benchmarks.serving.workload import ACTIONS, write_workload
from serve.gen.cvpo.v1 import control_pb2, policy_pb2
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceStub
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub

ROBOTS = 16
STEPS_PER_SECOND = 6.25  # of a robot
STEPS = 100  # of a session
BATCH = 64  # situations, more than the event loop computes itself
SAMPLE_SECONDS = 10.0
WARM_UP_SHARE = 1 / 3
PATIENCE_SECONDS = 30.0

SERVICE = "/cvpo.v1.PolicyService"
SELECTOR = policy_pb2.PolicySelector(name=NAME)
SITUATION = policy_pb2.Situation(observation=observation())
# Of a robot's sessions, each in its turn.
OPENINGS = (
    control_pb2.OpenSession(policy=SELECTOR),
    control_pb2.OpenSession(policy=SELECTOR, rolling_window_steps=STEPS_LEFT),
    control_pb2.OpenSession(policy=SELECTOR, shielded=policy_pb2.Shielded(candidates=BATCH)),
    control_pb2.OpenSession(
        policy=SELECTOR,
        sampled=policy_pb2.Sampled(),
        cost_budget=[1.0],  # exhausted on the way
        fallback=control_pb2.Fallback(hold_last=control_pb2.HoldLastAction()),
    ),
)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.endurance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long [default: 30]")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_workload(Path(folder))
        server = python_server(
            "the server", sys.executable, "serve", str(bundle), "--address=127.0.0.1:0", "--metrics-address=127.0.0.1:0"
        )
        with closing(server):
            headline, details = asyncio.run(endure(server, arguments.minutes))
    details["versions"] = versions(["grpcio", "onnxruntime", "numpy", "protobuf"])
    finish("endurance", headline, details, save=not arguments.no_save)


async def endure(server: ServerProcess, minutes: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the server for so long; return the headline and the details.

    Raises:
        BenchmarkError: an answer is not the one that was due.
    """
    ready = server.ready()
    address, metrics = str(ready["address"]), f"http://{ready['metrics_address']}/metrics"
    robots = [Robot(address, number) for number in range(ROBOTS)]
    async with grpc.aio.insecure_channel(address) as channel:
        askers = [
            *(Asker("Control", STEPS_PER_SECOND, robot.step, due="result") for robot in robots),
            *questions(channel),
            Asker("Act on a new connection", 5, lambda: newcomer(address)),
            Asker("/metrics", 0.2, lambda: scrape(metrics)),
        ]
        watch = Watch(server)
        end = time.monotonic() + 60 * minutes
        await asyncio.gather(watch.run(end), *(asker.run(end) for asker in askers))
        for robot in robots:
            await robot.leave()
    return report(watch.samples, askers, sum(robot.sessions for robot in robots))


# --- who asks -------------------------------------------------------------------------------------------------------


@dataclass
class Asker:
    """Asks the same thing again and again, at its pace."""

    name: str
    per_second: float
    ask: Callable[[], Awaitable[str]]  # returns what is answered
    due: str = "OK"  # what must be
    asked: int = 0

    async def run(self, end: float) -> None:
        """Ask until this moment of time.monotonic().

        Raises:
            BenchmarkError: it is answered otherwise.
        """
        for turn in itertools.count(1):
            began = time.monotonic()
            if began >= end:
                return
            try:
                said = await self.ask()
            except grpc.aio.AioRpcError as error:
                said = error.code().name
            if said != self.due:
                raise BenchmarkError(f"{self.name} was answered {said} instead of {self.due}, at question {turn}.")
            self.asked = turn
            await asyncio.sleep(max(0.0, began + 1 / self.per_second - time.monotonic()))


class Robot:
    """In one session after the other, each on a connection of its own; every second one is broken off."""

    def __init__(self, address: str, number: int) -> None:
        self.sessions = 0
        self._address = address
        self._number = number
        self._steps = 0
        self._channel: grpc.aio.Channel | None = None
        self._stream: Any = None

    async def step(self) -> str:
        """Send a step, in a new session where the one before is over, and return what kind of answer comes."""
        if self._channel is None:
            said = await self._open()
            if said != "opened":
                return said
        step = control_pb2.ControlStep(
            step=self._steps, observation=SITUATION.observation, cost_total=[self._steps / STEPS_LEFT * 2]
        )
        self._steps += 1
        said = await self._say(control_pb2.ControlRequest(step=step))
        if self._steps == STEPS:
            await self.leave()
        return said

    async def leave(self) -> None:
        """End the session, or break it off.

        Raises:
            BenchmarkError: the end is not the one that was due.
        """
        if self._channel is None:
            return
        if self.sessions % 2:
            await self._stream.done_writing()
            code = await self._stream.code()
            if code is not grpc.StatusCode.OK:
                raise BenchmarkError(f"A session ended with {code.name}.")
        await self._channel.close()
        self._channel = None

    async def _open(self) -> str:
        self._channel = own_channel(self._address)
        self._stream = ControlServiceStub(self._channel).Control()  # type: ignore[no-untyped-call]  # generated
        self._steps = 0
        opening = OPENINGS[(self._number + self.sessions) % len(OPENINGS)]
        self.sessions += 1
        return await self._say(control_pb2.ControlRequest(open=opening))

    async def _say(self, message: control_pb2.ControlRequest) -> str:
        await self._stream.write(message)
        answer = await self._stream.read()
        if answer is grpc.aio.EOF:
            return str((await self._stream.code()).name)
        return str(answer.WhichOneof("response"))


def own_channel(address: str) -> grpc.aio.Channel:
    """A channel that shares its connection with no other."""
    return grpc.aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))


def questions(channel: grpc.aio.Channel) -> list[Asker]:
    """What is asked on one connection, and answered or refused."""
    judged = policy_pb2.SituatedAction(situation=SITUATION, action=[0.0] * ACTIONS)
    evaluated = policy_pb2.EvaluateActionRequest(policy=SELECTOR, situated_actions=[judged])
    unseen = policy_pb2.Situation(observation=[float("nan")] * OBSERVATIONS)
    unknown = policy_pb2.PolicySelector(name="unknown")
    for_another = policy_pb2.PolicySelector(name=NAME, fingerprint="0" * 16)
    health = health_pb2.HealthCheckRequest(service="cvpo.v1.PolicyService")

    def act(situations: Sequence[policy_pb2.Situation], policy: policy_pb2.PolicySelector = SELECTOR) -> bytes:
        return policy_pb2.ActRequest(policy=policy, situations=situations).SerializeToString()

    def asker(name: str, per_second: float, method: str, request: bytes, due: str = "OK") -> Asker:
        call: Any = channel.unary_unary(method)  # bytes in, bytes out

        async def ask() -> str:
            await call(request, timeout=PATIENCE_SECONDS)
            return "OK"

        return Asker(name, per_second, ask, due)

    return [
        asker("Act", 40, ACT, act([SITUATION])),
        asker(f"Act on {BATCH}", 5, ACT, act([SITUATION] * BATCH)),
        asker("EvaluateAction", 10, f"{SERVICE}/EvaluateAction", evaluated.SerializeToString()),
        asker("ListPolicies", 2, f"{SERVICE}/ListPolicies", b""),
        asker("health", 2, "/grpc.health.v1.Health/Check", health.SerializeToString()),
        asker("NaN", 2, ACT, act([unseen]), "INVALID_ARGUMENT"),
        asker("no message", 2, ACT, b"\xff", "INVALID_ARGUMENT"),
        asker("unknown policy", 2, ACT, act([SITUATION], unknown), "NOT_FOUND"),
        asker("policy of another robot", 2, ACT, act([SITUATION], for_another), "FAILED_PRECONDITION"),
        asker("unknown method", 2, f"{SERVICE}/Nothing", b"", "UNIMPLEMENTED"),
    ]


async def newcomer(address: str) -> str:
    """Ask once on a connection of its own."""
    async with own_channel(address) as channel:
        request = policy_pb2.ActRequest(policy=SELECTOR, situations=[SITUATION])
        await PolicyServiceStub(channel).Act(request, timeout=PATIENCE_SECONDS)  # type: ignore[no-untyped-call]
    return "OK"


async def scrape(url: str) -> str:
    """Read the metrics as Prometheus does."""
    with await asyncio.to_thread(urllib.request.urlopen, url, timeout=PATIENCE_SECONDS) as answer:
        return "OK" if answer.status == 200 and b"cvpo_serve_requests_total" in answer.read() else str(answer.status)


# --- what is told ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The server at one moment."""

    minutes: float
    holdings: Holdings
    core_seconds: float


class Watch:
    """Looks at the server every few seconds."""

    def __init__(self, server: ServerProcess) -> None:
        self.samples: list[Sample] = []
        self._server = server

    async def run(self, end: float) -> None:
        """Look until this moment of time.monotonic()."""
        began = time.monotonic()
        while (now := time.monotonic()) < end:
            minutes = round((now - began) / 60, 2)
            self.samples.append(Sample(minutes, self._server.holdings(), self._server.core_seconds()))
            print(self.samples[-1], file=sys.stderr, flush=True)
            await asyncio.sleep(SAMPLE_SECONDS)


def report(samples: Sequence[Sample], askers: Sequence[Asker], sessions: int) -> tuple[dict[str, Any], dict[str, Any]]:
    settled = [sample for sample in samples if sample.minutes >= WARM_UP_SHARE * samples[-1].minutes]
    first, last = settled[0], settled[-1]
    hours = [sample.minutes / 60 for sample in settled]
    asked: Counter[str] = Counter()
    for asker in askers:
        asked[f"{asker.name}: {asker.due}"] += asker.asked
    headline = {
        "answers": asked.total(),
        "sessions": sessions,
        "minutes": last.minutes,
        **{
            name: {
                "first": values[0],
                "last": values[-1],
                "least": min(values),
                "most": max(values),
                "growth_an_hour": round(float(np.polyfit(hours, values, 1)[0]), 2) + 0.0,
            }
            for name in ("memory_mib", "open_files", "threads")
            for values in [[getattr(sample.holdings, name) for sample in settled]]
        },
        "core_share": round((last.core_seconds - first.core_seconds) / (last.minutes - first.minutes) / 60, 3),
    }
    details = {
        "by_question": dict(asked),
        "settled_after_minutes": first.minutes,
        "load_average": os.getloadavg(),  # of the machine; this soak alone is less than 1
        "samples": [{"minutes": sample.minutes, **vars(sample.holdings)} for sample in samples],
    }
    return headline, details


if __name__ == "__main__":
    errors.run(main)
