"""Both clients over TLS, and over mutual TLS."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.client import PolicyClient
from serve.client.aio import AsyncPolicyClient
from serve.client.channel import Tls
from serve.errors import UnavailableError
from tests.serve.certificates import Authority
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess

Serve = Callable[..., ServerProcess]


def name(address: str, tls: Tls | None) -> str:
    with PolicyClient(address, timeout_seconds=PATIENCE_SECONDS, tls=tls) as client:
        return client.get_policy().policy.name


def name_async(address: str, tls: Tls | None) -> str:
    async def run() -> str:
        async with AsyncPolicyClient(address, timeout_seconds=PATIENCE_SECONDS, tls=tls) as client:
            return (await client.get_policy()).policy.name

    return asyncio.run(run())


@pytest.mark.parametrize("asks", [name, name_async])
def test_a_client_shows_who_it_is_to_a_server_whose_authority_it_knows(
    asks: Callable[[str, Tls | None], str], tmp_path: Path, repository: Path, serve_process: Serve
) -> None:
    authority = Authority(tmp_path, "factory")
    certificate, key = authority.issue("server")
    server = serve_process(
        str(repository / "goal"),
        *("--address", "127.0.0.1:0", "--tls-certificate", str(certificate), "--tls-key", str(key)),
        *("--tls-client-ca", str(authority.certificate)),
    )
    robot, robot_key = authority.issue("robot")
    assert asks(server.address, Tls(authority.certificate, robot, robot_key)) == "goal"
    assert asks(server.address, Tls(authority.certificate, robot, robot_key, server_name="localhost")) == "goal"
    stranger = Authority(tmp_path, "stranger")
    for tls in (
        None,
        Tls(authority.certificate),
        Tls(authority.certificate, *stranger.issue("thief")),
        Tls(stranger.certificate, robot, robot_key),
        Tls(authority.certificate, robot, robot_key, server_name="elsewhere"),
    ):
        with pytest.raises(UnavailableError):
            asks(server.address, tls)
