"""A control session through the service: one stream, a watchdog over each step, and a search for another server.

Per session three threads: gRPC's that sends, one that reads, one that seeks a server when the stream breaks or its
server stops. A bare stream that the caller reads itself saves the second, but no watchdog could wake the caller.
Measured side by side on a busy machine, handing over from the reader through a queue costs a tenth to a fifth of a
step; an event loop in a thread costs the same, and gRPC shares its events badly between several loops.
"""

import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

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
from serve.values import PolicyDescription


class ControlSession(ABC):
    """One robot's control loop, one step at a time; how steps travel is the children's business."""

    def __init__(self, description: PolicyDescription) -> None:
        self.description = description  # of the policy, at the opening

    @property
    @abstractmethod
    def opened(self) -> SessionOpened:
        """What the session began with: its id, its budget, for how many steps."""

    @abstractmethod
    def step(
        self, observation: ArrayLike, *, cost: ArrayLike | None = None, cost_total: ArrayLike | None = None
    ) -> ControlAnswer:
        """Ask for the next action; returns within the watchdog's time, with its action where there is no answer.

        Args:
            observation: [O], in the order and units of training.
            cost: observed since the step before, [C]; a number where there is one constraint. It is added to the total
                even if this step is refused for something else: do not give it again.
            cost_total: observed since the session began, [C]; instead of `cost`. A session with a budget needs one of
                the two at every step, zeros too.

        Raises:
            InvalidRequestError: something given is wrong; names the field. The session is as it was.
            HorizonError: the session is over.
            PolicyServiceError: the session is closed or that of another process, or another step is out.
        """

    @abstractmethod
    def count_cost(self, cost: ArrayLike) -> None:
        """Add a cost to the total without asking for an action; the next step, with what it costs itself, brings it.

        Args:
            cost: observed since it was given last, [C]; a number where there is one constraint.

        Raises:
            InvalidRequestError: names the cost, of which nothing counts.
        """

    @abstractmethod
    def close(self) -> None:
        """End the session."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteControlSession(ControlSession):
    """A session on a server; `PolicyClient.control` opens one."""

    def __init__(self, conversation: Conversation, addresses: Addresses, dialer: Dialer) -> None:
        """Prepare; `open` opens it.

        Args:
            conversation: that is held.
            addresses: of servers.
            dialer: makes channels.
        """
        super().__init__(conversation.description)
        self._conversation = conversation
        self._addresses = addresses
        self._dialer = dialer
        self._process = os.getpid()
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._streams: list[_Stream] = []
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._seeker = threading.Thread(target=self._seek, name="control session seeker", daemon=True)

    @property
    def opened(self) -> SessionOpened:
        opened = self._conversation.opened
        assert opened is not None, "the session is not open"
        return opened

    def open(self, timeout_seconds: float) -> None:
        """Open the session.

        Raises:
            PolicyServiceError: it cannot be opened, or not in time.
        """
        conversation, deadline = self._conversation, time.monotonic() + timeout_seconds
        self._seeker.start()
        self._wanted.set()
        try:
            while conversation.opened is None:
                self._handle_next(deadline - time.monotonic())
                if conversation.lost is not None:
                    raise conversation.lost
        except queue.Empty:
            self.close()
            raise conversation.trouble or DeadlineExceededError(
                f"No session within {timeout_seconds:g} s from {self._addresses}; allow more time with timeout_seconds."
            ) from None
        except BaseException:  # an interrupt, too: nothing is left running
            self.close()
            raise

    def step(
        self, observation: ArrayLike, *, cost: ArrayLike | None = None, cost_total: ArrayLike | None = None
    ) -> ControlAnswer:
        if os.getpid() != self._process:  # nobody would answer: a child has none of its parent's threads
            raise PolicyServiceError(f"This session belongs to process {self._process}; open one in this process.")
        conversation = self._conversation
        deadline = time.monotonic() + conversation.timeout_seconds
        step = conversation.begin(observation, cost, cost_total, self._waiting())
        try:
            return self._answer(deadline)
        except BaseException:  # an interrupt, too: what comes for this step is not for the next one
            conversation.end_step(step)
            raise

    def count_cost(self, cost: ArrayLike) -> None:
        self._conversation.count(cost)

    def close(self) -> None:
        self._closing.set()
        self._wanted.set()
        self._conversation.finish()
        for stream in self._streams:
            stream.wait(CLOSING_SECONDS)
        self._seeker.join()
        for event in self._waiting():
            if isinstance(event, Connected):
                event.link.close()

    def _answer(self, deadline: float) -> ControlAnswer:
        conversation = self._conversation
        try:
            while conversation.lost is None:
                answer = self._handle_next(deadline - time.monotonic())
                if answer is not None:
                    return answer
        except queue.Empty:
            return conversation.overdue()
        return conversation.no_session()

    def _waiting(self) -> Iterator[Event]:
        while not self._inbox.empty():
            yield self._inbox.get_nowait()

    def _handle_next(self, timeout_seconds: float) -> ControlAnswer | None:
        """Raises queue.Empty when nothing happens in time."""
        return self._conversation.handle(self._inbox.get(timeout=max(0.0, timeout_seconds)))

    def _deliver(self, event: Event) -> None:
        """Take what the reader of a stream has to tell."""
        if leave(event, self._addresses):
            self._wanted.set()
        self._inbox.put(event)

    def _seek(self) -> None:
        """Seek a server that answers whenever one is wanted; whether it goes on with the session, the opening tells."""
        while self._wanted.wait() and not self._closing.is_set():
            self._wanted.clear()
            while not self._closing.wait(self._addresses.wait_seconds()):
                address = self._addresses.in_order()[0]
                channel = self._dialer.channel(address)
                try:
                    stub = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
                    stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=CHECK_SECONDS)
                except grpc.RpcError as error:
                    channel.close()
                    self._addresses.failed(address, retry_after_seconds(call_details(error)))
                    self._conversation.trouble = call_error(error, address, CHECK_SECONDS)
                else:
                    self._inbox.put(Connected(_Link(self, channel, address)))
                    break

    def open_stream(self, channel: grpc.Channel, address: str, opening: pb.ControlRequest) -> "_Stream":
        """Open a stream, and read it."""
        stream = _Stream(channel, address, opening, self._deliver)
        self._streams = [*(stream for stream in self._streams if stream.running), stream]
        return stream


@dataclass(frozen=True)
class _Link:
    """A channel to a server that answers."""

    session: RemoteControlSession
    channel: grpc.Channel
    address: str

    def open(self, opening: pb.ControlRequest) -> "_Stream":
        return self.session.open_stream(self.channel, self.address, opening)

    def close(self) -> None:
        self.channel.close()


class _Stream:
    """A stream, whose messages a thread reads, and its channel, which is closed with it."""

    def __init__(
        self, channel: grpc.Channel, address: str, opening: pb.ControlRequest, deliver: Callable[[Event], None]
    ) -> None:
        self.address = address
        self._channel = channel
        self._deliver = deliver
        self._finished = False
        self._requests: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
        self._requests.put(opening)
        stub = ControlServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._call = stub.Control(iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._read, name=f"control stream {address}", daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        return self._reader.is_alive()

    def send(self, message: pb.ControlRequest) -> None:
        self._requests.put(message)

    def finish(self) -> None:
        self._finished = True
        self._requests.put(None)

    def cancel(self) -> None:
        self._call.cancel()

    def wait(self, timeout_seconds: float) -> None:
        """Wait for the end, and bring it about if it does not come."""
        self._reader.join(timeout_seconds)
        if self.running:
            self.cancel()
            self._reader.join()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._deliver(Received(self, response))
            error: PolicyServiceError = UnavailableError(f"{self.address} has ended the stream.")
        except grpc.RpcError as status:
            if self._call.cancelled():  # by `cancel`
                error = UnavailableError(f"{self.address} has said nothing for too long.")
            else:
                error = stream_error(status, self.address)
        self._requests.put(None)  # lets go of gRPC's thread that sends
        self._channel.close()
        if not self._finished:
            self._deliver(Ended(self, error))
