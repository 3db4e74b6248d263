"""Sessions whose servers are killed, or stopped, in the middle: they go on elsewhere as if nothing had happened."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.rpc import code_pb2

from serve.codec import Limits
from serve.control_codec import decode_opening, decode_step, encode_opening, encode_result, opening_digest
from serve.control_values import (
    BackupPolicy,
    ConstantAction,
    Fallback,
    HoldLastAction,
    Horizon,
    LeastUnsafeAction,
    Opening,
    PolicySelector,
    RollingWindow,
)
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.server.session import Session, open_session
from serve.server.state import StateSeal
from serve.server.watch import load_repository
from serve.values import Sampled, Shielded
from tests.serve.conftest import ServerProcess
from tests.serve.robots import CALM, Robot

Serve = Callable[..., ServerProcess]

GOAL = PolicySelector("goal")
STEPS = 40
OPENINGS = [
    Opening(GOAL, cost_budget=(3.0, math.inf), fallback=Fallback(HoldLastAction(), recovery_steps=3)),
    Opening(GOAL, extent=RollingWindow(12), mode=Sampled(5), fallback=Fallback(ConstantAction((0.5, -1.0)))),
    Opening(GOAL, extent=Horizon(STEPS), mode=Shielded(4, 7), fallback=Fallback(LeastUnsafeAction(8))),
    Opening(GOAL, cost_budget=(9.0, 9.0), fallback=Fallback(BackupPolicy(PolicySelector("goal", version=1)))),
]


class Life:
    """What one robot sees and pays, step by step; the same for every robot of the same seed."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.observations = random.normal(0, 1.5, (STEPS, 3)).astype(np.float32)
        costs = random.choice([0.0, 0.1, 0.5], (STEPS, 2)) * random.random((STEPS, 2))
        self.cost_totals = np.cumsum(costs, axis=0)

    def step(self, number: int) -> pb.ControlStep:
        return pb.ControlStep(
            step=number,
            observation=self.observations[number].tolist(),
            cost_total=self.cost_totals[number].tolist(),
        )


def comparable(result: pb.ControlResult) -> bytes:
    """All of a result but the time it took and when its state was issued."""
    kept = pb.ControlResult()
    kept.CopyFrom(result)
    kept.ClearField("timing")
    kept.ClearField("state")
    return kept.SerializeToString(deterministic=True)


def undisturbed(repository: Path, opening: Opening, life: Life) -> list[bytes]:
    """The results of a session that nothing happens to, computed in this process."""
    message = encode_opening(opening)
    loaded = load_repository(repository, allow_uncalibrated=True)
    seal = StateSeal(b"0123456789abcdef", 60.0)
    session: Session = open_session(decode_opening(message, Limits()), opening_digest(message), loaded, seal)
    return [comparable(encode_result(session.step(decode_step(life.step(number)))).result) for number in range(STEPS)]


class Wanderer:
    """A robot that goes on elsewhere from its last answer when its server is gone."""

    def __init__(self, opening: Opening, life: Life) -> None:
        self._opening = opening
        self._life = life
        self._state = b""
        self._robot: Robot | None = None
        self.results: dict[int, bytes] = {}

    def connect(self, address: str) -> int:
        """Open, or go on, and return the number of the next step."""
        self.leave()
        self._robot = Robot(address, encode_opening(self._opening, self._state))
        opened = self._robot.opened()
        self._state = opened.state
        return opened.next_step

    def send(self, number: int) -> None:
        assert self._robot is not None
        self._robot.send_request(pb.ControlRequest(step=self._life.step(number)))

    def receive(self) -> None:
        assert self._robot is not None
        result = self._robot.result()
        self.results[result.step] = comparable(result)
        self._state = result.state

    def leave(self) -> None:
        if self._robot is not None:
            self._robot.__exit__(None, None, None)
            self._robot = None


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    return path


def arguments(repository: Path, key_file: Path) -> list[str]:
    key = ("--session-key-file", str(key_file))
    return [str(repository), "--address", "127.0.0.1:0", "--allow-uncalibrated", *key]


