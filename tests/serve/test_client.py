"""The client where no server is, and the client alone: in an environment that has the bare package."""

import asyncio
import contextlib
import math
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest

from serve.client import PolicyClient, channel
from serve.client.aio import AsyncPolicyClient
from serve.errors import (
    DeadlineExceededError,
    FingerprintError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PolicyServiceError,
    ResourceExhaustedError,
    UnavailableError,
)
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server
from serve.server import process
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess
from tests.serve.proxy import Proxy
from tests.serve.running import ServerThread

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_server_is_one_sentence_that_says_what_to_do() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        PolicyClient(address, timeout_seconds=30) as client,
        pytest.raises(UnavailableError, match=f"No server answers at {address}; start one with `cvpo serve") as caught,
    ):
        client.act([1, 2, 3])
    assert caught.value.retry_after_seconds is None


def test_a_server_that_accepts_and_is_silent_meets_the_deadline() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with PolicyClient(address, timeout_seconds=0.1) as client, pytest.raises(DeadlineExceededError, match=address):
            client.act([1, 2, 3])


def test_a_client_that_is_told_no_time_waits_half_a_second_for_a_silent_server() -> None:
    async def ask_async(address: str) -> None:
        async with AsyncPolicyClient(address) as client:
            await client.act([1, 2, 3])

    def ask(address: str) -> None:
        with PolicyClient(address) as client:
            client.act([1, 2, 3])

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for call in (ask, lambda address: asyncio.run(ask_async(address))):
            began = time.monotonic()
            with pytest.raises(DeadlineExceededError, match=r"within 0\.5 s; allow more time"):
                call(address)
            assert 0.5 <= time.monotonic() - began < PATIENCE_SECONDS


@pytest.mark.parametrize("version", [-1, 1.5, 2**64, "1"])
def test_a_version_that_is_none_is_refused_by_every_client(version: Any, repository: Path) -> None:
    for make in (PolicyClient, AsyncPolicyClient):
        with pytest.raises(InvalidRequestError) as caught:
            make("127.0.0.1:1", version=version)
        assert caught.value.field == "version"


@pytest.mark.parametrize("given", [{"policy": 3}, {"fingerprint": b"00"}])
def test_a_name_that_is_none_is_refused_by_every_client(given: Any) -> None:
    for make in (PolicyClient, AsyncPolicyClient):
        with pytest.raises(InvalidRequestError, match="give a text") as caught:
            make("127.0.0.1:1", **given)
        assert caught.value.field in given


@pytest.mark.parametrize("timeout_seconds", [0, -1, 1e10, math.inf, math.nan, None, "1"])
def test_a_timeout_that_is_none_is_refused_by_every_client(timeout_seconds: Any) -> None:
    for make in (PolicyClient, AsyncPolicyClient):
        with pytest.raises(InvalidRequestError, match="give seconds, above zero and at most 86400") as caught:
            make("127.0.0.1:1", timeout_seconds=timeout_seconds)
        assert caught.value.field == "timeout_seconds"


def test_a_client_that_is_closed_says_so(server: ServerThread) -> None:
    with PolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
        client.get_policy()
    for call in (client.list_policies, client.control, partial(client.act, [1, 2, 3])):
        with pytest.raises(PolicyServiceError, match=r"^The client is closed; make another one\.$"):
            call()

    async def ask() -> None:
        async with AsyncPolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS) as client:
            await client.get_policy()
        for call in (client.list_policies, client.control, partial(client.act, [1, 2, 3])):
            with pytest.raises(PolicyServiceError, match=r"^The client is closed; make another one\.$"):
                await call()

    asyncio.run(ask())


def test_a_client_that_another_event_loop_has_asked_says_so(server: ServerThread) -> None:
    client = AsyncPolicyClient(server.address, "goal", timeout_seconds=PATIENCE_SECONDS)

    async def ask() -> None:
        assert (await client.get_policy()).policy.name == "goal"

    async def ask_and_close() -> None:
        async with client:
            await ask()

    asyncio.run(ask())
    with pytest.raises(PolicyServiceError, match=r"^The client is of the event loop that asked it first; make one for"):
        asyncio.run(ask_and_close())


@pytest.mark.parametrize("addresses", [1, 2])
def test_a_call_under_which_its_client_is_closed_says_so(addresses: int) -> None:
    async def close_under_a_call(asked: list[str], reached: Callable[[], Awaitable[object]]) -> None:
        async with AsyncPolicyClient(asked, timeout_seconds=PATIENCE_SECONDS) as client:
            call = asyncio.create_task(client.act([1, 2, -1]))
            await reached()
        with pytest.raises(PolicyServiceError, match=r"^The client is closed; make another one\.$"):
            await call
        assert not call.cancelled()

    with ThreadPoolExecutor(1) as pool, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # accepts, and says nothing
        host, port = listener.getsockname()
        asked = [f"{host}:{port}", f"localhost:{port}"][:addresses]
        with PolicyClient(asked, timeout_seconds=PATIENCE_SECONDS) as client:
            call = pool.submit(client.act, [1, 2, -1])
            connection = listener.accept()[0]
        with pytest.raises(PolicyServiceError, match=r"^The client is closed; make another one\.$"):
            call.result(PATIENCE_SECONDS)
        connection.close()
        asyncio.run(close_under_a_call(asked, partial(asyncio.to_thread, listener.accept)))


