"""Control sessions on real servers: that are killed, that stop, and in process, which must make no difference."""

import asyncio
import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from serve.client import PolicyClient
from serve.client.aio import AsyncPolicyClient
from serve.client.answer import ControlAnswer, Source
from serve.client.control_aio import AsyncControlSession
from serve.client.control_client import ControlSession
from serve.client.watchdog import Watchdog, WatchdogReason
from serve.control_values import (
    ConstantAction,
    Fallback,
    FallbackReason,
    HoldLastAction,
    Horizon,
    LeastUnsafeAction,
    RollingWindow,
)
from serve.errors import NotFoundError
from serve.local import LocalPolicy
from serve.values import Sampled, Shielded
from tests.serve.conftest import PATIENCE_SECONDS, ServerProcess

Serve = Callable[..., ServerProcess]

OBSERVATION = [1, 2, -1]
PATIENT = Watchdog(timeout_seconds=PATIENCE_SECONDS)
ROBOTS = 32
WINDOW, PREDICTED = 100, 10  # steps of a rolling session, and those of them that predictions speak of


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "session.key"
    path.write_bytes(b"thirty-two bytes that all share.")
    return path


# --- in process ----------------------------------------------------------------------------------------------------


def same(ours: object, theirs: object) -> None:
    """Equal to the bit, field by field, but for times."""
    if dataclasses.is_dataclass(ours):
        assert type(ours) is type(theirs)
        for field in dataclasses.fields(ours):
            if field.name not in ("timing", "seconds"):
                same(getattr(ours, field.name), getattr(theirs, field.name))
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"cost_budget": [2.5, 60.0], "extent": Horizon(40)},
        {"mode": Sampled(seed=5), "extent": RollingWindow(15), "fallback": Fallback(HoldLastAction())},
        {
            "mode": Shielded(candidates=6, seed=9),
            "cost_budget": [np.inf, 30.0],
            "fallback": Fallback(LeastUnsafeAction()),
        },
        {
            "cost_budget": [1.0, 1.0],
            "fallback": Fallback(ConstantAction((0.5, -1.0)), frozenset({FallbackReason.BUDGET_EXHAUSTED}), 3),
        },
    ],
)
def test_in_process_the_answers_are_those_of_the_service_to_the_bit(
    repository: Path, serve_process: Serve, options: dict[str, object]
) -> None:
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    generator = np.random.default_rng(0)
    local = LocalPolicy.load(repository / "goal")
    with (
        PolicyClient(server.address, timeout_seconds=PATIENCE_SECONDS) as remote,
        local.control(watchdog=PATIENT, **options) as ours,  # type: ignore[arg-type]
        remote.control(watchdog=PATIENT, **options) as theirs,  # type: ignore[arg-type]
    ):
        assert ours.opened.cost_budget == theirs.opened.cost_budget
        for _ in range(40):
            observation = generator.normal(size=3) * 2
            cost = generator.choice([0.0, 0.1, 0.7], size=2)
            answer = ours.step(observation, cost=cost)
            assert answer.source is not Source.WATCHDOG
            same(answer, theirs.step(observation, cost=cost))


def test_an_unknown_policy_cannot_be_opened(repository: Path, serve_process: Serve) -> None:
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    with (
        PolicyClient(server.address, "missing", timeout_seconds=PATIENCE_SECONDS) as client,
        pytest.raises(NotFoundError, match="missing"),
    ):
        client.control()


# --- killed --------------------------------------------------------------------------------------------------------


class Robot:
    """Spends (1, 0) a step, and keeps its own account."""

    def __init__(self, session: AsyncControlSession) -> None:
        self.session = session
        self.session_id = session.opened.session_id
        self.steps = 0
        self.watchdogs: list[str] = []

    async def step(self) -> ControlAnswer:
        self.steps += 1
        answer = await self.session.step(OBSERVATION, cost=[1, 0])
        if answer.watchdog is None:
            assert answer.action.tolist() == [0.25, -2.0]
            spent = min(self.steps, WINDOW - PREDICTED)
            assert answer.cost_spent.tolist() == [spent, 0.0]
            assert answer.cost_left[0] == 1e6 - spent
        else:
            self.watchdogs.append(answer.watchdog.message)
        return answer


async def robots(client: AsyncPolicyClient, timeout_seconds: float) -> list[Robot]:
    """Open sessions that never end."""
    options = {"cost_budget": [1e6, 1e6], "extent": RollingWindow(WINDOW)}
    watchdog = Watchdog(timeout_seconds)
    return [Robot(await client.control(watchdog=watchdog, **options)) for _ in range(ROBOTS)]  # type: ignore[arg-type]


def test_robots_go_on_with_their_sessions_when_the_server_was_killed(
    repository: Path, serve_process: Serve, key: Path
) -> None:
    arguments = (str(repository / "goal"), "--session-key-file", str(key), "--address")
    first = serve_process(*arguments, "127.0.0.1:0")

    async def run() -> None:
        async with AsyncPolicyClient(first.address, timeout_seconds=PATIENCE_SECONDS) as client:
            fleet = await robots(client, timeout_seconds=0.5)
            await asyncio.gather(*(robot.step() for robot in fleet))
            first.terminate(signal.SIGKILL)
            away = await asyncio.gather(*(robot.step() for robot in fleet))
            assert {answer.source for answer in away} == {Source.WATCHDOG}
            await asyncio.to_thread(serve_process, *arguments, first.address)
            for robot in fleet:
                while (await robot.step()).watchdog is not None:
                    """The server is not found yet."""
                assert robot.session.opened.session_id == robot.session_id
            for robot in fleet:
                await robot.session.close()

    asyncio.run(run())


