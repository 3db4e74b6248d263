"""Server processes whose repository changes under them: what they serve, what they refuse, and what they say of it."""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.client import PolicyClient
from serve.client.watchdog import Watchdog
from serve.errors import NotFoundError, UnavailableError
from serve.gen.cvpo.v1 import admin_pb2 as pb
from serve.gen.cvpo.v1.admin_pb2_grpc import PolicyAdminServiceStub
from serve.local import LocalPolicy
from serve.server.plan import Canary, ServingPlan, write_plan
from serve.values import ActResult, Deterministic, Sampled, Shielded
from tests.serve import bundles
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess

Serve = Callable[..., ServerProcess]
SERVICE = "cvpo.v1.PolicyService"
PATIENT = Watchdog(timeout_seconds=PATIENCE_SECONDS)


def add(root: Path, version: int) -> Path:
    """Add a version of goal whose actions are 1/version of those of version 1."""
    graph = bundles.policy_graph(lambda text: text.replace("1.0, 2.0", f"{1 / version}, {2 / version}"))
    return bundles.write(root / "goal" / str(version), bundles.manifest(version=version), policy=graph)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def start(serve: Serve, root: Path, *arguments: str) -> ServerProcess:
    return serve(str(root), "--address", "127.0.0.1:0", "--poll-seconds", "0.05", *arguments)


@pytest.fixture
def following(tmp_path: Path, serve_process: Serve) -> Iterator[PolicyClient]:
    """A client of a server that follows tmp_path, where there is version 1 of goal."""
    add(tmp_path, 1)
    server = start(serve_process, tmp_path)
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        yield client


def served(client: PolicyClient) -> int:
    return client.act([1, 2, -1]).policy.version


def metrics_of(server: ServerProcess) -> str:
    with urllib.request.urlopen(f"http://{server.ready['metrics_address']}/metrics") as response:
        return str(response.read().decode())


