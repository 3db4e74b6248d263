"""A control session through the service, for asyncio: what `control_client` does with threads, with tasks."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from numpy.typing import ArrayLike

from serve.client.answer import ControlAnswer
from serve.client.channel import Addresses, Dialer
from serve.client.conversation import Conversation
from serve.client.events import CHECK_SECONDS, CLOSING_SECONDS, Connected, Ended, Event, Received, leave
from serve.client.status import call_details, call_error, retry_after_seconds, stream_error
from serve.control_values import SessionOpened
from serve.errors import DeadlineExceededError, PolicyServiceError, UnavailableError
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1 import policy_pb2
from serve.gen.cvpo.v1.control_pb2_grpc import ControlServiceStub
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub

T = TypeVar("T")


class AsyncControlSession:
    """One robot's control loop, one step at a time; `AsyncPolicyClient.control` opens one."""

    def __init__(self, conversation: Conversation, addresses: Addresses, dialer: Dialer) -> None:
        """Prepare; `open` opens it. Arguments are those of RemoteControlSession."""
        self.description = conversation.description  # of the policy, at the opening
        self._conversation = conversation
        self._addresses = addresses
        self._dialer = dialer
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._wanted = asyncio.Event()
        self._streams: list[_Stream] = []
        self._seeker: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def opened(self) -> SessionOpened:
        """What the session began with: its id, its budget, for how many steps."""
        opened = self._conversation.opened
        assert opened is not None, "the session is not open"
        return opened

    async def open(self, timeout_seconds: float) -> None:
        """Open the session; raises what RemoteControlSession.open does."""
        conversation = self._conversation
        self._seeker = asyncio.create_task(self._seek())
        self._wanted.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                while conversation.opened is None:
                    conversation.handle(await self._inbox.get())
                    if conversation.lost is not None:
                        raise conversation.lost
        except TimeoutError:
            await self.close()
            raise conversation.trouble or DeadlineExceededError(
                f"No session within {timeout_seconds:g} s from {self._addresses}; allow more time with timeout_seconds."
            ) from None
        except BaseException:  # cancellation, too: nothing is left running
            await self.close()
            raise

    async def step(
        self, observation: ArrayLike, *, cost: ArrayLike | None = None, cost_total: ArrayLike | None = None
    ) -> ControlAnswer:
        """Ask for the next action; see ControlSession.step."""
        conversation, loop = self._conversation, asyncio.get_running_loop()
        if loop is not self._loop:
            raise PolicyServiceError("The session is of the event loop that opened it; open one in this loop.")
        deadline = loop.time() + conversation.timeout_seconds
        step = conversation.begin(observation, cost, cost_total, self._waiting())
        try:
            return await self._answer(deadline)
        except BaseException:  # cancellation, too: what comes for this step is not for the next one
            conversation.end_step(step)
            raise

    def count_cost(self, cost: ArrayLike) -> None:
        """Add a cost to the total without asking for an action, or anything to await; see ControlSession."""
        self._conversation.count(cost)

    async def close(self) -> None:
        """End the session, also where the caller is cancelled: then nobody waits for what is told to end."""
        if self._seeker is not None:
            self._seeker.cancel()
        self._conversation.finish()
        for event in self._waiting():
            if isinstance(event, Connected):
                event.link.close()
        if self._seeker is not None:
            await asyncio.wait([self._seeker])
        for stream in self._streams:
            await stream.wait(CLOSING_SECONDS)

    async def _answer(self, deadline: float) -> ControlAnswer:
        conversation = self._conversation
        try:
            async with asyncio.timeout_at(deadline):
                while conversation.lost is None:
                    answer = conversation.handle(await self._inbox.get())
                    if answer is not None:
                        return answer
        except TimeoutError:
            return conversation.overdue()
        return conversation.no_session()

    def _waiting(self) -> Iterator[Event]:
        while not self._inbox.empty():
            yield self._inbox.get_nowait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def open_stream(self, channel: grpc.aio.Channel, address: str, opening: pb.ControlRequest) -> "_Stream":
        """Open a stream, and read it."""
        stream = _Stream(channel, address, opening, self._deliver)
        self._streams = [*(stream for stream in self._streams if stream.running), stream]
        return stream

    def _deliver(self, event: Event) -> None:
        """Take what the reader of a stream has to tell."""
        if leave(event, self._addresses):
            self._wanted.set()
        self._inbox.put_nowait(event)

    async def _seek(self) -> None:
        """Seek a server that answers whenever one is wanted; whether it goes on with the session, the opening tells."""
        while await self._wanted.wait():
            self._wanted.clear()
            link = None
            while link is None:
                await asyncio.sleep(self._addresses.wait_seconds())
                link = await self._try(self._addresses.in_order()[0])
            self._inbox.put_nowait(Connected(link))

    async def _try(self, address: str) -> "_Link | None":
        channel = self._dialer.aio_channel(address)
        try:
            stub = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            await stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=CHECK_SECONDS)
        except grpc.RpcError as error:
            await channel.close()
            self._addresses.failed(address, retry_after_seconds(call_details(error)))
            self._conversation.trouble = call_error(error, address, CHECK_SECONDS)
            return None
        except asyncio.CancelledError:
            await channel.close()
            raise
        return _Link(self, channel, address)


