"""What a client's transport tells of a control session: a server is found, a message comes, a stream ends."""

from dataclasses import dataclass
from typing import Protocol

from serve.client.channel import Addresses
from serve.errors import PolicyServiceError, ResourceExhaustedError, UnavailableError
from serve.gen.cvpo.v1 import control_pb2 as pb

CHECK_SECONDS = 1.0  # in which a server that is sought must answer
CLOSING_SECONDS = 1.0  # in which a server may end a stream that is finished


class Stream(Protocol):
    """A stream to a server. None of its methods waits."""

    @property
    def address(self) -> str: ...

    def send(self, message: pb.ControlRequest) -> None:
        """Send a message after those before."""

    def finish(self) -> None:
        """Send nothing more; the server ends the stream."""

    def cancel(self) -> None:
        """Give it up."""


class Link(Protocol):
    """A connection to a server that answers, on which a stream can be opened at once."""

    def open(self, opening: pb.ControlRequest) -> Stream:
        """Open the stream, with its first message."""

    def close(self) -> None:
        """Close the connection, which is not needed."""


@dataclass(frozen=True)
class Connected:
    """There is a server to go on with."""

    link: Link


@dataclass(frozen=True)
class Received:
    """A message came."""

    stream: Stream
    response: pb.ControlResponse


@dataclass(frozen=True)
class Ended:
    """A stream has ended."""

    stream: Stream
    error: PolicyServiceError


Event = Connected | Received | Ended


def leave(event: Event, addresses: Addresses) -> bool:
    """Whether another server must be sought; leaves the address alone that must be left."""
    match event:
        case Ended(stream, UnavailableError() | ResourceExhaustedError() as error):
            addresses.failed(stream.address, error.retry_after_seconds)
        case Ended(stream, _):
            addresses.refused(stream.address)
        case Received(stream, response) if response.notice.kind == pb.NOTICE_KIND_DRAINING:
            addresses.failed(stream.address)
        case _:
            return False
    return True
