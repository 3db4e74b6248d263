"""Both clients over TLS, and over mutual TLS."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serve.client import PolicyClient
from serve.client.aio import AsyncPolicyClient
from serve.client.answer import Source
from serve.client.channel import Tls
from serve.client.watchdog import Watchdog
from serve.errors import UnavailableError
from serve.server.settings import Settings
from tests.serve.certificates import Authority
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess
from tests.serve.running import ServerThread

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
        with pytest.raises(UnavailableError, match="TLS or neither, with a certificate of the client where"):
            asks(server.address, tls)


def test_files_that_are_renewed_are_taken_up_with_the_next_connection(tmp_path: Path, repository: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    files = tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key"
    session_key = tmp_path / "session.key"
    session_key.write_bytes(bytes(32))

    def install(authority: Authority) -> None:
        for source, target in zip((authority.certificate, *authority.issue("robot")), files, strict=True):
            shutil.copy(source, target)

    def serve(authority: Authority, address: str) -> ServerThread:
        certificate, key = authority.issue("server")
        return ServerThread(
            Settings(
                repository=repository / "goal",
                address=address,
                tls_certificate=certificate,
                tls_key=key,
                tls_client_ca=authority.certificate,
                session_key_file=session_key,
            )
        )

    async def answered(act: Callable[[], Awaitable[object]]) -> None:
        while True:
            with contextlib.suppress(UnavailableError):
                await act()
                return

    async def run() -> None:
        install(old)
        server = await asyncio.to_thread(serve, old, "127.0.0.1:0")
        options: dict[str, Any] = {"timeout_seconds": PATIENCE_SECONDS, "tls": Tls(*files)}
        async with contextlib.AsyncExitStack() as stack:
            client = stack.enter_context(PolicyClient(server.address, **options))
            twin = await stack.enter_async_context(AsyncPolicyClient(server.address, **options))
            watchdog = Watchdog(timeout_seconds=PATIENCE_SECONDS)
            session = stack.enter_context(client.control(watchdog=watchdog))
            twin_session = await stack.enter_async_context(await twin.control(watchdog=watchdog))
            await asyncio.to_thread(server.stop, 0)
            server = await asyncio.to_thread(serve, new, server.address)
            stack.callback(server.stop, 0)
            with pytest.raises(UnavailableError):
                await twin.act([1, 2, -1])
            install(new)
            await answered(partial(asyncio.to_thread, client.act, [1, 2, -1]))
            await answered(partial(twin.act, [1, 2, -1]))
            answers = (
                await asyncio.to_thread(session.step, [1, 2, -1], cost=[0, 0]),
                await twin_session.step([1, 2, -1], cost=[0, 0]),
            )
            assert [answer.source for answer in answers] == [Source.POLICY, Source.POLICY]

    asyncio.run(asyncio.wait_for(run(), PATIENCE_SECONDS))
