"""Servers in this process, each on an event loop of its own, for tests that are not asynchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from serve.server.process import RunningServer, start
from serve.server.settings import Settings

T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns that runs there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Stop it; may be called again."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class ServerThread:
    """A server that answers from a thread."""

    def __init__(self, settings: Settings) -> None:
        """Start it; raises what `serve.server.process.start` raises."""
        self._thread = LoopThread()
        try:
            self.running: RunningServer = self._thread.run(start(settings))
        except BaseException:
            self._thread.close()
            raise
        self._stopped = False

    @property
    def address(self) -> str:
        return self.running.address

    @property
    def metrics_address(self) -> str | None:
        return self.running.metrics_address

    def stop(self, drain_seconds: float) -> None:
        """Stop it, and wait until it has; may be called again."""
        if not self._stopped:
            self._stopped = True
            self._thread.run(self.running.stop(drain_seconds))
            self._thread.close()