class Aborting(PolicyServiceServicer):
    """Answers every call with one status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def ListPolicies(self, request: object, context: grpc.ServicerContext) -> NoReturn:  # noqa: N802
        context.set_trailing_metadata((("grpc-status-details-bin", b"not a status"),))
        context.abort(self._code, "so it is")


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, FingerprintError),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.CANCELLED, UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.UNIMPLEMENTED, PolicyServiceError),
        (grpc.StatusCode.UNAUTHENTICATED, PolicyServiceError),
    ],
)
def test_every_status_is_an_error_of_ours_that_says_which_server(
    code: grpc.StatusCode, raised: type[PolicyServiceError]
) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    add_PolicyServiceServicer_to_server(Aborting(code), server)  # type: ignore[no-untyped-call]
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with PolicyClient(address, timeout_seconds=30) as client, pytest.raises(PolicyServiceError) as caught:
        client.list_policies()
    server.stop(None).wait()
    assert type(caught.value) is raised
    assert address in str(caught.value) or raised is InvalidRequestError


def test_a_client_finds_a_server_that_comes_back(repository: Path, serve_process: Callable[..., ServerProcess]) -> None:
    first = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    with PolicyClient(first.address, timeout_seconds=30) as client:
        client.act([1, 2, -1])
        assert first.terminate() == 0
        with pytest.raises(UnavailableError):
            client.act([1, 2, -1])
        serve_process(str(repository / "goal"), "--address", first.address)
        while True:  # fails at once until the channel connects again
            with contextlib.suppress(UnavailableError):
                assert client.act([1, 2, -1]).action.tolist() == [0.25, -2.0]
                break


def test_a_connection_that_falls_silent_is_left_for_a_new_one(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"grpc.keepalive_time_ms": 300, "grpc.http2.ping_timeout_ms": 300}
    options = tuple((name, quick.get(name, value)) for name, value in channel._OPTIONS)
    monkeypatch.setattr(channel, "_OPTIONS", options)
    proxy = Proxy(server.address)

    async def answered(act: Callable[[], Awaitable[object]]) -> None:
        while True:
            with contextlib.suppress(DeadlineExceededError, UnavailableError):
                await act()
                return

    async def run() -> None:
        with PolicyClient(proxy.address, "goal", timeout_seconds=0.5) as client:
            async with AsyncPolicyClient(proxy.address, "goal", timeout_seconds=0.5) as twin:
                acts = partial(asyncio.to_thread, client.act, [1, 2, -1]), partial(twin.act, [1, 2, -1])
                await asyncio.gather(*(answered(act) for act in acts))
                await asyncio.sleep(0.1)  # no question is open, not even one that measures the bandwidth
                proxy.fall_silent()
                await asyncio.gather(*(answered(act) for act in acts))

    try:
        asyncio.run(asyncio.wait_for(run(), PATIENCE_SECONDS))
    finally:
        proxy.close()


def test_clients_ask_for_signs_of_life_less_often_than_servers_allow() -> None:
    assert channel._KEEPALIVE_MS > process._KEEPALIVE_MS // 2


ROBOT = """
import asyncio
import sys
from serve.client.aio import AsyncPolicyClient
from serve.client import PolicyClient
from serve.client.episode import run_episode
from serve.errors import InvalidRequestError
from serve.client.watchdog import Watchdog
for absent in ("torch", "gymnasium", "scipy", "onnx", "onnxruntime", "pydantic", "typer", "prometheus_client"):
    try:
        __import__(absent)
    except ImportError:
        continue
    raise SystemExit(f"{absent} is installed")
with PolicyClient(sys.argv[1], timeout_seconds=30) as policy:
    print(policy.act([1, 2, -1]).action.tolist())
    print(policy.evaluate_action([1, 2, -1], [0, 0]).prediction.flagged)
    print(policy.get_policy().policy.name)
    try:
        policy.act([1, 2])
    except InvalidRequestError as error:
        print(error.field)
    with policy.control(watchdog=Watchdog(timeout_seconds=30)) as session:
        print(session.step([1, 2, -1], cost=[0, 0]).source.name)


async def drive():
    async with AsyncPolicyClient(sys.argv[1], timeout_seconds=30) as twin:
        async with await twin.control(watchdog=Watchdog(timeout_seconds=30)) as session:
            print((await session.step([1, 2, -1], cost=[0, 0])).action.tolist())


asyncio.run(drive())
"""


def test_the_bare_wheel_is_enough_for_a_robot(
    tmp_path: Path, repository: Path, serve_process: Callable[..., ServerProcess]
) -> None:
    # Slow (tens of seconds): builds the wheel and installs it with its four dependencies, so it asks the package index.
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("cvpo-*.whl")
    venv.create(tmp_path / "robot", with_pip=False)
    python = str(tmp_path / "robot" / "bin" / "python")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *constraints, str(wheel)], check=True
    )
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    run = subprocess.run(
        [python, "-c", ROBOT, server.address], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        *("[0.25, -2.0]", "False", "goal", "situations[0].observation"),
        *("POLICY", "[0.25, -2.0]"),
    ]
    run = subprocess.run([python, "-m", "serve", "bundles"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    (said,) = run.stderr.splitlines()
    assert said.startswith("The server needs ")
    assert said.endswith("Install it with: pip install 'cvpo[serve]'")
