"""Requests for one action that come together share one run of the network.

A run reads all of the network's weights from memory, for one robot as for sixteen, and that is most of what it takes.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from serve.server.graph import SHARED_ROWS
from serve.server.runtime import PolicyRuntime
from serve.values import ActLists, Mode, Situations

# Turns of the event loop in which nobody comes any more. A request takes some four from its arrival to here.
_PATIENCE_TURNS = 4

# Where nobody came the last time, nobody is waited for, but for one request in so many.
_TRY_EVERY = 32


@dataclass(frozen=True)
class _Waiting:
    policy: PolicyRuntime
    situations: Situations
    mode: Mode
    answer: "asyncio.Future[ActLists | None]"  # None: there is none that is shared


class SharedRuns:
    """Who waits for others on an event loop, and for how long: as long as some come, and not at all where none did."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting: list[_Waiting] = []
        self._in_company = False  # whether others came when they were waited for last
        self._alone = 0  # requests since that did not wait
        self._shared = Counter(
            "cvpo_serve_shared_requests",
            "Requests for one action that were answered by a run of the network that they shared with others.",
            registry=registry,
        )

    async def act(self, policy: PolicyRuntime, situations: Situations, mode: Mode) -> ActLists:
        """Return `policy.act` for one situation and one candidate, equal to the bit.

        Raises:
            InternalError: as `policy.act` does.
        """
        if not policy.shares or not self._waits():
            return policy.act(situations, mode)
        loop = asyncio.get_running_loop()
        own = _Waiting(policy, situations, mode, loop.create_future())
        self._waiting.append(own)
        if len(self._waiting) == 1:
            loop.call_soon(self._turn, 1, 0)
        answer = await own.answer
        return policy.act(situations, mode) if answer is None else answer

    def _waits(self) -> bool:
        if self._in_company or self._waiting:
            return True
        self._alone = (self._alone + 1) % _TRY_EVERY
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
                groups.setdefault(id(each.policy), []).append(each)
        self._in_company = any(len(group) > 1 for group in groups.values())
        for group in groups.values():
            self._answer(group[0].policy, group)

    def _answer(self, policy: PolicyRuntime, waiting: list[_Waiting]) -> None:
        """Answer those who wait for one policy, or have each ask by itself."""
        answers: Sequence[ActLists | None] = [None] * len(waiting)
        if len(waiting) > 1:
            with suppress(Exception):  # of one of them perhaps, which is no reason to refuse the others
                answers = policy.act_each([(each.situations, each.mode) for each in waiting])
                self._shared.inc(len(waiting))
        for each, answer in zip(waiting, answers, strict=True):
            each.answer.set_result(answer)
