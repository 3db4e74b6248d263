"""Server processes whose repository changes under them: what they serve, what they refuse, and what they say of it."""

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.client import PolicyClient
from serve.errors import NotFoundError, UnavailableError
from serve.plan import ServingPlan, write_plan
from tests.serve import bundles
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess

Serve = Callable[..., ServerProcess]
SERVICE = "cvpo.v1.PolicyService"


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
    events = [json.loads(line)["event"] for line in server.process.stderr.read().splitlines()]
    assert events.index("nothing to serve yet") < events.index("bundle loaded") < events.index("serving")


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

    def metrics() -> str:
        with urllib.request.urlopen(f"http://{server.ready['metrics_address']}/metrics") as response:
            return str(response.read().decode())

    (add(tmp_path, 2) / "critic.onnx").write_bytes(b"")
    eventually(lambda: 'cvpo_serve_bundle_refused{path="goal/2"} 1.0' in metrics())
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        assert served(client) == 1
        shutil.rmtree(tmp_path / "goal" / "2")
        add(tmp_path, 2)
        eventually(lambda: served(client) == 2)
    assert "cvpo_serve_bundle_refused{" not in metrics()
    assert 'cvpo_serve_bundle_served{policy="goal",version="2"} 1.0' in metrics()
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
