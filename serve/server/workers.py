"""Threads for what would hold up the event loop: each request waits for its turn, and is dropped when that is late."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")

# Rows of the network that the event loop computes itself: that takes less than the way to a thread and back, and is
# short beside a control period. More rows would hold up the streams.
INLINE_ROWS = 16


class Workers:
    """As many turns as there are threads, given in the order of asking."""

    def __init__(self, threads: int) -> None:
        self._turns = asyncio.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="request")

    async def run(self, compute: Callable[[], A], check: Callable[[], None] | None = None) -> A:
        """Return compute(), called in a thread.

        Args:
            compute: what is computed.
            check: called when the turn comes; what it raises is raised here, and nothing is computed.
        """
        await self._turns.acquire()
        try:
            if check is not None:
                check()
            work = self._pool.submit(compute)
        except BaseException:
            self._turns.release()
            raise
        loop = asyncio.get_running_loop()

        def give_turn_back(_: Future[A]) -> None:
            # When the thread is free, which may be after the caller has left.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._turns.release)

        work.add_done_callback(give_turn_back)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Take no more; what is being computed ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