def test_a_restart_without_a_shared_key_is_the_end_of_a_session_and_says_so(
    repository: Path, serve_process: Serve
) -> None:
    first = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    before = set(threading.enumerate())
    with (
        PolicyClient(first.address, timeout_seconds=PATIENCE_SECONDS) as client,
        client.control(watchdog=Watchdog(timeout_seconds=0.5)) as session,
    ):
        first.terminate(signal.SIGKILL)
        serve_process(str(repository / "goal"), "--address", first.address)
        while (taken := session.step(OBSERVATION, cost=[0, 0]).watchdog) is not None:
            if taken.reason is WatchdogReason.SESSION_LOST:
                break
        assert taken is not None
        assert "--session-key-file" in taken.message
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not set(threading.enumerate()) <= before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


# --- stopped -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def driving(fleet: list[Robot]) -> AsyncIterator[None]:
    """Let the robots step, and close their sessions in the end."""
    running = True

    async def drive(robot: Robot) -> None:
        while running:
            await robot.step()
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(drive(robot)) for robot in fleet]
    yield
    running = False
    await asyncio.gather(*tasks)
    for robot in fleet:
        await robot.session.close()


def test_servers_that_stop_one_after_the_other_cost_no_step(repository: Path, serve_process: Serve, key: Path) -> None:
    arguments = (str(repository / "goal"), "--session-key-file", str(key), "--address")
    servers = [serve_process(*arguments, "127.0.0.1:0") for _ in range(2)]
    addresses = [server.address for server in servers]

    async def run() -> list[Robot]:
        async with AsyncPolicyClient(addresses, timeout_seconds=PATIENCE_SECONDS) as client:
            fleet = await robots(client, timeout_seconds=PATIENCE_SECONDS)
            async with driving(fleet):
                for index in range(2):
                    steps = sum(robot.steps for robot in fleet)
                    assert await asyncio.to_thread(servers[index].terminate) == 0
                    servers[index] = await asyncio.to_thread(serve_process, *arguments, addresses[index])
                    while sum(robot.steps for robot in fleet) < steps + 4 * ROBOTS:
                        await asyncio.sleep(0.01)
            return fleet

    assert [message for robot in asyncio.run(run()) for message in robot.watchdogs] == []


def test_a_session_leaves_a_server_that_freezes_and_no_cost_is_lost(
    repository: Path, serve_process: Serve, key: Path
) -> None:
    arguments = (str(repository / "goal"), "--session-key-file", str(key), "--address", "127.0.0.1:0")
    servers = [serve_process(*arguments) for _ in range(2)]
    with (
        PolicyClient([server.address for server in servers], timeout_seconds=PATIENCE_SECONDS) as client,
        client.control(watchdog=Watchdog(timeout_seconds=0.2)) as session,
    ):
        while session.step(OBSERVATION, cost=[0, 0]).source is Source.WATCHDOG:
            pass
        servers[0].process.send_signal(signal.SIGSTOP)  # its connections stay open, and say nothing
        try:
            steps, deadline = 1, time.monotonic() + PATIENCE_SECONDS
            while (answer := session.step(OBSERVATION, cost=[0.5, 0])).source is Source.WATCHDOG:
                assert time.monotonic() < deadline
                steps += 1
        finally:
            servers[0].process.send_signal(signal.SIGCONT)
    assert steps > 1
    assert answer.cost_spent[0] == steps / 2


def test_a_process_of_a_shared_port_that_stops_costs_no_step(repository: Path, serve_process: Serve, key: Path) -> None:
    arguments = (str(repository / "goal"), "--share-port", "--session-key-file", str(key), "--address")
    stopping = serve_process(*arguments, "127.0.0.1:0")
    serve_process(*arguments, stopping.address)

    async def run() -> list[Robot]:
        async with AsyncPolicyClient(stopping.address, timeout_seconds=PATIENCE_SECONDS) as client:
            fleet = await robots(client, timeout_seconds=PATIENCE_SECONDS)
            async with driving(fleet):
                assert await asyncio.to_thread(stopping.terminate) == 0
            return fleet

    assert [message for robot in asyncio.run(run()) for message in robot.watchdogs] == []


def test_a_robot_with_threads_of_its_own_loses_no_step_either(
    repository: Path, serve_process: Serve, key: Path
) -> None:
    arguments = (str(repository / "goal"), "--session-key-file", str(key), "--address", "127.0.0.1:0")
    servers = [serve_process(*arguments) for _ in range(2)]
    addresses = [server.address for server in servers]

    def count(session: ControlSession, steps: int) -> int:
        return sum(session.step(OBSERVATION, cost=[1, 0]).source is Source.WATCHDOG for _ in range(steps))

    with (
        PolicyClient(addresses, timeout_seconds=PATIENCE_SECONDS) as client,
        client.control(watchdog=PATIENT) as session,
    ):
        assert count(session, 5) == 0
        servers[0].process.send_signal(signal.SIGTERM)
        watchdogs = steps = 0
        while servers[0].process.poll() is None and steps < 90:
            watchdogs += count(session, 1)
            steps += 1
        assert watchdogs == 0
        last = session.step(OBSERVATION, cost=[0, 0])
        assert (last.step, last.cost_spent[0]) == (steps + 5, steps + 5.0)
