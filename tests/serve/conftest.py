"""A server in this process, and server processes, each on a free port."""

import json
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from hypothesis import settings as hypothesis_settings

from serve.client import PolicyClient
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.server.settings import Settings
from tests.serve import bundles
from tests.serve.running import ServerThread

hypothesis_settings.register_profile("cvpo", deadline=None)  # a busy machine is not a failure
hypothesis_settings.load_profile("cvpo")

PATIENCE_SECONDS = 30.0  # for what takes milliseconds on a quiet machine


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policy goal in versions 1 and 2, and policy other in version 7, which has no calibration."""
    root = tmp_path_factory.mktemp("repository")
    bundles.write(root / "goal" / "1", bundles.manifest(version=1))
    bundles.write(root / "goal" / "2", bundles.manifest(version=2, cost_limit=(20.0, None)))
    bundles.write(root / "other", bundles.manifest("other", 7, calibration=None))
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerThread]:
    settings = Settings(
        repository=repository,
        address="127.0.0.1:0",
        metrics_address="127.0.0.1:0",
        allow_uncalibrated=True,
        max_batch=16,
        max_candidates=32,
        max_rows=128,
        max_message_bytes=64 * 1024,
    )
    running = ServerThread(settings)
    yield running
    running.stop(drain_seconds=5)


@pytest.fixture
def stub(server: ServerThread) -> Iterator[PolicyServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield PolicyServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture
def client(server: ServerThread) -> Iterator[PolicyClient]:
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        yield client


@dataclass(frozen=True)
class ServerProcess:
    """`python -m serve` that has said where it answers."""

    process: subprocess.Popen[str]
    ready: dict[str, object]

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


def spawn(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def serve_process() -> Iterator[Callable[..., ServerProcess]]:
    """Start `python -m serve` with arguments and wait until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def serve(*arguments: str) -> ServerProcess:
        process = spawn(*arguments)
        started.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0], "the server did not say it is ready"
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        return ServerProcess(process, json.loads(line))

    yield serve
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
