"""The client's side of one control session: what is sent, what an answer means, and where the session goes on.

No transport and no threads of its own: what happens comes in as events, and streams are whatever can be sent to. The
clients in `control_client` and `control_aio` and the in-process `serve.local` all hold the same conversation.

A session outlives its streams. Each answer or error brings the state to go on from; a new stream begins with the last
one, so that a step which is in flight can be sent right behind it. Answers are told apart by their stream and step
number, so that one that comes too late is never taken for that of the step after.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import add

import numpy as np
from numpy.typing import ArrayLike

from serve.client.answer import ControlAnswer, answer_of, before_the_first, watchdog_answer
from serve.client.channel import Addresses
from serve.client.events import Connected, Ended, Event, Link, Received, Stream
from serve.client.status import step_error
from serve.client.watchdog import StandIn, Watchdog, WatchdogReason, step_timeout_seconds
from serve.codec import vector
from serve.control_codec import decode_opened, decode_result, encode_opening, encode_step
from serve.control_values import Opening, SessionOpened, Step, StepResult
from serve.errors import (
    FingerprintError,
    HorizonError,
    InvalidRequestError,
    NotFoundError,
    PolicyServiceError,
)
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.values import PolicyDescription

# No other try at the same server would end otherwise. FingerprintError is what a client makes of FAILED_PRECONDITION,
# with which a server also refuses a state.
_REFUSALS = (InvalidRequestError, NotFoundError, FingerprintError)

# A stream on which nothing comes for so long is given up, even if nothing says that it is broken.
_SILENCE_SECONDS = 1.0

# Servers take up a version or a plan of their repository within a second or so of each other: one that lags may refuse
# a session that it goes on with a moment later.
_LAG_SECONDS = 2.0


@dataclass
class _Leg:
    """A session on one stream."""

    stream: Stream
    next_step: int
    sent: int | None = None  # number of the last step that was sent
    opened: bool = False
    silent_since: float | None = None  # when the first step was sent after the last message came


class Conversation:
    """One session. Call `begin` for a step, then `handle` for each event until there is an answer, else `overdue`."""

    def __init__(
        self,
        opening: Opening,
        description: PolicyDescription,
        watchdog: Watchdog,
        addresses: Addresses,
        call_timeout_seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare; the session is opened on the first link that comes.

        Args:
            opening: what is asked for. It is sent with the fingerprint of the description, and where it sets no age,
                with that at which the watchdog gives up.
            description: of the policy.
            watchdog: what to do without an answer.
            addresses: are told which of them works.
            call_timeout_seconds: how long a step may take where neither the watchdog nor the description says.
            clock: seconds.

        Raises:
            InvalidRequestError: the watchdog does not fit the policy.
        """
        self.description = description
        self.timeout_seconds = step_timeout_seconds(watchdog, description, call_timeout_seconds)
        self.opened: SessionOpened | None = None  # set once the session is open
        self.lost: PolicyServiceError | None = None  # why no server goes on with it
        self.trouble: PolicyServiceError | None = None  # why there is no connection, as far as that is known
        self._opening = replace(
            opening,
            policy=replace(opening.policy, fingerprint=description.policy.fingerprint),
            max_age_seconds=self.timeout_seconds if opening.max_age_seconds is None else opening.max_age_seconds,
        )
        self._stand_in = StandIn(watchdog, description)
        self._addresses = addresses
        self._clock = clock
        self._state = b""
        self._issued = 0.0  # when the state came
        self._next_step = 0  # the one after the state
        self._observation_size = len(description.observation.names)
        self._action_size = len(description.action.names)
        self._has_finite_budget = False  # known once the session is open
        self._cost_total = (0.0,) * len(description.constraints)
        self._counting = threading.Lock()  # of costs, which count also where a step is refused for another one
        self._last: StepResult | None = None  # of a server; the arrays of an answer are the robot's to change
        self._refusals: dict[str, PolicyServiceError] = {}  # by address, since a server went on with the session
        self._refused_since: float | None = None  # the first of these
        self._leg: _Leg | None = None
        self._previous: _Leg | None = None  # goes on to be one that answers until the present one is opened
        self._link: Link | None = None  # where the session goes on next
        self._leaving = False  # the present server is stopping
        self._stepping: object | None = None  # the step that is out, from its beginning to its answer
        self._in_flight: Step | None = None
        self._finished = False
        self._began = 0.0

    # --- one step ---

    def begin(
        self,
        observation: ArrayLike,
        cost: ArrayLike | None,
        cost_total: ArrayLike | None,
        waiting: Iterable[Event] = (),
    ) -> object:
        """Send a step, if there is a stream; return what `end_step` takes.

        Args:
            observation: [O].
            cost: of ControlSession.step.
            cost_total: of ControlSession.step.
            waiting: what has happened since the step before. It is not looked at while another step is out, whose
                answer it may be.

        Raises:
            InvalidRequestError: names the argument; the session is as it was, but a cost that is not at fault counts.
            PolicyServiceError: the session is closed, or another step is out.
        """
        if self._finished:
            raise PolicyServiceError("The session is closed; open another one.")
        self._stand_in.asked()
        total = self._totals(cost, cost_total)  # first: a cost counts whatever else is wrong with its step
        step = object()
        if self._stepping is not None:
            raise PolicyServiceError(
                "Another step of this session is out; ask for one at a time, from one thread or task. "
                "The cost of this one counts."
            )
        self._stepping = step  # no other thread comes between: nothing is called
        try:
            for event in waiting:
                self.handle(event)
            values = self._checked(observation)
            self._began = self._clock()
            self._switch()
            self._in_flight = Step(0, values, total)
            self._send()
        except BaseException:
            self.end_step(step)
            raise
        return step

    def count(self, cost: ArrayLike) -> None:
        """Add a cost to the total, which the next step that has one brings.

        Raises:
            InvalidRequestError: names the cost, of which nothing counts.
        """
        self._totals(cost, None)

    def handle(self, event: Event) -> ControlAnswer | None:
        """Take in what happened; return the answer of the step in flight, if this was it.

        Raises:
            InvalidRequestError: the step is wrong; names the field.
            HorizonError: the session is over.
        """
        match event:
            case Connected(link):
                self._connected(link)
            case Ended(stream, error):
                self._ended(stream, error)
            case Received(stream, response) if self._leg is not None and stream is self._leg.stream:
                return self._received(self._leg, response)
        return None

    def overdue(self) -> ControlAnswer:
        """Give the step in flight up, and return the watchdog's answer."""
        leg = self._leg
        if leg is None:
            return self._substitute(WatchdogReason.DISCONNECTED, str(self.trouble or "The connection broke."))
        if leg.silent_since is not None and self._clock() - leg.silent_since > _SILENCE_SECONDS:
            leg.stream.cancel()  # its end is an event, and then a server is sought
        waited = 1e3 * (self._clock() - self._began)
        return self._substitute(WatchdogReason.LATE, f"No answer from {leg.stream.address} within {waited:.1f} ms.")

    def end_step(self, step: object) -> None:
        """End a step whose caller leaves, if it is still the one that is out: what comes for it is for nobody."""
        if self._stepping is step:
            self._over()

    def no_session(self) -> ControlAnswer:
        """Return the watchdog's answer in a session that is lost."""
        why = f"No server goes on with the session; open another one. {self.lost}"
        return self._substitute(WatchdogReason.SESSION_LOST, why)

    def finish(self) -> None:
        """End the session on all streams."""
        self._finished = True
        for leg in (self._leg, self._previous):
            if leg is not None:
                leg.stream.finish()
        if self._link is not None:
            self._link.close()
        self._leg = self._previous = self._link = None

    def _over(self) -> None:
        self._in_flight = None
        self._stepping = None

    def _send(self) -> None:
        leg, step = self._leg, self._in_flight
        if leg is None or step is None:
            return
        leg.sent = leg.next_step
        leg.next_step += 1
        if leg.silent_since is None:
            leg.silent_since = self._clock()
        leg.stream.send(pb.ControlRequest(step=encode_step(Step(leg.sent, step.observation, step.cost_total))))

    def _checked(self, observation: ArrayLike) -> list[float]:
        """Check as the server does, which may be away: what is wrong is not for the watchdog."""
        values = vector("observation", observation)
        if len(values) != self._observation_size:  # a message that is far too long would end the stream
            raise InvalidRequestError(
                "step.observation", f"has {len(values)} values; the policy's observation has {self._observation_size}"
            )
        if not math.isfinite(sum(values)):  # else all are, and a sum takes less time; it may overflow
            for index, value in enumerate(values):
                if not math.isfinite(value):
                    raise InvalidRequestError(f"step.observation[{index}]", f"is {value}; it must be finite")
        return values

    def _totals(self, cost: ArrayLike | None, cost_total: ArrayLike | None) -> tuple[float, ...]:
        """Add a cost to the total; return the total to send, none where no cost was given."""
        with self._counting:
            total = self._totalled(cost, cost_total)
            self._cost_total = total or self._cost_total
        return total

    def _totalled(self, cost: ArrayLike | None, cost_total: ArrayLike | None) -> tuple[float, ...]:
        if cost_total is not None:
            if cost is not None:
                raise InvalidRequestError("cost", "and cost_total cannot both be given")
            total = tuple(vector("cost_total", cost_total, len(self._cost_total)))
            for index, (value, before) in enumerate(zip(total, self._cost_total, strict=True)):
                if not before <= value < math.inf:  # True for NaN
                    raise InvalidRequestError(
                        f"cost_total[{index}]",
                        f"is {value:g}; a total must be finite, and it was {before:g} before",
                    )
        elif cost is not None:
            spent = vector("cost", cost, len(self._cost_total))
            total = tuple(map(add, self._cost_total, spent))
            for index, (value, then) in enumerate(zip(spent, total, strict=True)):
                if not 0 <= value < math.inf:  # True for NaN
                    raise InvalidRequestError(f"cost[{index}]", f"is {value:g}; it must be finite, and zero or more")
                if then == math.inf:
                    raise InvalidRequestError(
                        f"cost[{index}]", f"is {value:g}; with what was spent before, it is more than a total can hold"
                    )
        elif self._has_finite_budget:
            raise InvalidRequestError("step.cost_total", "is missing; this session has a budget. Write zeros out")
        else:
            return ()
        return total

    # --- streams ---

    def _connected(self, link: Link) -> None:
        if self._leg is not None and not self._leaving:
            link.close()  # sought when there was none; there is one by now
            return
        if self._link is not None:
            self._link.close()
        self._link = link
        if self._leg is None:
            self._switch()
            self._send()

    def _switch(self) -> None:
        """Go on with the session on the link that waits, if one does."""
        if self._link is None:
            return
        opening = pb.ControlRequest(open=encode_opening(self._opening, self._state))
        link, self._link = self._link, None
        if self.lost is not None:
            link.close()
            return
        self._previous, self._leaving = self._leg, False
        self._leg = _Leg(link.open(opening), self._next_step)

    def _ended(self, stream: Stream, error: PolicyServiceError) -> None:
        if self._previous is not None and stream is self._previous.stream:
            self._previous = None
        leg = self._leg
        if leg is None or stream is not leg.stream:
            return
        self.trouble = error
        self._leg, self._previous = self._previous, None
        self._leaving = self._leg is not None
        if self._leg is None:
            self._switch()
        if isinstance(error, _REFUSALS) and not leg.opened:
            self._refusals[stream.address] = error
            if self._refused_since is None:
                self._refused_since = self._clock()
            everywhere = isinstance(error, InvalidRequestError) or len(self._refusals) == len(self._addresses)
            if ((everywhere and not self._may_pass(error)) or self._stale()) and self._leg is None:
                self.lost = error
        self._send()

    def _may_pass(self, error: PolicyServiceError) -> bool:
        """Whether a session that was open may be refused by a server that has not yet looked at its repository."""
        if self.opened is None or self._refused_since is None or isinstance(error, InvalidRequestError):
            return False
        return self._clock() - self._refused_since < _LAG_SECONDS

    def _stale(self) -> bool:
        """Whether the state is older than servers go on from: one that cannot be reached would refuse it, too."""
        return self.opened is not None and self._clock() - self._issued > self.opened.idle_timeout_seconds

    def _received(self, leg: _Leg, response: pb.ControlResponse) -> ControlAnswer | None:
        leg.silent_since = None
        match response.WhichOneof("response"):
            case "opened":
                self._opened(leg, decode_opened(response.opened))
            case "result":
                return self._result(leg, response.result)
            case "error":
                return self._refused(leg, response.error)
            case "notice":
                self._leaving = self._leaving or response.notice.kind == pb.NOTICE_KIND_DRAINING
        return None

    def _opened(self, leg: _Leg, opened: SessionOpened) -> None:
        if self.opened is None:
            self.opened = opened
            self._has_finite_budget = any(map(math.isfinite, opened.cost_budget))
        leg.opened = True
        self._go_on_from(opened.state, opened.next_step)
        self._refusals.clear()
        self._refused_since = None
        self._addresses.worked(leg.stream.address)
        if self._previous is not None:
            self._previous.stream.finish()
            self._previous = None

    def _result(self, leg: _Leg, message: pb.ControlResult) -> ControlAnswer | None:
        self._go_on_from(message.state, message.step + 1)
        late = self._in_flight is None or message.step != leg.sent
        try:
            result = decode_result(message)
            answer = answer_of(result, self._clock() - self._began)
        except (ValueError, IndexError) as error:
            return None if late else self._unreadable(leg, str(error))
        self._last = result
        if late:
            return None
        if len(answer.action) != self._action_size or not np.isfinite(answer.action).all():
            return self._unreadable(leg, f"its action is {answer.action}")
        self._stand_in.answered(answer.action)
        self._over()
        return answer

    def _go_on_from(self, state: bytes, next_step: int) -> None:
        self._state, self._next_step, self._issued = state, next_step, self._clock()

    def _unreadable(self, leg: _Leg, why: str) -> ControlAnswer:
        return self._substitute(
            WatchdogReason.REFUSED,
            f"The answer of {leg.stream.address} cannot be used, as that of a server of another release may be: {why}.",
        )

    def _refused(self, leg: _Leg, message: pb.StepError) -> ControlAnswer | None:
        if message.state:  # a server of an earlier release sends none
            self._go_on_from(message.state, message.next_step)
        if message.step != leg.sent:
            return None  # too late, or of a step before the one that is to be answered
        leg.next_step = message.next_step
        if self._in_flight is None:
            return None
        error = step_error(message.status, leg.stream.address)
        match error:
            case InvalidRequestError(field="step.step"):
                self._send()  # the server counts otherwise, after steps that it refused; now its number is known
                return None
            case InvalidRequestError() | HorizonError():
                self._over()
                raise error
        return self._substitute(WatchdogReason.REFUSED, str(error))

    def _substitute(self, reason: WatchdogReason, message: str) -> ControlAnswer:
        assert self.opened is not None, "a step before the session is open"
        last = before_the_first(self.opened, self.description) if self._last is None else answer_of(self._last, 0.0)
        action, taken = self._stand_in.act(reason, message)
        self._over()
        return watchdog_answer(last, action, taken, self._clock() - self._began)
