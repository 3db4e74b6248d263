"""Networks are warm when a step comes: run once more, for nobody, shortly before it is expected.

Between two steps of a robot a network's weights and code leave the processor's caches. A step that finds them gone
takes some hundred microseconds longer, and a robot that asks at a steady pace says when it will ask again.
"""

import asyncio
import time
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

# Warmth is lost within a millisecond or two, so it is run again and again. That ends a little before the step is
# expected: one that comes while it runs waits, and the event loop's timers are a millisecond coarse.
_LEAD_SECONDS = 5e-3
_QUIET_SECONDS = 1.5e-3
_AGAIN_SECONDS = 5e-4
# Of the event loop's time, for all streams of a server together, and what it may save up.
_SHARE = 0.3
_SAVED_SECONDS = 5e-3


class Warmable(Protocol):
    """What is kept warm."""

    def keep_warm(self, since: float) -> float:
        """Run once for nobody; return its seconds, 0 where it takes long or others have run it after `since`."""


class Warming:
    """What a server may spend on it: a share of the event loop's time, however many streams there are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs = Counter(
            "cvpo_serve_warming_runs",
            "Runs of networks for nobody, so that they are warm for steps that are expected.",
            registry=registry,
        )
        self._credit = _SAVED_SECONDS
        self._credited = time.perf_counter()

    def warm(self, network: Warmable, since: float) -> bool:
        """Run a network for nobody, unless others have since, or too much was spent already; return whether it ran."""
        now = time.perf_counter()
        self._credit = min(_SAVED_SECONDS, self._credit + _SHARE * (now - self._credited))
        self._credited = now
        if self._credit <= 0 or not (seconds := network.keep_warm(since)):
            return False
        self._credit -= seconds
        self._runs.inc()
        return True


class Expectation:
    """Of the next step of one stream: it comes as long after the last one as that came after the one before it."""

    def __init__(self, warming: Warming) -> None:
        self._warming = warming
        self._loop = asyncio.get_running_loop()
        self._arrived: float | None = None  # the last step
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, network: Warmable, arrived: float) -> None:
        """Expect the next step, which this network will answer; the last one arrived then, and is answered."""
        before, self._arrived = self._arrived, arrived
        if before is not None:
            now, expected = time.perf_counter(), 2 * arrived - before
            begins = max(now, expected - _LEAD_SECONDS)
            until = max(begins + _AGAIN_SECONDS, expected - _QUIET_SECONDS)  # once where steps come that fast
            self._timer = self._loop.call_later(begins - now, self._warm, network, now, until)

    def end(self) -> None:
        """The step is here, or will not come."""
        if self._timer is not None:
            self._timer.cancel()

    def _warm(self, network: Warmable, since: float, until: float) -> None:
        if time.perf_counter() >= until:  # a busy loop calls back late, and the step may be waiting
            return
        if self._warming.warm(network, since):
            since = time.perf_counter()
        self._timer = self._loop.call_later(_AGAIN_SECONDS, self._warm, network, since, until)