def test_a_server_without_a_bundle_waits_for_one(tmp_path: Path, serve_process: Serve) -> None:
    server = start(serve_process, tmp_path)
    assert server.ready["policies"] == []
    with (
        grpc.insecure_channel(server.address) as channel,
        PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        def status(service: str) -> int:
            return int(health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS).status)

        assert status("") == health_pb2.HealthCheckResponse.SERVING  # alive, and not to be restarted
        assert status(SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert client.list_policies() == ()
        with pytest.raises(UnavailableError, match="No policy is loaded yet") as caught:
            served(client)
        assert caught.value.retry_after_seconds
        add(tmp_path, 1)
        eventually(lambda: status(SERVICE) == health_pb2.HealthCheckResponse.SERVING)
        assert served(client) == 1
    assert server.terminate() == 0
    assert server.process.stderr is not None
    lines = [json.loads(line) for line in server.process.stderr.read().splitlines()]
    events = [line["event"] for line in lines]
    assert events.index("nothing to serve yet") < events.index("bundle loaded") < events.index("serving")
    assert lines[events.index("bundle loaded")]["shares_runs"] is True


def test_a_new_version_is_served_and_a_plan_takes_it_back(following: PolicyClient, tmp_path: Path) -> None:
    add(tmp_path, 2)
    eventually(lambda: served(following) == 2)
    assert following.get_policy().versions == (1, 2)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    eventually(lambda: served(following) == 1)
    (policy,) = following.list_policies()
    assert policy.policy.version == 1


def test_a_bad_bundle_is_refused_in_log_and_metrics_and_the_old_goes_on(tmp_path: Path, serve_process: Serve) -> None:
    add(tmp_path, 1)
    server = start(serve_process, tmp_path, "--metrics-address", "127.0.0.1:0")

    bad = add(tmp_path / ".elsewhere", 2)
    (bad / "critic.onnx").write_bytes(b"")
    bad.rename(tmp_path / "goal" / "2")
    eventually(lambda: 'cvpo_serve_bundle_refused{path="goal/2"} 1.0' in metrics_of(server))
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        assert served(client) == 1
        shutil.rmtree(tmp_path / "goal" / "2")
        add(tmp_path, 2)
        eventually(lambda: served(client) == 2)
    assert "cvpo_serve_bundle_refused{" not in metrics_of(server)
    assert 'cvpo_serve_bundle_served{policy="goal",version="2"} 1.0' in metrics_of(server)
    assert server.terminate() == 0
    assert server.process.stderr is not None
    events = [json.loads(line) for line in server.process.stderr.read().splitlines()]
    (refused,) = [event for event in events if event["event"] == "bundle refused"]
    assert "SHA-256" in refused["reason"]


def test_a_retired_version_is_not_found_by_its_number(tmp_path: Path, serve_process: Serve) -> None:
    add(tmp_path, 1)
    path = add(tmp_path, 2)
    server = start(serve_process, tmp_path)
    with PolicyClient(server.address, "goal", version=2, timeout_seconds=PATIENCE_SECONDS) as second:
        assert served(second) == 2
        shutil.rmtree(path)
        with pytest.raises(NotFoundError, match="no version 2; this server has 1"):
            eventually(lambda: served(second) != 2)


def test_the_metrics_of_a_version_end_with_its_last_session(tmp_path: Path, serve_process: Serve) -> None:
    for version in (1, 2):
        add(tmp_path, version)
    write_plan(tmp_path, "goal", ServingPlan(pinned=1, shadow=2))
    server = start(serve_process, tmp_path, "--metrics-address", "127.0.0.1:0")

    def told(version: int) -> set[str]:
        """Names of the metrics of a version."""
        samples = [line.partition("{") for line in metrics_of(server).splitlines() if f'version="{version}"' in line]
        return {name for name, _, _ in samples if not name.startswith("cvpo_serve_bundle_")}

    with PolicyClient(server.address, "goal", version=1, timeout_seconds=PATIENCE_SECONDS) as client:
        with client.control(watchdog=PATIENT) as session:
            assert session.step([1, 2, -1], cost=[0, 0]).policy.version == 1
            eventually(lambda: "cvpo_serve_shadow_comparisons_total" in told(2))
            write_plan(tmp_path, "goal", ServingPlan())
            for version in (1, 2):
                shutil.rmtree(tmp_path / "goal" / str(version))
            add(tmp_path, 3)
            eventually(lambda: not told(2))
            assert session.step([1, 2, -1], cost=[0, 0]).policy.version == 1
            assert "cvpo_serve_answers_total" in told(1)
        eventually(lambda: not told(1))
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        assert served(client) == 3
    assert "cvpo_serve_answers_total" in told(3)


def test_a_shadow_is_compared_and_never_answers(tmp_path: Path, serve_process: Serve) -> None:
    for version in (1, 2):
        add(tmp_path, version)
    write_plan(tmp_path, "goal", ServingPlan(shadow=2))
    server = start(serve_process, tmp_path, "--metrics-address", "127.0.0.1:0")
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        for mode in (Deterministic(), Sampled(), Shielded(64)):  # the last one is computed in a thread
            assert client.act([1, 2, -1], mode=mode).policy.version == 1
        with client.control() as session:  # and so is a step of a stream
            answer = session.step([1, 2, -1], cost=[0, 0])
            assert answer.policy is not None
            assert answer.policy.version == 1
    compared = 'cvpo_serve_shadow_comparisons_total{outcome="compared",policy="goal",version="2"} 4.0'
    eventually(lambda: compared in metrics_of(server))


def test_a_session_keeps_to_its_version_and_the_canary_gets_its_share_of_them(
    tmp_path: Path, serve_process: Serve
) -> None:
    for version in (1, 2):
        add(tmp_path, version)
    write_plan(tmp_path, "goal", ServingPlan(canary=Canary(version=2, share=0.5)))
    server = start(serve_process, tmp_path)
    sessions = 40
    on_trial = 0
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        for _ in range(sessions):
            with client.control(watchdog=PATIENT) as session:
                versions = {session.step([1, 2, -1], cost=[0, 0]).policy.version for _ in range(5)}
            assert len(versions) == 1
            on_trial += versions == {2}
    assert 5 <= on_trial <= 35  # one of a million binomials with a share of one half lies outside


def test_a_session_moves_to_what_is_served_between_two_of_its_steps(tmp_path: Path, serve_process: Serve) -> None:
    add(tmp_path, 1)
    server = start(serve_process, tmp_path, "--metrics-address", "127.0.0.1:0")
    with (
        PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client,
        client.control(watchdog=PATIENT) as session,
    ):

        def step() -> int:
            answer = session.step([1, 2, -1], cost=[0, 0])
            version = answer.policy.version
            assert answer.action.tolist() == [0.25 / version, -2.0 / version]
            return version

        assert step() == 1
        add(tmp_path, 2)
        eventually(lambda: client.get_policy().policy.version == 2)
        assert step() == 2
        write_plan(tmp_path, "goal", ServingPlan(pinned=1, shadow=2))
        eventually(lambda: client.get_policy().policy.version == 1)
        for _ in range(3):
            assert step() == 1
        compared = 'cvpo_serve_shadow_comparisons_total{outcome="compared",policy="goal",version="2"} 3.0'
        eventually(lambda: compared in metrics_of(server))


# --- several servers ------------------------------------------------------------------------------------------------


def admin_of(server: ServerProcess) -> PolicyAdminServiceStub:
    return PolicyAdminServiceStub(grpc.insecure_channel(str(server.ready["admin_address"])))  # type: ignore[no-untyped-call]


def get(admin: PolicyAdminServiceStub) -> pb.PolicyServing:
    (policy,) = admin.GetServing(pb.GetServingRequest(name="goal"), timeout=PATIENCE_SECONDS).policies
    assert isinstance(policy, pb.PolicyServing)
    return policy


@pytest.mark.parametrize("shared_port", [True, False], ids=["processes of one port", "servers"])
def test_servers_of_one_folder_come_to_serve_the_same(tmp_path: Path, serve_process: Serve, shared_port: bool) -> None:
    for version in (1, 2, 3):
        add(tmp_path, version)
    admin_port = ("--admin-address", "127.0.0.1:0")
    first = start(serve_process, tmp_path, *admin_port, *(["--share-port"] if shared_port else []))
    if shared_port:
        second = serve_process(
            str(tmp_path), "--address", first.address, "--poll-seconds", "0.05", "--share-port", *admin_port
        )
    else:
        second = start(serve_process, tmp_path, *admin_port)
    servers = (first, second)
    admins = [admin_of(server) for server in servers]
    for asked, (admin, other) in ((1, admins), (2, admins[::-1])):
        request = pb.SetServingRequest(name="goal", plan=pb.ServingPlan(pinned=asked, shadow=3))
        told = admin.SetServing(request, timeout=PATIENCE_SECONDS).policy
        assert told.served == asked
        eventually(lambda told=told, other=other: get(other) == told)  # type: ignore[misc]
        for server in servers:
            for _ in range(8):  # on a shared port, each connection is one process's
                with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
                    assert served(client) == asked
    rolled = admins[0].Rollback(pb.RollbackRequest(name="goal"), timeout=PATIENCE_SECONDS).policy
    assert rolled.served == 1
    eventually(lambda: get(admins[1]) == rolled)


# --- under load -----------------------------------------------------------------------------------------------------

OBSERVATIONS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)


