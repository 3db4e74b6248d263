"""LocalPolicy: PolicyClient's twin in the same process, for evaluation and for robots that need no server.

Requests and the steps of a session go through the same messages and the same code as the service's, so the answers are
equal to the bit. Needs the extra `serve`.
"""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import ArrayLike

from cvpo.bundle import TrustedKeys
from serve.client import PolicyCaller
from serve.client.answer import ControlAnswer
from serve.client.calls import Call, R
from serve.client.channel import Addresses
from serve.client.control_client import ControlSession
from serve.client.conversation import Conversation
from serve.client.events import Connected, Event, Received
from serve.client.watchdog import Watchdog
from serve.codec import Limits
from serve.control_codec import (
    decode_opening,
    decode_step,
    encode_opened,
    encode_result,
    encode_step_error,
    opening_digest,
)
from serve.control_values import Opening, SessionOpened
from serve.errors import PolicyServiceError
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.server.repository import Repository
from serve.server.service import PolicyServicer
from serve.server.session import Session, open_session
from serve.server.state import StateSeal
from serve.server.status import status_of
from serve.server.telemetry import Metrics
from serve.server.watch import load_repository

_HERE = "this process"
_LIFETIME_SECONDS = 86_400.0 * 365  # of a state, which nobody goes on from


class LocalPolicy(PolicyCaller):
    """A policy of a bundle or a folder of bundles, without a server."""

    def __init__(self, repository: Repository, policy: str, version: int | None, fingerprint: str) -> None:
        super().__init__(policy, version, fingerprint)
        self._repository = repository
        self._servicer = PolicyServicer(repository, Limits(), Metrics())

    @classmethod
    def load(
        cls,
        repository: Path | str,
        policy: str = "",
        *,
        version: int | None = None,
        fingerprint: str = "",
        allow_uncalibrated: bool = False,
        trusted: TrustedKeys | None = None,
    ) -> "LocalPolicy":
        """Verify and load a bundle or a folder of bundles.

        Args:
            repository: the bundle, or the folder.
            policy: name of the policy to ask; may be empty where there is only one.
            version: None for the one that is served.
            fingerprint: what the caller was built for; empty where it does not say.
            allow_uncalibrated: load bundles without calibration, too.
            trusted: load only bundles that one of these keys signed (`cvpo.bundle.read_trusted_keys`).

        Raises:
            StartupError: there is nothing that may be served.
        """
        loaded = load_repository(Path(repository), allow_uncalibrated=allow_uncalibrated, trusted=trusted)
        return cls(loaded, policy, version, fingerprint)

    def close(self) -> None:
        """Nothing is open."""

    def _ask(self, call: Call[R]) -> R:
        return call.decode(getattr(self._servicer, call.method)(call.request, None))

    def _open(self, opening: Opening, watchdog: Watchdog) -> ControlSession:
        conversation = Conversation(opening, self.get_policy(), watchdog, Addresses(_HERE), call_timeout_seconds=1.0)
        return _LocalControlSession(conversation, self._repository)


class _LocalControlSession(ControlSession):
    """A session in this process. Each step is answered when it is sent, so the watchdog never finds it late."""

    def __init__(self, conversation: Conversation, repository: Repository) -> None:
        super().__init__(conversation.description)
        self._conversation = conversation
        self._events: deque[Event] = deque([Connected(_LocalLink(repository, self._deliver))])
        self._settle()

    def step(
        self, observation: ArrayLike, *, cost: ArrayLike | None = None, cost_total: ArrayLike | None = None
    ) -> ControlAnswer:
        step = self._conversation.begin(observation, cost, cost_total)
        try:
            answer = self._settle()
        except BaseException:  # an interrupt, too
            self._conversation.end_step(step)
            raise
        assert answer is not None, "a step without an answer"
        return answer

    @property
    def opened(self) -> SessionOpened:
        opened = self._conversation.opened
        assert opened is not None, "the session is not open"
        return opened

    def count_cost(self, cost: ArrayLike) -> None:
        self._conversation.count(cost)

    def close(self) -> None:
        self._conversation.finish()

    def _deliver(self, stream: "_LocalStream", response: pb.ControlResponse) -> None:
        self._events.append(Received(stream, response))

    def _settle(self) -> ControlAnswer | None:
        """Take in all that has happened; return the answer, if there is one."""
        while self._events:
            answer = self._conversation.handle(self._events.popleft())
            if answer is not None:
                return answer
        return None


@dataclass(frozen=True)
class _LocalLink:
    """Policies to open a session with."""

    repository: Repository
    deliver: Callable[["_LocalStream", pb.ControlResponse], None]

    def open(self, opening: pb.ControlRequest) -> "_LocalStream":
        """Raises what the session does that cannot be opened."""
        message = opening.open
        seal = StateSeal(os.urandom(32), _LIFETIME_SECONDS)
        session = open_session(decode_opening(message, Limits()), opening_digest(message), self.repository, seal)
        stream = _LocalStream(session, self.deliver)
        self.deliver(stream, encode_opened(session.opened()))
        return stream

    def close(self) -> None:
        """Nothing is open."""


class _LocalStream:
    """A session that answers a step when it is sent."""

    def __init__(self, session: Session, deliver: Callable[["_LocalStream", pb.ControlResponse], None]) -> None:
        self.address = _HERE
        self._session = session
        self._deliver = deliver

    def send(self, message: pb.ControlRequest) -> None:
        step = decode_step(message.step)
        try:
            response = encode_result(self._session.step(step))
        except PolicyServiceError as error:
            session = self._session
            response = encode_step_error(step.number, status_of(error, _HERE), session.next_step, session.state())
        self._deliver(self, response)

    def finish(self) -> None:
        """Nothing is open."""

    def cancel(self) -> None:
        """Nothing is open."""
