"""Who answers a step of a session, the policy or its fallback, and with what: a runtime-assurance switch (Simplex)."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from serve.control_values import (
    Account,
    BackupPolicy,
    ConstantAction,
    FallbackTaken,
    FlaggedAction,
    HoldLastAction,
    LeastUnsafeAction,
    Opening,
    PolicySelector,
)
from serve.errors import FingerprintError, InternalError, NotFoundError, UnavailableError
from serve.server.runtime import Asked, PolicyRuntime
from serve.server.safety import Authority, cost_allowed, first_reason
from serve.server.state import Terms
from serve.values import ActLists, Deterministic, Mode, PredictionLists, Shielded, Situations

_NOT_THERE = NotFoundError, FingerprintError, UnavailableError


class Policies(Protocol):
    """Where the policies are."""

    def select(self, name: str, version: int | None, fingerprint: str, key: str | None = None) -> PolicyRuntime:
        """Return the policy that is meant: its given version, or the one that is served to a session.

        Raises:
            NotFoundError: no such policy or version.
            FingerprintError: it has another fingerprint.
            UnavailableError: it is not loaded yet.
        """


class Decision(NamedTuple):
    """The action of one step, what is predicted of it, and whose it is."""

    action: list[float]  # [A]
    prediction: PredictionLists | None  # [1, ...]
    feasible: bool
    chosen: int
    authority: Authority
    fallback: FallbackTaken | None = None

    @classmethod
    def of(cls, result: ActLists, authority: Authority, fallback: FallbackTaken | None = None) -> "Decision":
        return cls(result.action[0], result.prediction, result.feasible[0], result.chosen[0], authority, fallback)


class Situation(NamedTuple):
    """What a step is decided on."""

    step: int
    observation: Sequence[float]  # [O]
    repeats: list[int]  # [O], see Situations
    account: Account
    authority: Authority  # after the step before
    last_action: list[float] | None  # [A], answered at the step before

    @property
    def asked(self) -> Situations:
        """What a policy is asked: of all the steps that are left."""
        account = self.account
        return Situations([self.observation], [account.steps_left], [cost_allowed(account)], [self.repeats])


class Pilot:
    """The policy of a session, and its fallback."""

    def __init__(
        self, opening: Opening, terms: Terms, policies: Policies, versions: tuple[int | None, int | None]
    ) -> None:
        """Find the policies.

        Args:
            opening: of the session.
            terms: of the session; its id decides whether a version on trial answers.
            policies: where the policies are.
            versions: of the policy and its backup that answered last; None: none has.

        Raises:
            NotFoundError, FingerprintError, UnavailableError: one of the policies is not here, or is not for the same
                robot, or not for as many steps as the session needs.
        """
        self._mode = opening.mode
        self._fallback = opening.fallback
        self._seed = terms.seed
        modes = self._mode, self._fallback.action
        # Candidates that are computed at once, at most.
        self.rows = max(
            (mode.candidates for mode in modes if isinstance(mode, Shielded | LeastUnsafeAction)), default=1
        )
        self._policy = _Followed(policies, opening.policy, terms.name, terms, versions[0], "open.")
        self.own: tuple[Asked, ActLists] | None = None  # what the policy was asked last, and said
        self.failure: InternalError | None = None  # why it said nothing that may be sent
        self.backup_failure: InternalError | None = None  # why its backup said nothing, when it was asked last
        self._backup: _Followed | None = None
        if isinstance(opening.fallback.action, BackupPolicy):
            backup = opening.fallback.action.policy
            if backup.fingerprint not in ("", terms.fingerprint):
                raise FingerprintError("The backup policy must have the fingerprint of the session's policy.")
            self._backup = _Followed(policies, backup, backup.name, terms, versions[1], "open.fallback.backup.")

    @property
    def policy(self) -> PolicyRuntime:
        """What answers, or answered last."""
        return self._policy.runtime

    @property
    def backup_version(self) -> int | None:
        return self._backup.runtime.served.version if self._backup else None

    def ask(self, situation: Situation) -> Asked:
        """Return what the policy is to be asked: its version that is served now, where that one fits."""
        self._policy.follow()
        return Asked(self.policy, situation.asked, self._drawn(self._mode, situation.step))

    def decide(self, situation: Situation, asked: Asked, own: ActLists | InternalError) -> Decision:
        """Take what the policy gave, or ask the fallback where it has control.

        Args:
            situation: of the step.
            asked: what `ask` returned for it.
            own: what the policy gave.

        Raises:
            InternalError: neither gave anything that may be sent.
        """
        fallback = self._fallback
        self.own, self.failure = (None, own) if isinstance(own, InternalError) else ((asked, own), None)
        reason = None
        if not isinstance(fallback.action, FlaggedAction):
            # What is outside the space, or frozen, is told also where the policy gives nothing.
            given = None if isinstance(own, InternalError) else own.prediction
            reason = first_reason(
                fallback.reasons,
                no_answer=given is None,
                exhausted=any(situation.account.exhausted),
                shifted=asked.policy.shifted(asked.situations, [0.0] if given is None else given.shift_score)[0],
                flagged=given is not None and given.flagged[0],
            )
        authority, told = situation.authority.after(reason, fallback.recovery_steps)
        if told is not None:
            taken = FallbackTaken(told, authority.fallback_steps)
            return self._fall_back(situation, asked.situations, authority, taken)
        if isinstance(own, InternalError):
            raise own
        return Decision.of(own, authority)

    def _fall_back(
        self, situation: Situation, asked: Situations, authority: Authority, taken: FallbackTaken
    ) -> Decision:
        action = list(self.policy.manifest.safe_action)
        match self._fallback.action:
            case LeastUnsafeAction(candidates):
                mode = self._drawn(Shielded(candidates), situation.step)
                return Decision.of(self.policy.act(asked, mode), authority, taken)
            case BackupPolicy():
                answer = self._ask_backup(asked)
                if answer is not None:
                    return Decision.of(answer, authority, replace(taken, backup=answer.policy))
            case HoldLastAction() if situation.last_action is not None:
                action = situation.last_action
            case ConstantAction(constant) if constant is not None:
                action = list(constant)
        try:
            prediction = self.policy.evaluate_action(asked, [action]).prediction
        except InternalError:  # the action is known all the same
            return Decision(action, None, False, 0, authority, taken)
        return Decision(action, prediction, not prediction.flagged[0], 0, authority, taken)

    def _ask_backup(self, asked: Situations) -> ActLists | None:
        """Return what the backup policy answers; None where it gives nothing that may be sent."""
        assert self._backup is not None
        self._backup.follow()
        self.backup_failure = None
        try:
            return self._backup.runtime.act(asked, Deterministic())
        except InternalError as error:
            self.backup_failure = error
            return None

    def _drawn(self, mode: Mode, step: int) -> Mode:
        """The mode of one step: what it draws follows from the session's seed and the step's number."""
        if isinstance(mode, Deterministic):
            return mode
        digest = hashlib.sha256(struct.pack("<QQ", self._seed, step)).digest()
        return replace(mode, seed=int.from_bytes(digest[:8], "little"))


class _Followed:
    """A policy that a session stays with: the version it names, or the served one as long as it is for the session."""

    def __init__(
        self, policies: Policies, sent: PolicySelector, name: str, terms: Terms, version: int | None, path: str
    ) -> None:
        """Select; an unnamed version begins with the served one, or with `version` where that one does not fit.

        Args:
            policies: where the policies are.
            sent: what the robot says of the policy.
            name: of the policy; from the session's state where the robot does not say it.
            terms: of the session, with the fingerprint that the policy must have.
            version: that answered last, from the session's state; None: none has.
            path: of the message that has what was sent.

        Raises:
            NotFoundError, FingerprintError, UnavailableError: there is no such policy, or it does not fit.
        """
        self._policies = policies
        self._sent = sent
        self._name = name
        self._terms = terms
        self._key = terms.session_id.hex()
        self._path = path
        self._pinned = sent.version is not None
        try:
            self.runtime = self._begin(sent.version)
        except _NOT_THERE:
            if self._pinned or version is None:
                raise
            self.runtime = self._begin(version)

    def follow(self) -> None:
        """Move to the version that is served now; stay where there is none that fits."""
        if self._pinned:
            return
        try:
            served = self._select(None)
        except _NOT_THERE:
            return
        if self._fits(served):
            self.runtime = served

    def _begin(self, version: int | None) -> PolicyRuntime:
        try:
            runtime = self._select(version)
        except NotFoundError as error:
            of_state = self._name != self._sent.name if error.field == "policy.name" else version != self._sent.version
            raise (NotFoundError(str(error), "open.state") if of_state else error.under(self._path)) from None
        if not self._fits(runtime):
            raise FingerprintError(
                f"Policy {runtime.served.name!r} version {runtime.served.version} has a horizon of "
                f"{runtime.frame.horizon_steps} steps; this session needs {self._terms.steps_spoken_of}, and the "
                "control period of the policy that it was opened with."
            )
        return runtime

    def _select(self, version: int | None) -> PolicyRuntime:
        return self._policies.select(self._name, version, self._terms.fingerprint, self._key)

    def _fits(self, runtime: PolicyRuntime) -> bool:
        return runtime.speaks_of(self._terms.steps_spoken_of, self._terms.control_period_ms)
