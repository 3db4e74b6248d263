"""Load on a policy service: clients that ask on a fixed schedule, or one question after the other, and how long each
waited.

A client is a thread with a connection of its own and one question open at a time, as a robot has. On a schedule, a
question that falls due while the answer before it is still out is counted from when it was due: a server that stalls
for a second is late for every question of that second, not for one (Tene's coordinated omission).
"""

import gc
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import numpy as np

from cvpo.commands.latency import Latency, Seconds
from serve.client.channel import Tls
from serve.gen.cvpo.v1 import control_pb2, policy_pb2

NOT_SENT = "NOT_SENT"  # due within the time of the test, but the answers before it took until after its end
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))


class Asker(Protocol):
    """One client."""

    def ask(self) -> str:
        """Ask once, wait for the answer, and return its code: OK, or why there is none."""

    def close(self) -> None:
        """Close the connection."""


def connect(address: str, tls: Tls | None = None) -> grpc.Channel:
    """A connection of its own: gRPC would have all clients of a process share one."""
    if tls is None:
        return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*tls.read()), options=_CHANNEL_OPTIONS)


class UnaryAsker:
    """Sends the same request again and again, as bytes; takes any service's unary method."""

    def __init__(
        self, address: str, method: str, request: bytes, timeout_seconds: float, tls: Tls | None = None
    ) -> None:
        self._channel = connect(address, tls)
        self._call: Any = self._channel.unary_unary(method)
        self._request, self._timeout_seconds = request, timeout_seconds

    def ask(self) -> str:
        try:
            self._call(self._request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            return _code(error)
        return "OK"

    def close(self) -> None:
        self._channel.close()


class _Patience:
    """Cancels a call on which an answer is waited for too long, which gRPC knows of no single one of a stream."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._call: Any = None  # whose answer is waited for; None: no answer is, or no longer
        self._until = 0.0  # on the clock of time.monotonic
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, call: Any) -> None:
        """An answer is waited for from now on."""
        with self._lock:
            self._call, self._until = call, time.monotonic() + self._timeout_seconds

    def end(self) -> bool:
        """None is any more; return whether there still was patience for it."""
        with self._lock:
            waited, self._call = self._call is not None, None
        return waited

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _watch(self) -> None:
        pause = self._timeout_seconds
        while not self._closed.wait(pause):
            with self._lock:
                left = self._until - time.monotonic() if self._call is not None else self._timeout_seconds
                if left <= 0:
                    self._call.cancel()
                    self._call = None
            pause = left if left > 0 else self._timeout_seconds


class StreamAsker:
    """One robot's control stream, opened anew where it ends."""

    def __init__(
        self,
        address: str,
        opening: control_pb2.OpenSession,
        step: control_pb2.ControlStep,
        timeout_seconds: float,
        tls: Tls | None = None,
    ) -> None:
        """Prepare.

        Args:
            address: of the server.
            opening: of each stream.
            step: sent again and again, with its number; every other one with its last digits changed.
            timeout_seconds: for an answer; the stream of one that takes longer ends.
            tls: None: in plaintext.
        """
        self._channel = connect(address, tls)
        self._method: Any = self._channel.stream_stream("/cvpo.v1.ControlService/Control")
        self._opening = control_pb2.ControlRequest(open=opening).SerializeToString()
        other = control_pb2.ControlStep(observation=_nudged(step.observation), cost_total=step.cost_total)
        self._steps = [control_pb2.ControlRequest(step=each) for each in (step, other)]
        self._number: int | None = None  # of the next step; None: nobody has said
        self._patience = _Patience(timeout_seconds)
        self._requests: queue.SimpleQueue[bytes | None] | None = None  # of the stream; None: there is none
        self._answers: Any = None

    def ask(self) -> str:
        if self._requests is None:
            self._requests, self._number = queue.SimpleQueue(), None
            self._requests.put(self._opening)
            self._answers = self._method(iter(self._requests.get, None))
        self._patience.begin(self._answers)
        try:
            code = self._step(self._requests)
        except grpc.RpcError as error:
            code = _code(error)
            self._leave()
        except StopIteration:
            code = "OUT_OF_RANGE"  # the server ended the stream in good order, but a robot goes on
            self._leave()
        if not self._patience.end():
            code = "DEADLINE_EXCEEDED"
            self._leave()
        return code

    def close(self) -> None:
        self._patience.close()
        self._leave()
        self._channel.close()

    def _step(self, requests: "queue.SimpleQueue[bytes | None]") -> str:
        if self._number is None:
            self._number = self._next().opened.next_step
        request = self._steps[self._number % 2]
        request.step.step = self._number
        requests.put(request.SerializeToString())
        answer = self._next()
        if answer.HasField("error"):
            self._number = answer.error.next_step
            return _CODES.get(answer.error.status.code, "UNKNOWN")
        self._number += 1
        return "OK"

    def _leave(self) -> None:
        """End the stream."""
        if self._requests is not None:
            self._requests.put(None)
            self._requests = None

    def _next(self) -> control_pb2.ControlResponse:
        """The next answer; news of the server are passed over."""
        while True:
            answer = control_pb2.ControlResponse.FromString(next(self._answers))
            if not answer.HasField("notice"):
                return answer


def _nudged(observation: Sequence[float]) -> list[float]:
    """The observation with each value moved by its last digit, towards zero: one that repeats is taken for frozen."""
    values = np.array(observation, np.float32)
    nudged: list[float] = np.nextafter(values, np.where(values > 0, np.float32(0), np.float32(1))).tolist()
    return nudged


def _code(error: Any) -> str:
    name: str = error.code().name
    return name


@dataclass
class Trace:
    """What one client saw."""

    waits: list[float] = field(default_factory=list)  # of the answered, seconds
    errors: Counter[str] = field(default_factory=Counter)  # by code
    overslept: list[float] = field(default_factory=list)  # how much later than due the client itself asked, seconds

    def count(self, code: str, wait: float) -> None:
        """Take note of one answer."""
        if code == "OK":
            self.waits.append(wait)
        else:
            self.errors[code] += 1


@dataclass(frozen=True)
class Load:
    """What all clients saw together."""

    waits: Seconds
    errors: Counter[str]
    overslept: Seconds
    seconds: float  # from the first question to the last answer

    @property
    def latency(self) -> Latency:
        return Latency(self.waits, self.errors.total())


def due_times(client: int, clients: int, rate_hz: float, seconds: float) -> Seconds:
    """When a client's questions are due, seconds after the start; the clients take turns within a period."""
    return (np.arange(round(rate_hz * seconds), dtype=np.float64) + client / clients) / rate_hz


def follow(ask: Callable[[], str], due: Seconds, start: float, end: float) -> Trace:
    """Ask at each of the due times, and go on at once where the answer before came too late for that.

    Args:
        ask: asks, waits and returns a code.
        due: seconds after `start`.
        start: on the clock of time.perf_counter.
        end: after it nothing more is asked; what was still due counts as NOT_SENT.
    """
    trace = Trace()
    for number, moment in enumerate((due + start).tolist()):
        now = time.perf_counter()
        since = moment
        if now < moment:
            time.sleep(moment - now)
            since = time.perf_counter()  # to wake up late is the client's own fault
            trace.overslept.append(since - moment)
        elif now > end:
            trace.errors[NOT_SENT] += len(due) - number
            break
        code = ask()
        trace.count(code, time.perf_counter() - since)
    return trace


def hurry(ask: Callable[[], str], seconds: float) -> Trace:
    """Ask one question after the other for so long."""
    trace = Trace()
    now = time.perf_counter()
    end = now + seconds
    while now < end:
        code = ask()
        then = time.perf_counter()
        trace.count(code, then - now)
        now = then
    return trace


def on_schedule(askers: Sequence[Asker], rate_hz: float, seconds: float, patience_seconds: float) -> Load:
    """Let each client ask `rate_hz` times a second, for so long, all in turns.

    Args:
        askers: the clients; each has asked at least once before, so that it is connected.
        rate_hz: of each.
        seconds: how long.
        patience_seconds: how long after that what is still due may be asked.
    """
    start = time.perf_counter() + 0.05  # all threads run by then
    end = start + seconds + patience_seconds

    def play(client: int) -> Trace:
        return follow(askers[client].ask, due_times(client, len(askers), rate_hz, seconds), start, end)

    return _together(len(askers), play)


def one_after_the_other(askers: Sequence[Asker], seconds: float) -> Load:
    """Let each client ask as soon as it has its answer, for so long."""
    return _together(len(askers), lambda client: hurry(askers[client].ask, seconds))


def _together(clients: int, play: Callable[[int], Trace]) -> Load:
    traces: list[Trace] = [Trace()] * clients
    began = time.perf_counter()

    def run(client: int) -> None:
        traces[client] = play(client)

    threads = [threading.Thread(target=run, args=(client,), daemon=True) for client in range(1, clients)]
    gc.freeze()  # to look through all that was imported for garbage would hold up every client, for 100 ms with torch
    try:
        for thread in threads:
            thread.start()
        run(0)
        for thread in threads:
            thread.join()
    finally:
        gc.unfreeze()
    return Load(
        waits=np.concatenate([trace.waits for trace in traces]),
        errors=sum((trace.errors for trace in traces), Counter[str]()),
        overslept=np.concatenate([trace.overslept for trace in traces]),
        seconds=time.perf_counter() - began,
    )


def act_request(policy: str, observation: Sequence[float]) -> bytes:
    """A request for one action."""
    return policy_pb2.ActRequest(
        policy=policy_pb2.PolicySelector(name=policy), situations=[policy_pb2.Situation(observation=observation)]
    ).SerializeToString()


def control_messages(
    policy: str, observation: Sequence[float], window_steps: int, constraints: int
) -> tuple[control_pb2.OpenSession, control_pb2.ControlStep]:
    """The opening and the step of a session that has no end and in which nothing costs anything."""
    opening = control_pb2.OpenSession(policy=policy_pb2.PolicySelector(name=policy), rolling_window_steps=window_steps)
    return opening, control_pb2.ControlStep(observation=observation, cost_total=[0.0] * constraints)
