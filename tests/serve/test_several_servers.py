"""Calls over several addresses, in both clients: one of them is down, silent, stopping, or asks for TLS."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.client import PolicyClient
from serve.client.aio import AsyncPolicyClient
from serve.errors import InvalidRequestError, NotFoundError, UnavailableError
from serve.values import ActResult, Shielded
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess

Serve = Callable[..., ServerProcess]
Ask = Callable[..., ActResult]
OBSERVATION = [1, 2, -1]
ACTION = [0.25, -2.0]


def ask(addresses: list[str], timeout_seconds: float = PATIENCE_SECONDS, calls: int = 1) -> ActResult:
    with PolicyClient(addresses, timeout_seconds=timeout_seconds) as client:
        return [client.act(OBSERVATION) for _ in range(calls)][-1]


def ask_async(addresses: list[str], timeout_seconds: float = PATIENCE_SECONDS, calls: int = 1) -> ActResult:
    async def run() -> ActResult:
        async with AsyncPolicyClient(addresses, timeout_seconds=timeout_seconds) as client:
            return [await client.act(OBSERVATION) for _ in range(calls)][-1]

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("asks", [ask, ask_async])


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@BOTH
def test_an_address_that_is_down_is_passed_over(asks: Ask, repository: Path, serve_process: Serve, nobody: str) -> None:
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    assert asks([nobody, server.address]).action.tolist() == ACTION


@BOTH
def test_an_address_that_is_silent_takes_its_share_of_the_time_and_no_more(
    asks: Ask, repository: Path, serve_process: Serve, silent: str
) -> None:
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    assert asks([silent, server.address], timeout_seconds=4.0, calls=3).action.tolist() == ACTION


@BOTH
def test_when_all_are_down_the_error_names_them(asks: Ask, nobody: str) -> None:
    with pytest.raises(UnavailableError, match=f"{nobody}, unix:/nowhere/policy.sock"):
        asks([nobody, "unix:/nowhere/policy.sock"])


def test_a_server_that_stops_hands_over_without_a_failed_call(repository: Path, serve_process: Serve) -> None:
    servers = [serve_process(str(repository / "goal"), "--address", "127.0.0.1:0") for _ in range(2)]
    addresses = [server.address for server in servers]
    with PolicyClient(addresses, timeout_seconds=PATIENCE_SECONDS) as client:
        client.act(OBSERVATION)
        assert servers[0].terminate() == 0
        for _ in range(20):
            assert client.act(OBSERVATION).action.tolist() == ACTION


def test_the_asyncio_client_answers_as_the_other(repository: Path, serve_process: Serve) -> None:
    server = serve_process(str(repository), "--address", "127.0.0.1:0", "--allow-uncalibrated")
    batch = np.array([OBSERVATION, [0.5, 0, 0]])
    mode = Shielded(candidates=4, seed=3)

    async def run() -> None:
        async with AsyncPolicyClient(server.address, "goal", version=1, timeout_seconds=PATIENCE_SECONDS) as twin:
            with PolicyClient(server.address, "goal", version=1, timeout_seconds=PATIENCE_SECONDS) as client:
                ours = await twin.act(batch, steps_left=7, cost_allowed=[1.5, 2.5], mode=mode)
                theirs = client.act(batch, steps_left=7, cost_allowed=[1.5, 2.5], mode=mode)
                assert ours.action.shape == (2, 2)
                np.testing.assert_array_equal(ours.action, theirs.action)
                np.testing.assert_array_equal(ours.prediction.cost_to_go, theirs.prediction.cost_to_go)
                judged = await twin.evaluate_action(OBSERVATION, [0.5, -1.0], steps_left=3, cost_allowed=[1, 1])
                assert judged.prediction.cost_to_go.tolist() == [1.5, 1.5]
                assert await twin.get_policy() == client.get_policy()
                assert await twin.list_policies() == client.list_policies()
            with pytest.raises(InvalidRequestError, match=r"situations\[0\]\.observation"):
                await twin.act([1, 2])
        async with AsyncPolicyClient(server.address, "missing", timeout_seconds=PATIENCE_SECONDS) as stranger:
            with pytest.raises(NotFoundError, match="missing"):
                await stranger.get_policy()

    asyncio.run(run())
