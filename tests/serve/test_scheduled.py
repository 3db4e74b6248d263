"""Large requests wait for a thread: in turn, not beyond their deadline, and without holding up anything else."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from serve.errors import DeadlineExceededError
from serve.server.workers import Workers

PATIENCE_SECONDS = 30.0


def test_what_is_too_late_when_its_turn_comes_is_not_computed() -> None:
    begun, release = threading.Event(), threading.Event()
    computed: list[int] = []

    def compute(number: int) -> int:
        begun.set()
        assert release.wait(PATIENCE_SECONDS)
        computed.append(number)
        return number

    def late() -> None:
        raise DeadlineExceededError("too late")

    async def ask() -> None:
        workers = Workers(threads=1)
        first = asyncio.create_task(workers.run(partial(compute, 1)))
        await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
        hasty = asyncio.create_task(workers.run(partial(compute, 2), late))
        given_up = asyncio.create_task(workers.run(partial(compute, 3)))
        last = asyncio.create_task(workers.run(partial(compute, 4)))
        await asyncio.sleep(0)
        given_up.cancel()
        release.set()
        assert await first == 1
        with pytest.raises(DeadlineExceededError):
            await hasty
        assert await last == 4
        workers.close()

    asyncio.run(ask())
    assert computed == [1, 4]


def test_a_thread_is_not_free_before_it_is_even_when_its_caller_has_left() -> None:
    release = threading.Event()
    at_work: list[int] = []
    most = 0

    def compute(number: int) -> None:
        nonlocal most
        at_work.append(number)
        most = max(most, len(at_work))
        assert release.wait(PATIENCE_SECONDS)
        at_work.remove(number)

    async def ask() -> None:
        pool = ThreadPoolExecutor(8)  # has room: the turns alone keep order
        workers = Workers(threads=2)
        workers._pool = pool
        tasks = [asyncio.create_task(workers.run(partial(compute, number))) for number in range(6)]
        while len(at_work) < 2:
            await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0.05)
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        workers.close()

    asyncio.run(ask())
    assert most == 2
