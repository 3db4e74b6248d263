"""What queues in a stream, without one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import pytest

import serve.server.inbox
from serve.errors import DeadlineExceededError, InvalidRequestError
from serve.server.inbox import MAX_WAITING, Inbox

MAX_BYTES = 1000


class Message(int):
    """A number that is as large as it is told to be."""

    size = 1

    def ByteSize(self) -> int:  # noqa: N802  # as messages call it
        return self.size


class Large(Message):
    size = MAX_BYTES // 2


class Stream:
    """Hands over one message at a time, each a little after it is asked for, as gRPC does."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[object] = asyncio.Queue()
        self.begun = 0
        self.reads = 0

    async def read(self) -> object:
        self.begun += 1
        message = await self.sent.get()
        for _ in range(3):
            await asyncio.sleep(0)
        if isinstance(message, Exception):
            raise message
        self.reads += 1
        return message


def conversation(take: Callable[[Stream, Inbox], Awaitable[None]], idle_seconds: float = 60.0) -> Inbox:
    """Let a task take from an inbox, to its end, and return the inbox."""

    async def run() -> Inbox:
        stream = Stream()
        taker = asyncio.current_task()
        assert taker is not None
        inbox = Inbox(cast(Any, stream), taker, idle_seconds, max_bytes=MAX_BYTES)
        try:
            await take(stream, inbox)
        except asyncio.CancelledError:
            assert inbox.failure is not None
        finally:
            inbox.close()
        return inbox

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.server.inbox, "_HAND_OVER_SECONDS", 0.5)  # also where the machine is slow


def test_one_message_is_taken_at_once() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        for number in range(3):
            stream.sent.put_nowait(Message(number))
            assert [message for _, message in await inbox.take()] == [number]

    conversation(take)


def test_who_takes_goes_before_the_next_read() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        for number in range(3):
            stream.sent.put_nowait(Message(number))
            await inbox.take()
            assert stream.begun == number + 1
            await asyncio.sleep(0)  # as when its answer is written
            assert stream.begun == number + 2

    conversation(take)


def test_after_a_long_time_all_that_has_come_is_taken_together() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        stream.sent.put_nowait(0)
        await inbox.take()
        for number in range(1, 6):
            stream.sent.put_nowait(Message(number))
        time.sleep(0.003)  # something holds up the event loop
        while not len(inbox):
            await asyncio.sleep(0)
        arrivals = await inbox.take()
        assert [message for _, message in arrivals] == [1, 2, 3, 4, 5]
        assert sorted(arrived for arrived, _ in arrivals) == [arrived for arrived, _ in arrivals]

    conversation(take)


def test_reading_stops_at_the_bound_and_goes_on_when_all_is_taken() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        for number in range(MAX_WAITING + 5):
            stream.sent.put_nowait(Message(number))
        for _ in range(10 * MAX_WAITING):
            await asyncio.sleep(0)
        assert stream.reads == len(inbox) == MAX_WAITING
        assert len(await inbox.take()) == MAX_WAITING
        taken: list[object] = []
        while len(taken) < 5:
            taken += [message for _, message in await inbox.take()]
        assert taken == [MAX_WAITING + number for number in range(5)]

    conversation(take)


def test_reading_stops_where_few_messages_are_large_and_goes_on_when_all_is_taken() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        for number in range(8):
            stream.sent.put_nowait(Large(number))
        for bunch in ([0, 1, 2], [3, 4, 5], [6, 7]):  # the first of each is not weighed
            for _ in range(100):
                await asyncio.sleep(0)
            assert stream.reads == bunch[-1] + 1
            assert [message for _, message in await inbox.take()] == bunch

    conversation(take)


def test_a_notice_wakes_the_one_who_takes() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        asyncio.get_running_loop().call_soon(inbox.tell, "news")
        assert await inbox.take() == []
        assert list(inbox.notices) == ["news"]

    conversation(take)


def test_what_came_before_the_end_is_taken_before_it() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        stream.sent.put_nowait("last")
        stream.sent.put_nowait(grpc.aio.EOF)
        assert [message for _, message in await inbox.take()] == ["last"]
        assert await inbox.take() == []

    assert conversation(take).ended


def test_a_message_that_cannot_be_read_fails_the_stream_whatever_its_taker_does() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        stream.sent.put_nowait(InvalidRequestError("request", "is none"))
        await asyncio.sleep(60)
        raise AssertionError("not cancelled")

    assert isinstance(conversation(take).failure, InvalidRequestError)


def test_a_stream_on_which_nothing_comes_fails() -> None:
    async def take(stream: Stream, inbox: Inbox) -> None:
        await inbox.take()

    assert isinstance(conversation(take, idle_seconds=0.05).failure, DeadlineExceededError)
