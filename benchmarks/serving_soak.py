"""Versions come and go every second under load, and every answer is checked: `python -m benchmarks.serving_soak`.

Robots ask without a pause, alone and in control streams, while a new version is put into the server's folder, served,
put on trial, and the one before taken away. The version that an answer names is asked the same in this process, in a
session of the same kind, and whole answers are compared, to the bit: action, predictions, flags, what may be spent, and
which fallback was taken. Memory, open files and waiting times are told as well: those of requests during which a
version was loaded, and of the others.
"""

import argparse
import functools
import itertools
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks import errors
from benchmarks.contestant import versions
from benchmarks.errors import BenchmarkError
from benchmarks.rounds import finish
from benchmarks.serving.messages import NAME, OBSERVATIONS
from benchmarks.serving.processes import Holdings, python_server
from benchmarks.serving.workload import write_workload
from cvpo.bundle import POLICY_GRAPH, Bundle, read_bundle, write_bundle
from serve.client import PolicyCaller, PolicyClient
from serve.client.answer import ControlAnswer
from serve.client.control_client import ControlSession
from serve.client.watchdog import Watchdog
from serve.control_values import ConstantAction, Fallback, HoldLastAction, LeastUnsafeAction, RollingWindow
from serve.gen.cvpo.v1 import admin_pb2 as pb
from serve.gen.cvpo.v1.admin_pb2_grpc import PolicyAdminServiceStub
from serve.local import LocalPolicy
from serve.server.graph import Graph
from serve.server.plan import ServingPlan
from serve.server.repository import PolicyVersions, Repository, Snapshot
from serve.server.runtime import PolicyRuntime, load
from serve.values import ActResult, Deterministic, Floats, Mode, Sampled, Shielded

T = TypeVar("T")

KINDS = 8  # sets of weights; version V has those of kind V % KINDS
PATIENCE_SECONDS = 30.0
FAR_SHARE = 0.02  # of observations that are far outside of what was seen in training
COST_SHARE = 0.2  # of steps that cost 1: over a horizon more than the limit

# How single questions and sessions ask, each in its turn. What is drawn is drawn from a seed: it must be so here, too.
MODES: tuple[Mode, ...] = (Deterministic(), Sampled(seed=1), Shielded(candidates=8, seed=2))
SESSIONS: tuple[dict[str, Any], ...] = (
    {},
    {"cost_budget": [60.0], "mode": Sampled(seed=3), "fallback": Fallback(HoldLastAction())},
    {"cost_budget": [60.0], "mode": Shielded(candidates=8, seed=4), "extent": RollingWindow(100)},
    {"cost_budget": [20.0], "extent": RollingWindow(50), "fallback": Fallback(ConstantAction())},
    {"cost_budget": [60.0], "mode": Sampled(seed=5), "fallback": Fallback(LeastUnsafeAction(candidates=8))},
)


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=1_000_000, help="answers to check [default: 1000000]")
    parser.add_argument("--robots", type=int, default=4, help="half of them in control streams [default: 4]")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two versions [default: 1]")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        headline, details = soak(Path(folder), arguments.requests, arguments.robots, arguments.every)
    details["settings"] = {"requests": arguments.requests, "robots": arguments.robots, "every_s": arguments.every}
    details["versions"] = versions(["grpcio", "onnxruntime", "numpy", "protobuf"])
    finish("serving_soak", headline, details, save=not arguments.no_save)


