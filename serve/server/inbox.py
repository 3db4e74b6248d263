"""What has come on a stream and was not taken yet: read ahead, up to a bound, and timed on arrival."""

import asyncio
import time
from collections import deque
from typing import Any

import grpc

from serve.errors import DeadlineExceededError
from serve.server.interceptors import Context

Arrival = tuple[float, Any]  # time of time.perf_counter, message

# Messages that wait, at most; then reading stops, and HTTP/2 holds the sender back.
MAX_WAITING = 64
# What gRPC takes to hand over a message that has come: where messages queue, so long is waited for the next one. Nobody
# can be asked whether there is one, and a robot that answers at once looks like a queue of one: it is waited for only
# where two are here already, or where those before took so long that the wait does not matter.
_HAND_OVER_SECONDS = 1e-4
_LONG_SECONDS = 2e-3


class Inbox:
    """Reads a stream for the one task that takes from it, which is cancelled when the stream has failed."""

    def __init__(self, context: Context, taker: "asyncio.Task[Any]", idle_seconds: float, max_bytes: int) -> None:
        """Begin to read.

        Args:
            context: of the stream.
            taker: the task that takes.
            idle_seconds: time without a message after which the stream has failed.
            max_bytes: of the messages that wait behind the first one; then reading stops, too.
        """
        self.notices: deque[Any] = deque()  # what is to be said, whatever comes
        self.ended = False  # nothing more comes
        self.failure: Exception | None = None  # why the taker was cancelled; None: it was not, or not from here
        self._context = context
        self._taker = taker
        self._idle_seconds = idle_seconds
        self._max_bytes = max_bytes
        self._waiting: deque[Arrival] = deque()
        self._bytes = 0  # of those that wait behind the first one, which is not weighed: most are taken at once
        self._loop = asyncio.get_running_loop()
        self._last_arrival = self._taken = time.perf_counter()
        self._something: asyncio.Future[None] | None = None  # the taker waits for it
        self._room: asyncio.Future[None] | None = None  # the reader waits for it
        self._reader = self._loop.create_task(self._read())
        self._idle_timer = self._loop.call_later(idle_seconds, self._check_idle)

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._waiting)

    @property
    def _full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._bytes >= self._max_bytes

    async def take(self) -> list[Arrival]:
        """Return all that waits, the newest last; waits for something. Empty: notices are there, or all is over."""
        if len(self._waiting) > 1 or (self._waiting and time.perf_counter() - self._taken > _LONG_SECONDS):
            await self._settle()
        while not (self._waiting or self.notices or self.ended):
            self._something = self._loop.create_future()
            await self._something
        taken = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        self._taken = time.perf_counter()
        _resolve(self._room)
        return taken

    def tell(self, notice: object) -> None:
        """Leave a notice for the taker."""
        self.notices.append(notice)
        _resolve(self._something)

    def fail(self, error: Exception) -> None:
        """End the stream: the taker is cancelled, whatever it does, and finds the error in `failure`."""
        if self.failure is None:
            self.failure = error
            self._taker.cancel()

    def close(self) -> None:
        """Read no more."""
        self._reader.cancel()
        self._idle_timer.cancel()

    async def _read(self) -> None:
        try:
            while (message := await self._context.read()) is not grpc.aio.EOF:
                self._last_arrival = time.perf_counter()
                if self._waiting:
                    self._bytes += message.ByteSize()
                self._waiting.append((self._last_arrival, message))
                _resolve(self._something)
                if self._full:
                    self._room = self._loop.create_future()
                    await self._room
                else:
                    await asyncio.sleep(0)  # the taker goes first, for to begin the next read takes a while
        except Exception as error:  # not the message that this stream takes
            self.fail(error)
        else:
            await asyncio.sleep(_HAND_OVER_SECONDS)  # the messages of one that has left end, too: it is cancelled first
            self.ended = True
            _resolve(self._something)

    async def _settle(self) -> None:
        """Give a message that has come already the time to be handed over."""
        while not self._full and not self.ended and time.perf_counter() - self._last_arrival < _HAND_OVER_SECONDS:
            await asyncio.sleep(0)

    def _check_idle(self) -> None:
        idle = time.perf_counter() - self._last_arrival
        if idle >= self._idle_seconds:
            self.fail(DeadlineExceededError(f"Nothing came for {self._idle_seconds:g} s, so the stream is closed."))
        else:
            self._idle_timer = self._loop.call_later(self._idle_seconds - idle, self._check_idle)


def _resolve(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)