def test_sessions_outlive_their_servers_and_answer_as_if_nothing_had_happened(
    repository: Path, key_file: Path, serve_process: Serve
) -> None:
    lives = [Life(seed) for seed in range(len(OPENINGS))]
    robots = [Wanderer(opening, life) for opening, life in zip(OPENINGS, lives, strict=True)]
    number = 0
    for life_of_server in range(4):
        server = serve_process(*arguments(repository, key_file))
        for robot in robots:
            assert robot.connect(server.address) == number
        last = life_of_server == 3
        for _ in range(STEPS - number if last else 9):
            for robot in robots:
                robot.send(number)
            for robot in robots:
                robot.receive()
            number += 1
        if not last:
            for robot in robots:
                robot.send(number)  # answered or not, and that answer read or not: the robot sends it again
            server.terminate(signal.SIGKILL)
    for robot in robots:
        robot.leave()
    for robot, opening, life in zip(robots, OPENINGS, lives, strict=True):
        assert [robot.results[step] for step in range(STEPS)] == undisturbed(repository, opening, life), opening


def test_a_server_that_stops_hands_its_robots_over(repository: Path, key_file: Path, serve_process: Serve) -> None:
    first, second = (serve_process(*arguments(repository, key_file), "--drain-seconds", "20") for _ in range(2))
    opening = encode_opening(Opening(GOAL))
    with Robot(first.address, opening) as robot:
        session_id = robot.opened().session_id
        robot.step(0)
        first.process.send_signal(signal.SIGTERM)
        assert robot.notice().kind == pb.NOTICE_KIND_DRAINING
        result = robot.step(1, CALM, (0.5, 0.0))  # answered while the server waits for its robots to leave
    assert first.process.wait(30) == 0  # the last one has left
    with Robot(second.address, encode_opening(Opening(GOAL), result.state)) as robot:
        opened = robot.opened()
        assert (opened.session_id, opened.next_step) == (session_id, 2)
        assert robot.step(2, CALM, (0.75, 0.0)).budgets[0].spent == 0.75


def test_without_a_common_key_a_session_cannot_move(repository: Path, serve_process: Serve) -> None:
    addresses = [
        serve_process(str(repository), "--address", "127.0.0.1:0", "--allow-uncalibrated").address for _ in range(2)
    ]
    with Robot(addresses[0], encode_opening(Opening(GOAL))) as robot:
        state = robot.opened().state
    with Robot(addresses[1], encode_opening(Opening(GOAL), state)) as robot:
        status = robot.status()
    assert status.code == code_pb2.FAILED_PRECONDITION
    assert "--session-key-file" in status.message


def test_a_stale_state_is_refused_and_an_idle_stream_is_closed(
    repository: Path, key_file: Path, serve_process: Serve
) -> None:
    server = serve_process(*arguments(repository, key_file), "--session-idle-seconds", "1")
    with Robot(server.address, encode_opening(Opening(GOAL))) as robot:
        state = robot.opened().state
        assert robot.status().code == code_pb2.DEADLINE_EXCEEDED  # 1 s later
    with Robot(server.address, encode_opening(Opening(GOAL), state)) as robot:
        status = robot.status()
    assert status.code == code_pb2.FAILED_PRECONDITION
    assert "old" in status.message
    assert server.terminate() == 0
    assert server.process.stderr is not None
    events = [json.loads(line) for line in server.process.stderr.read().splitlines()]
    assert [event["why"] for event in events if event["event"] == "session ended"] == ["DEADLINE_EXCEEDED"]
    assert [event["event"] for event in events].count("session state refused") == 1


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_key_that_cannot_be_used_keeps_the_server_from_starting(
    repository: Path, tmp_path: Path, content: bytes | None
) -> None:
    from tests.serve.test_server import refused

    path = tmp_path / "bad-key"
    if content is not None:
        path.write_bytes(content)
    assert "--session-key-file" in refused(str(repository), "--session-key-file", str(path))