def soak(folder: Path, requests: int, robots: int, every_seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run it in an empty folder; return the headline and the details."""
    print("making bundles", file=sys.stderr, flush=True)
    kinds = make_kinds(folder)
    runtimes = [load(kind) for kind in kinds]
    root = folder / "repository"
    swaps = Swaps(root, kinds)
    swaps.put(1)
    server = python_server(
        "cvpo", sys.executable, "serve", str(root), "--address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
        "--metrics-address=127.0.0.1:0", "--poll-seconds=0.1", "--log-level=warning",
    )  # fmt: skip
    with closing(server):
        ready = server.ready()
        swaps.follow(str(ready["admin_address"]))
        crew = [Robot(str(ready["address"]), runtimes, seed, stream=seed % 2 == 1) for seed in range(robots)]
        enough = threading.Event()
        began = time.perf_counter()
        with ThreadPoolExecutor(robots) as pool:
            work = [pool.submit(robot.drive, enough) for robot in crew]
            try:
                samples = [Sample(1, server.holdings())]
                while sum(len(robot.waits) for robot in crew) < requests and not any(each.done() for each in work):
                    next_swap = time.perf_counter() + every_seconds
                    swaps.swap()
                    samples.append(Sample(swaps.version, server.holdings()))
                    told = sum(len(robot.waits) for robot in crew)
                    print(f"version {swaps.version}, {told} answers, {samples[-1]}", file=sys.stderr, flush=True)
                    time.sleep(max(0.0, next_swap - time.perf_counter()))
            finally:
                enough.set()
            for each in work:
                each.result(PATIENCE_SECONDS)
        seconds = time.perf_counter() - began
    return report(crew, swaps, samples, seconds)


# --- what is served -------------------------------------------------------------------------------------------------


def make_kinds(folder: Path) -> list[Bundle]:
    """Return bundles of the same policy with different weights."""
    bundle = read_bundle(write_workload(folder / "workload"))
    made = []
    for kind in range(KINDS):
        policy_graph = scale(bundle.policy_graph, 1 - kind / 100)
        answered = Graph(POLICY_GRAPH, policy_graph, bundle.manifest.sizes).run(bundle.golden.inputs[POLICY_GRAPH])
        before = bundle.golden.outputs
        then = {name: np.array(answered[name], array.dtype) for name, array in before[POLICY_GRAPH].items()}
        golden = replace(bundle.golden, outputs={**before, POLICY_GRAPH: then})
        made.append(replace(bundle, policy_graph=policy_graph, golden=golden))
    return made


def scale(graph: bytes, factor: float) -> bytes:
    """Return a graph whose matrices are multiplied."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.dtype == np.float32 and min(values.shape) > 1:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(factor), tensor.name))
    return model.SerializeToString()


class Swaps:
    """Puts versions into the folder of a server and takes them away, and knows when."""

    def __init__(self, root: Path, kinds: Sequence[Bundle]) -> None:
        self.version = 0
        self.loading: list[tuple[float, float]] = []  # from when to when a version was new
        self._root = root
        self._kinds = kinds

    def follow(self, admin_address: str) -> None:
        self._admin = PolicyAdminServiceStub(grpc.insecure_channel(admin_address))  # type: ignore[no-untyped-call]

    def put(self, version: int) -> None:
        kind = self._kinds[version % KINDS]
        write_bundle(
            self._root / NAME / str(version),
            kind.manifest.model_copy(update={"version": version}),
            policy_graph=kind.policy_graph,
            critic_graph=kind.critic_graph,
            model_card=kind.model_card,
            golden=kind.golden,
        )
        self.version = version

    def swap(self) -> None:
        """Serve a new version; put it on trial against the one before; serve it again, and retire the one before."""
        version, began = self.version + 1, time.perf_counter()
        self.put(version)
        self._wait(lambda: self._served() == version)
        self.loading.append((began, time.perf_counter()))
        canary = pb.Canary(version=version, share=0.5)
        for plan in (pb.ServingPlan(pinned=version - 1, canary=canary), pb.ServingPlan()):
            request = pb.SetServingRequest(name=NAME, plan=plan)
            self._admin.SetServing(request, timeout=PATIENCE_SECONDS)
        shutil.rmtree(self._root / NAME / str(version - 1))

    def _served(self) -> int:
        (policy,) = self._admin.GetServing(pb.GetServingRequest(name=NAME), timeout=PATIENCE_SECONDS).policies
        return int(policy.served)

    def _wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise BenchmarkError(f"Version {self.version} was not served within {PATIENCE_SECONDS:g} s.")
            time.sleep(0.01)


# --- who asks -------------------------------------------------------------------------------------------------------


class Twin:
    """A server in this process, for one robot: it serves the version that it is told to."""

    def __init__(self, runtimes: Sequence[PolicyRuntime]) -> None:
        self._runtimes = runtimes
        self._repository = Repository(Snapshot())
        self.policy = LocalPolicy(self._repository, NAME, None, "")

    def serve(self, version: int) -> None:
        runtime = self._runtimes[version % KINDS]
        runtime = replace(runtime, served=replace(runtime.served, version=version))
        self._repository.snapshot = Snapshot({NAME: PolicyVersions({version: runtime}, ServingPlan(), runtime)})


@dataclass
class Robot:
    """Asks without a pause, and checks what it is answered."""

    address: str
    runtimes: Sequence[PolicyRuntime]
    seed: int
    stream: bool
    waits: list[tuple[float, float]] = field(default_factory=list)  # when it was asked, and how long it took
    wrong: int = 0
    flagged: int = 0  # answers
    fallbacks: int = 0  # answers of one
    seen: set[int] = field(default_factory=set)  # versions

    def drive(self, enough: threading.Event) -> None:
        draw, twin = np.random.default_rng(self.seed), Twin(self.runtimes)
        with PolicyClient(self.address, NAME, timeout_seconds=PATIENCE_SECONDS) as client:
            for turn in itertools.count():
                if enough.is_set():
                    return
                if self.stream:
                    self._drive_session(client, twin, SESSIONS[turn % len(SESSIONS)], draw, enough)
                else:
                    mode, allowed = MODES[turn % len(MODES)], [draw.uniform(0.0, 60.0)]
                    ask = functools.partial(_act, observation=_observe(draw), cost_allowed=allowed, mode=mode)
                    self._check(ask, client, twin.policy, twin)

    def _drive_session(
        self,
        client: PolicyClient,
        twin: Twin,
        opening: Mapping[str, Any],
        draw: np.random.Generator,
        enough: threading.Event,
    ) -> None:
        watchdog = Watchdog(timeout_seconds=PATIENCE_SECONDS)
        with client.control(**opening, watchdog=watchdog) as session:
            twin.serve(session.opened.policy.version)
            with twin.policy.control(**opening, watchdog=watchdog) as second:
                for _ in range(session.description.horizon_steps):
                    if enough.is_set():
                        return
                    cost = float(draw.random() < COST_SHARE)
                    ask = functools.partial(_step, observation=_observe(draw), cost=cost)
                    self._check(ask, session, second, twin)

    def _check(self, ask: Callable[[T], ActResult | ControlAnswer], server: T, here: T, twin: Twin) -> None:
        """Ask the server, and then the version that it names, here."""
        began = time.perf_counter()
        answer = ask(server)
        self.waits.append((began, time.perf_counter() - began))
        self.seen.add(answer.policy.version)
        twin.serve(answer.policy.version)
        self.wrong += said(answer) != said(ask(here))
        self.flagged += not answer.feasible
        self.fallbacks += isinstance(answer, ControlAnswer) and answer.fallback is not None


def _act(policy: PolicyCaller, observation: Floats, cost_allowed: list[float], mode: Mode) -> ActResult:
    return policy.act(observation, cost_allowed=cost_allowed, mode=mode)


def _step(session: ControlSession, observation: Floats, cost: float) -> ControlAnswer:
    return session.step(observation, cost=cost)


def _observe(draw: np.random.Generator) -> Floats:
    far = draw.random() < FAR_SHARE
    return draw.uniform(-1.0, 1.0, OBSERVATIONS).astype(np.float32) * np.float32(100.0 if far else 1.0)


def said(value: object) -> object:
    """All that an answer says but how long it took, with the bytes of its arrays, which `==` compares to the bit."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if is_dataclass(value):
        return {each.name: said(getattr(value, each.name)) for each in fields(value) if each.name not in _TIMES}
    return value


_TIMES = ("compute_seconds", "seconds", "timing")


@dataclass(frozen=True)
class Sample:
    """The server process at one moment."""

    version: int
    holdings: Holdings


def report(
    crew: Sequence[Robot], swaps: Swaps, samples: Sequence[Sample], seconds: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    waits = np.array([wait for robot in crew for wait in robot.waits])
    begin, end = np.array(swaps.loading).T
    index = np.searchsorted(end, waits[:, 0])  # the first loading that ends after the request began
    overlaps = index < len(begin)
    overlaps[overlaps] = begin[index[overlaps]] < waits[overlaps, 0] + waits[overlaps, 1]
    settled = samples[len(samples) // 4 :]  # caches are filled by then
    headline = {
        "requests": len(waits),
        "wrong": sum(robot.wrong for robot in crew),
        "lost": 0,  # the first would have ended the soak
        "flagged": sum(robot.flagged for robot in crew),
        "fallbacks": sum(robot.fallbacks for robot in crew),
        "versions_served": len(set().union(*(robot.seen for robot in crew))),
        "seconds": round(seconds, 1),
        "resident_mib": [settled[0].holdings.memory_mib, settled[-1].holdings.memory_mib],
        "files": [settled[0].holdings.open_files, settled[-1].holdings.open_files],
        "p99_ms": {"while_loading": _ms(waits[overlaps, 1], 99), "else": _ms(waits[~overlaps, 1], 99)},
    }
    details = {
        "wait_ms": {
            name: {f"p{share:g}": _ms(of, share) for share in (50, 99, 99.9, 100)}
            for name, of in (("while_loading", waits[overlaps, 1]), ("else", waits[~overlaps, 1]))
        },
        "requests_while_loading": int(overlaps.sum()),
        "loading_s": {
            "median": round(float(np.median(end - begin)), 3),
            "longest": round(float((end - begin).max()), 3),
        },
        "samples": [
            {"version": sample.version, **vars(sample.holdings)} for sample in samples[:: max(1, len(samples) // 50)]
        ],
    }
    return headline, details


def _ms(seconds: np.ndarray[Any, np.dtype[np.float64]], share: float) -> float:
    return round(float(np.percentile(seconds, share)) * 1e3, 3)


if __name__ == "__main__":
    errors.run(main)
