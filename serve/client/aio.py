"""AsyncPolicyClient: PolicyClient's twin for asyncio.

async with AsyncPolicyClient("127.0.0.1:50051", timeout_seconds=0.02) as policy:
    answer = await policy.act(observation)
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc
from numpy.typing import ArrayLike

from serve.client import calls
from serve.client.calls import CLOSED, Call, R
from serve.client.channel import Addresses, Attempts, Dialer, Tls
from serve.client.control_aio import AsyncControlSession
from serve.client.conversation import Conversation
from serve.client.watchdog import Watchdog
from serve.codec import seconds, vector
from serve.control_codec import decode_selector, encode_selector
from serve.control_values import Fallback, Horizon, Opening, PolicySelector, RollingWindow
from serve.errors import PolicyServiceError
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.values import ActResult, Deterministic, EvaluateActionResult, Mode, PolicyDescription


class AsyncPolicyClient:
    """A policy service, asked from one event loop. Arguments, answers and errors are those of PolicyClient."""

    def __init__(
        self,
        address: str | Sequence[str],
        policy: str = "",
        *,
        version: int | None = None,
        fingerprint: str = "",
        timeout_seconds: float = 0.5,
        tls: Tls | None = None,
    ) -> None:
        """Prepare to ask; see PolicyClient."""
        self._selector = encode_selector(PolicySelector(policy, version, fingerprint))
        self._timeout_seconds = seconds("timeout_seconds", timeout_seconds)
        self._addresses = Addresses(address)
        self._dialer = Dialer(tls)
        self._credentials = self._dialer.credentials()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # that asked first
        self._channels: list[grpc.aio.Channel] = []  # made when first asked, for the event loop that asks
        self._stubs: dict[str, PolicyServiceStub] = {}  # by address

    async def act(
        self,
        observation: ArrayLike,
        *,
        steps_left: ArrayLike | None = None,
        cost_allowed: ArrayLike | None = None,
        mode: Mode = Deterministic(),  # noqa: B008  # frozen
    ) -> ActResult:
        """Ask for an action; see PolicyCaller.act."""
        return await self._ask(calls.act(self._selector, observation, steps_left, cost_allowed, mode))

    async def evaluate_action(
        self,
        observation: ArrayLike,
        action: ArrayLike,
        *,
        steps_left: ArrayLike | None = None,
        cost_allowed: ArrayLike | None = None,
    ) -> EvaluateActionResult:
        """Ask what an action from elsewhere would cost; see PolicyCaller.evaluate_action."""
        return await self._ask(calls.evaluate_action(self._selector, observation, action, steps_left, cost_allowed))

    async def list_policies(self) -> tuple[PolicyDescription, ...]:
        """Describe the served version of every policy, by name."""
        return await self._ask(calls.list_policies())

    async def get_policy(self) -> PolicyDescription:
        """Describe the policy that this object asks."""
        return await self._ask(calls.get_policy(self._selector))

    async def control(
        self,
        *,
        cost_budget: ArrayLike | None = None,
        extent: Horizon | RollingWindow | None = None,
        mode: Mode = Deterministic(),  # noqa: B008  # frozen
        max_age_seconds: float | None = None,
        fallback: Fallback = Fallback(),  # noqa: B008  # frozen
        watchdog: Watchdog = Watchdog(),  # noqa: B008  # frozen
    ) -> AsyncControlSession:
        """Open a session for one robot's control loop; see PolicyCaller.control.

        async with await policy.control() as session:
            answer = await session.step(observation, cost=cost)
        """
        opening = Opening(
            policy=decode_selector(self._selector),
            cost_budget=None if cost_budget is None else tuple(vector("cost_budget", cost_budget)),
            extent=extent,
            mode=mode,
            max_age_seconds=max_age_seconds,
            fallback=fallback,
        )
        conversation = Conversation(opening, await self.get_policy(), watchdog, self._addresses, self._timeout_seconds)
        session = AsyncControlSession(conversation, self._addresses, self._dialer)
        await session.open(self._timeout_seconds)
        return session

    async def close(self) -> None:
        """Close the connections; nothing can be asked any more."""
        self._closed = True
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: Call[R]) -> R:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise PolicyServiceError("The client is of the event loop that asked it first; make one for each loop.")
        self._loop = loop
        attempts = Attempts(self._addresses, self._timeout_seconds)
        for attempt in attempts:
            if self._closed:
                raise PolicyServiceError(CLOSED)
            try:
                stub = self._stub(attempt.address)
                response = await getattr(stub, call.method)(call.request, timeout=attempt.timeout_seconds)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():  # by the channel, not by anyone
                    raise PolicyServiceError(CLOSED) from error
                raise
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    self._renew()
                attempts.failed(attempt, error)
            else:
                attempts.worked(attempt)
                return call.decode(response)
        raise AssertionError("the last attempt answers or raises")

    def _renew(self) -> None:
        """Have the next calls make new connections, if there are other credentials than those made until now have."""
        credentials = self._dialer.credentials()
        if credentials is not self._credentials:
            self._credentials, self._stubs = credentials, {}

    def _stub(self, address: str) -> PolicyServiceStub:
        if address not in self._stubs:
            channel = self._dialer.aio_channel(address)
            self._channels.append(channel)
            self._stubs[address] = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        return self._stubs[address]