class Driver:
    """Asks again and again, and keeps what it was answered."""

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self._order = np.random.default_rng(seed)
        self.answers: list[tuple[int, ActResult]] = []

    def drive(self, enough: threading.Event) -> None:
        with PolicyClient(self._address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
            while not enough.is_set():
                index = int(self._order.integers(len(OBSERVATIONS)))
                self.answers.append((index, client.act(OBSERVATIONS[index])))


def test_no_answer_is_lost_wrong_or_mixed_while_versions_come_and_go(tmp_path: Path, serve_process: Serve) -> None:
    root, archive = tmp_path / "repository", tmp_path / "archive"
    versions = range(1, 9)
    for version in versions:
        add(archive, version)

    def put(version: int) -> None:
        (root / "goal").mkdir(parents=True, exist_ok=True)
        shutil.copytree(archive / "goal" / str(version), root / "goal" / str(version))

    put(1)
    put(2)
    server = start(serve_process, root, "--admin-address", "127.0.0.1:0")
    admin = admin_of(server)
    drivers = [Driver(server.address, seed) for seed in range(3)]
    enough = threading.Event()

    def go_on() -> None:
        """Let some answers come."""
        enough_answers = sum(len(driver.answers) for driver in drivers) + 60
        eventually(lambda: sum(len(driver.answers) for driver in drivers) > enough_answers)

    with ThreadPoolExecutor(len(drivers)) as pool:
        at_work = [pool.submit(driver.drive, enough) for driver in drivers]
        try:
            for version in versions[2:]:
                put(version)
                eventually(lambda version=version: get(admin).served == version)  # type: ignore[misc]
                go_on()
                plan = pb.ServingPlan(pinned=version - 1, canary=pb.Canary(version=version, share=0.5), shadow=None)
                admin.SetServing(pb.SetServingRequest(name="goal", plan=plan), timeout=PATIENCE_SECONDS)
                go_on()
                admin.SetServing(pb.SetServingRequest(name="goal", plan=pb.ServingPlan()), timeout=PATIENCE_SECONDS)
                shutil.rmtree(root / "goal" / str(version - 2))
                go_on()
        finally:
            enough.set()
        for work in at_work:
            work.result(PATIENCE_SECONDS)  # raises what a client was refused
    answers = [answer for driver in drivers for answer in driver.answers]
    assert {result.policy.version for _, result in answers} == set(versions[1:])
    expected = {}
    for version in versions:
        twin = LocalPolicy.load(archive / "goal" / str(version))
        expected[version] = [twin.act(observation) for observation in OBSERVATIONS]
    for index, result in answers:
        assert bits(result) == bits(expected[result.policy.version][index])


def bits(result: ActResult) -> dict[str, object]:
    """All that an answer says, without the time it took."""
    said = {**vars(result), **vars(result.prediction)}
    values = {
        name: np.asarray(value).tobytes()
        for name, value in said.items()
        if name not in ("policy", "prediction", "compute_seconds")
    }
    return {**values, "policy": result.policy}
