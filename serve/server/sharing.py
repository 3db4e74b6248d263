"""Robots that ask for an action at the same time share one run of the network.

A run reads all of the network's weights from memory, for one robot as for sixteen, and that is most of what it takes.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from serve.errors import DeadlineExceededError, InternalError
from serve.server.graph import SHARED_ROWS
from serve.server.runtime import Asked, PolicyRuntime
from serve.server.telemetry import log
from serve.values import ActLists, Shielded

logger = logging.getLogger(__name__)

# Turns of the event loop in which nobody comes any more. A request takes some four from its arrival to here.
_PATIENCE_TURNS = 4

# Where nobody ever comes, one request in so many waits for others.
_TRY_EVERY_AT_MOST = 32


@dataclass(frozen=True)
class _Waiting:
    asked: Asked
    until: float  # when it is too late to begin
    answer: "asyncio.Future[ActLists | None]"  # None: there is none that is shared


class SharedRuns:
    """Who waits for others on an event loop, and for how long: as long as some come, and ever less often where none do.

    Where others came, each request waits for some; each time that nobody comes, half as many do.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting: list[_Waiting] = []
        self._try_every = 1  # one request in so many waits, where nobody does yet
        self._alone = 0  # requests since that did not wait
        self._shared = Counter(
            "cvpo_serve_shared_requests",
            "Requests and steps that were answered by a run of the network that they shared with others.",
            registry=registry,
        )

    async def answer(self, asked: Asked, until: float = math.inf) -> ActLists:
        """Return `asked.answer()`, equal to the bit; it waits only where one action is asked for, of one candidate.

        Args:
            asked: what is asked. A caller that leaves meanwhile has it computed no more.
            until: when it is too late to begin, of time.perf_counter.

        Raises:
            InternalError: as `PolicyRuntime.act` does.
            DeadlineExceededError: it was too late after the wait for others; nothing was computed.
        """
        one = len(asked.situations.observation) == 1 and not isinstance(asked.mode, Shielded)
        if not one or not asked.policy.shares or not self._waits():
            return asked.answer()
        loop = asyncio.get_running_loop()
        own = _Waiting(asked, until, loop.create_future())
        self._waiting.append(own)
        if len(self._waiting) == 1:
            loop.call_soon(self._turn, 1, 0)
        answer = await own.answer
        if answer is not None:
            return answer
        if time.perf_counter() > until:
            raise DeadlineExceededError("It had grown too old while it waited for others; nothing was computed.")
        return asked.answer()

    def _waits(self) -> bool:
        if self._waiting:
            return True
        self._alone = (self._alone + 1) % self._try_every
        return self._alone == 0

    def _turn(self, known: int, turns: int) -> None:
        """Run the network where enough have come, or nobody has for some turns of the loop."""
        loop, count = asyncio.get_running_loop(), len(self._waiting)
        if count < SHARED_ROWS and (count > known or turns < _PATIENCE_TURNS):
            loop.call_soon(self._turn, count, 0 if count > known else turns + 1)
            return
        first, self._waiting = self._waiting[:SHARED_ROWS], self._waiting[SHARED_ROWS:]
        if self._waiting:
            loop.call_soon(self._turn, len(self._waiting), 0)
        groups: dict[int, list[_Waiting]] = {}  # by policy
        for each in first:
            if not each.answer.done():  # its caller has not left
                groups.setdefault(id(each.asked.policy), []).append(each)
        in_company = any(len(group) > 1 for group in groups.values())
        self._try_every = 1 if in_company else min(2 * self._try_every, _TRY_EVERY_AT_MOST)
        for group in groups.values():
            self._run(group[0].asked.policy, group)

    def _run(self, policy: PolicyRuntime, waiting: list[_Waiting]) -> None:
        """Answer those who wait for one policy, or have each ask by itself."""
        now = time.perf_counter()
        for late in [each for each in waiting if each.until < now]:
            waiting.remove(late)
            late.answer.set_result(None)
        answers: Sequence[ActLists | None] = [None] * len(waiting)
        if len(waiting) > 1:
            try:
                answers = policy.act_each([(each.asked.situations, each.asked.mode) for each in waiting])
                self._shared.inc(len(waiting))
            except InternalError:  # of one of them, which is no reason to refuse the others
                pass
            except Exception as error:
                log(logger, logging.ERROR, "shared run failed", exception=error)
        for each, answer in zip(waiting, answers, strict=True):
            each.answer.set_result(answer)
