"""What a session takes along from one server to another: its state, packed, dated and authenticated.

Not encrypted: a robot may read its own. A state is one of this format's version, sealed under the same key, and not
older than a session may be idle; all else is refused.
"""

import hashlib
import hmac
import itertools
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from serve.errors import SessionStateError
from serve.server.repeats import Repeats
from serve.server.safety import Authority, Costs

_FORMAT = b"\5"
_SEAL = struct.Struct("<cd")  # format, time of issue in seconds since 1970
_TAG_BYTES = 32
_CLOCK_SECONDS = 5.0  # by which the clocks of servers may differ
_SIZES = struct.Struct("<HHIBB")  # constraints, actions, observed values, bytes of name and fingerprint


@dataclass(frozen=True)
class Terms:
    """What a session is from its opening on."""

    session_id: bytes  # 16 random bytes
    opening: bytes  # SHA-256 of the opening
    name: str  # of the policy
    fingerprint: str
    control_period_ms: float | None  # of the policy that it was opened with
    cost_budget: Costs
    extent_steps: int  # the horizon, or the rolling window
    steps_ahead: int | None  # that the predictions of a rolling session speak of; None: the session ends
    seed: int  # of its draws

    @property
    def steps_spoken_of(self) -> int:
        """Steps that its predictions speak of, at most."""
        return self.extent_steps if self.steps_ahead is None else self.steps_ahead


class Progress(NamedTuple):
    """How far a session has come."""

    version: int  # that answered last
    backup_version: int | None  # of the backup policy; None: there is none
    next_step: int
    cost_total: Costs
    authority: Authority
    last_action: list[float] | None  # [A], that was answered last
    repeats: Repeats  # of what was observed


class StateSeal:
    """Makes states, and reads those that were made under the same key."""

    def __init__(self, key: bytes, lifetime_seconds: float, clock: Callable[[], float] = time.time) -> None:
        """Take a key, which all replicas share that sessions shall move between.

        Args:
            key: any secret of at least 16 bytes.
            lifetime_seconds: age at which a state is stale.
            clock: seconds since 1970.
        """
        if len(key) < 16:
            raise ValueError(f"a key of {len(key)} bytes can be guessed; give at least 16")
        self._key = hashlib.sha256(key).digest()  # BLAKE2b takes 64 bytes at most
        self.lifetime_seconds = lifetime_seconds
        self._clock = clock

    def seal(self, content: bytes) -> bytes:
        """Date and authenticate."""
        sealed = _SEAL.pack(_FORMAT, self._clock()) + content
        return sealed + self._tag(sealed)

    def open(self, state: bytes) -> bytes:
        """Return what was sealed.

        Raises:
            SessionStateError: forged, cut, of another key or format, stale, or from the future.
        """
        if state[:1] != _FORMAT:  # says nothing that matters to anyone who made it up
            raise SessionStateError("The state was issued by another release of this service. Open a new session.")
        sealed, tag = state[:-_TAG_BYTES], state[-_TAG_BYTES:]
        if not hmac.compare_digest(self._tag(sealed), tag):
            raise SessionStateError(
                "The state is not one that this server, or one with the same --session-key-file, has issued. Open a "
                "new session."
            )
        _, issued = _SEAL.unpack_from(sealed)
        age = self._clock() - issued
        if age < -_CLOCK_SECONDS:  # or it would be taken for as much longer
            raise SessionStateError(
                f"The state was issued {-age:.0f} s from now: the clocks of the servers differ. Open a new session."
            )
        if age > self.lifetime_seconds:
            raise SessionStateError(
                f"The state is {age:.0f} s old; sessions are kept for {self.lifetime_seconds:g} s without a step. Open "
                "a new session."
            )
        return sealed[_SEAL.size :]

    def _tag(self, sealed: bytes) -> bytes:
        return hashlib.blake2b(sealed, digest_size=_TAG_BYTES, key=self._key).digest()


class StatePacker:
    """Writes the states of one session; the part that does not change is written once."""

    def __init__(self, terms: Terms, action_size: int, observation_size: int) -> None:
        name, fingerprint = terms.name.encode(), terms.fingerprint.encode()
        moving = len(terms.cost_budget), action_size, observation_size
        fixed = _fixed(len(terms.cost_budget), len(name), len(fingerprint))
        self._fixed = _SIZES.pack(*moving, len(name), len(fingerprint)) + fixed.pack(
            terms.session_id,
            terms.opening,
            name,
            fingerprint,
            terms.control_period_ms or 0.0,
            terms.extent_steps,
            terms.steps_ahead or 0,
            terms.seed,
            *terms.cost_budget,
        )
        self._moving = _moving(*moving)
        self._no_action = [0.0] * action_size

    def pack(self, progress: Progress, history: bytes) -> bytes:
        """Write a state; `history` is that of a rolling session's costs."""
        action = progress.last_action
        return b"".join(
            (
                self._fixed,
                self._moving.pack(
                    progress.version,
                    progress.backup_version or 0,
                    progress.next_step,
                    progress.authority.fallback_steps,
                    progress.authority.clear_steps,
                    action is not None,
                    *(self._no_action if action is None else action),
                    *progress.cost_total,
                    *progress.repeats.observation,
                    *progress.repeats.steps,
                ),
                history,
            )
        )


def unpack(content: bytes) -> tuple[Terms, Progress, bytes]:
    """Read what StatePacker wrote, and StateSeal has vouched for."""
    constraints, actions, observed, *texts = _SIZES.unpack_from(content)
    fixed, moving = _fixed(constraints, *texts), _moving(constraints, actions, observed)
    session_id, opening, name, fingerprint, period, extent, ahead, seed, *budget = fixed.unpack_from(
        content, _SIZES.size
    )
    terms = Terms(
        session_id,
        opening,
        name.decode(),
        fingerprint.decode(),
        period or None,
        tuple(budget),
        extent,
        ahead or None,
        seed,
    )
    start = _SIZES.size + fixed.size
    version, backup, next_step, steps, clear, has_action, *rest = moving.unpack_from(content, start)
    vectors = iter(rest)
    action, total, observation, repeated = (
        list(itertools.islice(vectors, size)) for size in (actions, constraints, observed, observed)
    )
    progress = Progress(
        version=version,
        backup_version=backup or None,
        next_step=next_step,
        cost_total=tuple(total),
        authority=Authority(steps, clear),
        last_action=action if has_action else None,
        repeats=Repeats(observation, repeated),
    )
    return terms, progress, content[start + moving.size :]


def _fixed(constraints: int, name: int, fingerprint: int) -> struct.Struct:
    return struct.Struct(f"<16s32s{name}s{fingerprint}sdIIQ{constraints}d")


def _moving(constraints: int, actions: int, observed: int) -> struct.Struct:
    return struct.Struct(f"<QQQQQ?{actions}f{constraints}d{observed}f{observed}I")