@dataclass(frozen=True)
class _Link:
    """A channel to a server that answers."""

    session: AsyncControlSession
    channel: grpc.aio.Channel
    address: str

    def open(self, opening: pb.ControlRequest) -> "_Stream":
        return self.session.open_stream(self.channel, self.address, opening)

    def close(self) -> None:
        asyncio.get_running_loop().create_task(self.channel.close())


class _Stream:
    """A stream with a task that reads and one that writes, and its channel, which is closed with it."""

    def __init__(
        self, channel: grpc.aio.Channel, address: str, opening: pb.ControlRequest, deliver: Callable[[Event], None]
    ) -> None:
        self.address = address
        self._channel = channel
        self._deliver = deliver
        self._finished = False
        self._requests: asyncio.Queue[pb.ControlRequest | None] = asyncio.Queue()
        self._requests.put_nowait(opening)
        self._status: grpc.RpcError | None = None  # with which the server ended it
        self._call: Any = ControlServiceStub(channel).Control()  # type: ignore[no-untyped-call]  # generated
        self._call.add_done_callback(self._keep_status)
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    @property
    def running(self) -> bool:
        return not self._reader.done()

    def send(self, message: pb.ControlRequest) -> None:
        self._requests.put_nowait(message)

    def finish(self) -> None:
        self._finished = True
        self._requests.put_nowait(None)

    def cancel(self) -> None:
        self._call.cancel()

    async def wait(self, timeout_seconds: float) -> None:
        """Wait for the end, and bring it about if it does not come."""
        await asyncio.wait([self._reader], timeout=timeout_seconds)
        if self.running:
            self.cancel()
            await asyncio.wait([self._reader])

    async def _write(self) -> None:
        """Write one message after the other: gRPC takes the next when it has sent the one before."""
        try:
            while (message := await self._requests.get()) is not None:
                await self._call.write(message)
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the stream has ended, which the reader tells

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._deliver(Received(self, response))
            error: PolicyServiceError = UnavailableError(f"{self.address} has ended the stream.")
        except grpc.RpcError as status:
            error = stream_error(self._status or status, self.address)
        except asyncio.CancelledError:  # of the call, by `cancel`
            error = UnavailableError(f"{self.address} has said nothing for too long.")
        self._writer.cancel()
        await self._channel.close()
        if not self._finished:
            self._deliver(Ended(self, error))

    def _keep_status(self, call: Any) -> None:
        """Keep the status that has come: a write that is under way then makes INTERNAL of it (grpc.aio 1.85)."""
        code, trailing, details = _now(call.code()), _now(call.trailing_metadata()), _now(call.details())
        self._status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)


def _now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("it waits")
