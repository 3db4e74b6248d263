"""Requests that no client of ours sends: protobuf messages with wrong contents, and bytes that are no HTTP/2 at all."""

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from serve.gen.cvpo.v1 import control_pb2 as control
from serve.gen.cvpo.v1 import policy_pb2 as pb

M = TypeVar("M")

UNARY = ("Act", "EvaluateAction", "ListPolicies", "GetPolicy")
PATIENCE_SECONDS = 60.0
LISTEN_SECONDS = 0.02  # to what is said to wrong bytes

# What may be answered to a message: the caller is told what is wrong, or it was not wrong after all.
BLAMELESS = frozenset(
    {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"}
)

_NUMBERS = (0.0, -0.0, 1.0, -1.0, 5.5, 1e3, -1e3, float("nan"), float("inf"), -float("inf"), 1e-45)
_WHOLE = (0, 1, 2, 3, 10, 101, 2**31 - 1, 2**31, 2**32 - 1)
_NAMES = ("", "goal", "gaol", "../goal", "goal\x00", "é" * 50, "x" * 5000)


@dataclass
class Messages:
    """An endless supply of wrong messages; the same seed gives the same."""

    random: random.Random
    policy: str  # that the server has
    observation_size: int  # of that policy

    def unary(self) -> tuple[str, bytes]:
        """Return a method of PolicyService and the bytes that it is sent."""
        method = self.random.choice(UNARY)
        return method, self._spoil(self._request(method).SerializeToString())

    def stream(self) -> list[bytes]:
        """Return what a control stream is sent, mostly a good opening first."""
        opening = control.OpenSession(policy=self._selector(), cost_budget=self._numbers(3))
        self.random.choice(
            (
                lambda: None,
                lambda: setattr(opening, "horizon_steps", self._whole()),
                lambda: setattr(opening, "rolling_window_steps", self._whole()),
                lambda: setattr(opening.shielded, "candidates", self._whole()),
                lambda: setattr(opening, "state", self.random.randbytes(self.random.randrange(200))),
                lambda: opening.fallback.reasons.extend(self._reasons()),
                lambda: setattr(opening.max_age, "seconds", self.random.choice((-(2**63), -1, 0, 2**63 - 1))),
                lambda: opening.fallback.constant.action.extend(self._numbers(3)),
                lambda: opening.fallback.backup.policy.CopyFrom(self._selector()),
            )
        )()
        good = control.OpenSession(policy=pb.PolicySelector(name=self.policy))
        first = control.ControlRequest(open=good if self.random.random() < 0.5 else opening)
        steps = [
            control.ControlRequest(
                step=control.ControlStep(
                    step=self.random.choice((number, self._whole())),
                    observation=self._observation(),
                    cost_total=self._numbers(3),
                )
            )
            for number in range(self.random.randrange(4))
        ]
        sent = [message.SerializeToString() for message in (first, *steps)]
        index = self.random.randrange(len(sent))
        return [*sent[:index], self._spoil(sent[index]), *sent[index + 1 :]]

    def _request(self, method: str) -> pb.ActRequest | pb.EvaluateActionRequest | pb.GetPolicyRequest:
        if method == "Act":
            request = pb.ActRequest(policy=self._selector(), situations=self._many(self._situation))
            mode = self.random.randrange(3)
            if mode == 1:
                request.shielded.candidates = self._whole()
            elif mode == 2:
                request.sampled.seed = self.random.getrandbits(64)
            return request
        if method == "EvaluateAction":

            def situated() -> pb.SituatedAction:
                return pb.SituatedAction(situation=self._situation(), action=self._numbers(3))

            return pb.EvaluateActionRequest(policy=self._selector(), situated_actions=self._many(situated))
        return pb.GetPolicyRequest(policy=self._selector())

    def _selector(self) -> pb.PolicySelector:
        if self.random.random() < 0.7:
            return pb.PolicySelector(name=self.policy)
        version = self.random.choice((None, 0, 1, 2, 3, 2**64 - 1))
        fingerprint = self.random.choice(("", "0" * 16))
        return pb.PolicySelector(name=self.random.choice(_NAMES), version=version, fingerprint=fingerprint)

    def _situation(self) -> pb.Situation:
        steps = self.random.choice((None, self._whole()))
        return pb.Situation(observation=self._observation(), steps_left=steps, cost_allowed=self._numbers(3))

    def _observation(self) -> list[float]:
        match self.random.randrange(4):
            case 0:
                return self._numbers(2 * self.observation_size)
            case 1:
                return self.random.choices(_NUMBERS, k=self.observation_size)
        return [1.0] * self.observation_size

    def _reasons(self) -> list[control.FallbackReason]:
        number: Any = self.random.randrange(20)  # the enum has fewer
        return [number]

    def _numbers(self, most: int) -> list[float]:
        return self.random.choices(_NUMBERS, k=self.random.randrange(most + 1))

    def _whole(self) -> int:
        return self.random.choice(_WHOLE)

    def _many(self, make: Callable[[], M]) -> list[M]:
        return [make() for _ in range(self.random.choice((0, 1, 1, 2, 40)))]

    def _spoil(self, message: bytes) -> bytes:
        """Leave a message as it is, or damage its bytes."""
        match self.random.randrange(6):
            case 0:
                return self.random.randbytes(self.random.randrange(300))
            case 1:
                return message[: self.random.randrange(len(message) + 1)]
            case 2:
                return flip(message, self.random)
            case 3:  # a field that is not ours, or one nested without end
                return message + self.random.choice((b"\xfa\x01\x03abc", b"\x0b" * 200, b"\x0a\xff\xff\xff\xff\x0f"))
        return message


def flip(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with a few of them replaced."""
    spoilt = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        if spoilt:
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt)


def send_messages(channel: grpc.Channel, messages: Messages, count: int) -> Counter[str]:
    """Send so many wrong messages, every fourth in a control stream, and count the answers by status."""
    codes: Counter[str] = Counter()
    for index in range(count):
        try:
            if index % 4:
                method, request = messages.unary()
                call = channel.unary_unary(f"/cvpo.v1.PolicyService/{method}", bytes, bytes)
                call(request, timeout=PATIENCE_SECONDS)
            else:
                converse = channel.stream_stream("/cvpo.v1.ControlService/Control", bytes, bytes)
                for _ in converse(iter(messages.stream()), timeout=PATIENCE_SECONDS):
                    pass
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[_code(error)] += 1
    return codes


def _code(error: grpc.RpcError) -> str:
    assert isinstance(error, grpc.Call)
    return str(error.code().name)


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 7, 8, 9
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Return an HTTP/2 frame, whose length may be a lie."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers(path: str) -> bytes:
    """Return the headers of a gRPC request, each written out."""
    pairs = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode() for name, value in pairs.items()
    )


def connection(path: str, message: bytes, settings: bytes = b"") -> bytes:
    """Return the bytes of a connection that makes one request."""
    return (
        _PREFACE
        + frame(_SETTINGS, 0, 0, settings)
        + frame(_HEADERS, _END_HEADERS, 1, headers(path))
        + frame(_DATA, _END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
    )


@dataclass
class Connections:
    """An endless supply of wrong connections; the same seed gives the same."""

    random: random.Random

    def bytes(self) -> bytes:
        """Return all that one connection is sent."""
        rng = self.random
        message = pb.ActRequest(situations=[pb.Situation(observation=(1, 2, -1))]).SerializeToString()
        path = rng.choice(("/cvpo.v1.PolicyService/Act", "/cvpo.v1.ControlService/Control", "/nowhere", "x" * 120))
        good = connection(path, message)
        opened = _PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_HEADERS, _END_HEADERS, 1, headers(path))
        noise = rng.randbytes(rng.randrange(2000))
        match rng.randrange(11):
            case 0:
                return noise
            case 1:
                return _PREFACE + noise
            case 2:
                return _PREFACE + flip(good[len(_PREFACE) :], rng)
            case 3:
                return good[: rng.randrange(len(good))]
            case 4:
                kind, flags, length = rng.randrange(16), rng.randrange(256), rng.choice((None, 0, 5, 2**24 - 1))
                return good + frame(kind, flags, rng.choice((0, 1, 2, 3, 2**31 - 1)), noise[:300], length)
            case 5:  # a message that is longer, or shorter, than it says, or says that it is compressed
                prefix = bytes((rng.randrange(3),)) + struct.pack(">I", rng.choice((0, 1, 2**31, 2**32 - 1)))
                return opened + frame(_DATA, rng.randrange(2), 1, prefix + message)
            case 6:  # requests taken back as soon as they are made
                requests = b"".join(
                    frame(_HEADERS, _END_HEADERS, 2 * i + 3, headers(path))
                    + frame(_RESET, 0, 2 * i + 3, struct.pack(">I", 8))
                    for i in range(rng.randrange(40))
                )
                return opened + requests
            case 7:
                return opened + frame(_WINDOW, 0, rng.choice((0, 1)), struct.pack(">I", rng.choice((0, 1, 2**31 - 1))))
            case 8:  # settings with any value
                settings = b"".join(struct.pack(">HI", rng.randrange(8), rng.getrandbits(32)) for _ in range(4))
                return connection(path, message, settings)
            case 9:  # headers without end
                start = _PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_HEADERS, 0, 1, headers(path))
                return start + b"".join(frame(_CONTINUATION, 0, 1, noise[:100]) for _ in range(rng.randrange(40)))
            case _:
                return opened + frame(_GOAWAY, 0, 0, struct.pack(">II", 2**31 - 1, 0)) + good


def send_bytes(host: str, port: int, sent: Iterable[bytes]) -> int:
    """Open a connection for each, send it, listen for a moment, and hang up; return how many could be opened."""
    opened = 0
    for data in sent:
        with socket.socket() as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect((host, port))
            opened += 1
            try:
                connection.sendall(data)
                connection.settimeout(LISTEN_SECONDS)
                while connection.recv(65536):
                    pass
            except OSError:  # it has hung up on us, or says no more
                pass
    return opened
