"""One robot's session: the result of a step as a function of the session, the step and the policies that are served.

No transport, no locks, and no clock but for telling how long things took. A session takes one step after another; one
that is refused leaves it as it was.
"""

import math
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from serve.codec import check_action_space, check_observation_space
from serve.control_values import (
    Account,
    ConstantAction,
    Opening,
    RollingWindow,
    SessionOpened,
    Step,
    StepAnswer,
    StepTiming,
)
from serve.errors import (
    DeadlineExceededError,
    HorizonError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    SessionStateError,
)
from serve.server.decision import Pilot, Policies, Situation
from serve.server.repeats import Repeats
from serve.server.runtime import Asked, PolicyRuntime
from serve.server.safety import (
    Authority,
    CostHistory,
    Costs,
    horizon_account,
    longest_window,
    rolling_account,
    steps_ahead,
)
from serve.server.state import Progress, StatePacker, StateSeal, Terms, unpack
from serve.values import ActLists, Deterministic, Mode

_SEED_BYTES = 8


class Begun(NamedTuple):
    """A step that is checked, and waits for what its policy gives."""

    situation: Situation
    asked: Asked
    cost_total: Costs
    repeats: Repeats
    queued_seconds: float
    checked_seconds: float
    checked: float  # when, of time.perf_counter
    until: float  # when it is too old to begin to compute, of time.perf_counter


class Session:
    """A robot's session on one server, from its opening or from the state in which it was left elsewhere."""

    def __init__(
        self,
        opening: Opening,
        terms: Terms,
        progress: Progress,
        history: bytes,
        policies: Policies,
        seal: StateSeal,
        strict_observations: bool,
    ) -> None:
        """Begin where `progress` says; see open_session and resume_session."""
        versions = progress.version, progress.backup_version
        self.session_id = terms.session_id.hex()  # the same wherever it goes on
        self._pilot = Pilot(opening, terms, policies, versions)
        self.rows = self._pilot.rows  # of the network that a step asks for at once, at most
        self._strict_observations = strict_observations
        self._max_age_seconds = math.inf if opening.max_age_seconds is None else opening.max_age_seconds
        self._terms = terms
        self._progress = progress
        self._seal = seal
        self._has_finite_budget = any(map(math.isfinite, terms.cost_budget))
        steps_back = 0 if terms.steps_ahead is None else terms.extent_steps - 1
        self._history = CostHistory(len(terms.cost_budget), steps_back, history)
        self._constraints = tuple(constraint.name for constraint in self.policy.manifest.constraints)
        self._observation_size = self.policy.frame.observation_size  # of every version with the fingerprint
        self._packer = StatePacker(terms, len(self.policy.frame.action_low), self._observation_size)

    @property
    def next_step(self) -> int:
        """Number that the next step must have."""
        return self._progress.next_step

    @property
    def cost_total(self) -> Costs:
        """What was spent since the session began."""
        return self._progress.cost_total

    @property
    def own(self) -> tuple[Asked, ActLists] | None:
        """What the policy was asked at the last step, and said; None: nothing."""
        return self._pilot.own

    @property
    def failure(self) -> InternalError | None:
        """Why the policy gave nothing at the last step, whatever was answered; None: it did."""
        return self._pilot.failure

    @property
    def backup_failure(self) -> InternalError | None:
        """Why the backup policy gave nothing when it was asked last; None: it did, or was never asked."""
        return self._pilot.backup_failure

    @property
    def policy(self) -> PolicyRuntime:
        """What answered last."""
        return self._pilot.policy

    def opened(self) -> SessionOpened:
        """Tell what the session begins with."""
        return SessionOpened(
            session_id=self.session_id,
            policy=self.policy.served,
            cost_budget=self._terms.cost_budget,
            extent_steps=self._terms.extent_steps,
            next_step=self._progress.next_step,
            idle_timeout_seconds=self._seal.lifetime_seconds,
            state=self.state(),
        )

    def state(self) -> bytes:
        """What the session goes on from, here or elsewhere."""
        return self._seal.seal(self._packer.pack(self._progress, self._history.packed))

    def account(self) -> Account:
        """What is spent and left before the next step brings its costs."""
        return self._account(self._progress.cost_total)

    def step(self, step: Step, queued_seconds: float = 0.0) -> StepAnswer:
        """Answer a step; as `begin` and `finish`, with what the policy gives."""
        begun = self.begin(step, queued_seconds)
        own: ActLists | InternalError
        try:
            own = begun.asked.answer()
        except InternalError as error:
            own = error
        return self.finish(begun, own)

    def begin(self, step: Step, queued_seconds: float = 0.0) -> Begun:
        """Check a step, and return what its policy is to be asked.

        Args:
            step: the next one.
            queued_seconds: how long it has waited.

        Raises:
            InvalidRequestError: names the field: a step that is repeated, left out or jumped back to, an observation or
                cost that is missing, not finite or of another length, a total that falls.
            HorizonError: the session is over.
            DeadlineExceededError: it is too old. It counts, and so does its cost; after all others the session is as
                it was before.
        """
        started = time.perf_counter()
        observation, cost_total = self._check(step, self._progress)
        repeats = self._progress.repeats.after(observation)
        if queued_seconds > self._max_age_seconds:
            self._count(cost_total, repeats)
            raise self._too_old(step.number, queued_seconds)
        progress = self._progress
        account = self._account(cost_total)
        situation = Situation(
            step.number, observation, repeats.steps, account, progress.authority, progress.last_action
        )
        asked = self._pilot.ask(situation)
        checked = time.perf_counter()
        until = started - queued_seconds + self._max_age_seconds
        return Begun(situation, asked, cost_total, repeats, queued_seconds, checked - started, checked, until)

    def finish(self, begun: Begun, own: ActLists | InternalError | DeadlineExceededError) -> StepAnswer:
        """Answer the step that was begun last.

        Args:
            begun: what `begin` returned.
            own: what the policy gave when it was asked, or why it was not asked after all.

        Raises:
            InternalError: nothing was computed that may be sent, nor by a fallback. The session is as it was before.
            DeadlineExceededError: it grew too old. It counts, and so does its cost.
        """
        situation, progress = begun.situation, self._progress
        if isinstance(own, DeadlineExceededError):
            self._count(begun.cost_total, begun.repeats)
            raise self._too_old(situation.step, begun.queued_seconds + time.perf_counter() - begun.checked)
        since = time.perf_counter() - begun.checked
        waited_seconds = 0.0 if isinstance(own, InternalError) else max(0.0, since - own.compute_seconds)
        decision = self._pilot.decide(situation, begun.asked, own)
        computed_seconds = time.perf_counter() - begun.checked - waited_seconds
        policy = self.policy.served
        self._advance(
            Progress(
                version=policy.version,
                backup_version=self._pilot.backup_version,
                next_step=progress.next_step + 1,
                cost_total=begun.cost_total,
                authority=decision.authority,
                last_action=decision.action,
                repeats=begun.repeats,
            )
        )
        return StepAnswer(
            situation.step,
            decision.action,
            decision.prediction,
            decision.feasible,
            decision.chosen,
            decision.fallback,
            self._constraints,
            situation.account,
            policy,
            StepTiming(begun.queued_seconds + waited_seconds, begun.checked_seconds, computed_seconds),
            self.state(),
        )

    def pass_over(self, step: Step) -> None:
        """Count a step and its cost without an answer, since a newer one waits.

        Raises:
            InvalidRequestError, HorizonError: as for step.
        """
        observation, cost_total = self._check(step, self._progress)
        self._count(cost_total, self._progress.repeats.after(observation))

    def newest(self, steps: Sequence[Step]) -> int:
        """The place of the newest that can be answered once those before it have been passed over; 0 where none can."""
        newest, progress = 0, self._progress
        for index, step in enumerate(steps):
            try:
                _, cost_total = self._check(step, progress)
            except (InvalidRequestError, HorizonError):
                continue
            newest, progress = index, progress._replace(next_step=progress.next_step + 1, cost_total=cost_total)
        return newest

    def _check(self, step: Step, progress: Progress) -> tuple[Sequence[float], Costs]:
        """Return the observation [O] and the total of a step that comes when so much was done."""
        expected = progress.next_step
        if step.number != expected:
            raise InvalidRequestError("step.step", f"is {step.number}; the next step of this session is {expected}")
        if self._terms.steps_ahead is None and expected >= self._terms.extent_steps:
            raise HorizonError(
                f"Step {expected} is past the horizon of {self._terms.extent_steps} steps. Open a new session."
            )
        return self._check_observation(step.observation), self._check_costs(step.cost_total, progress.cost_total)

    def _check_observation(self, values: Sequence[float]) -> Sequence[float]:
        size = self._observation_size
        if len(values) != size:
            raise InvalidRequestError(
                "step.observation", f"has {len(values)} values; the policy's observation has {size}"
            )
        observation = values[:]  # a list, whose values are at hand
        if not math.isfinite(sum(observation)):  # of float32 in Python's floats it cannot overflow
            index, value = next((index, value) for index, value in enumerate(observation) if not math.isfinite(value))
            raise InvalidRequestError(f"step.observation[{index}]", f"is {value}; it must be finite")
        if self._strict_observations:
            check_observation_space([observation], self.policy.frame, "step.observation")
        return observation

    def _check_costs(self, values: Sequence[float], before: Costs) -> Costs:
        if not values:
            if self._has_finite_budget:
                raise InvalidRequestError("step.cost_total", "is missing; this session has a budget. Write zeros out")
            return before
        if len(values) != len(before):
            raise InvalidRequestError(
                "step.cost_total", f"has {len(values)} values; the policy has {len(before)} constraints"
            )
        for index, (value, least) in enumerate(zip(values, before, strict=True)):
            if not least <= value < math.inf:  # False for NaN
                raise InvalidRequestError(
                    f"step.cost_total[{index}]", f"is {value:g}; a total must be finite, and it was {least:g} before"
                )
        return tuple(values)

    def _account(self, cost_total: Costs) -> Account:
        terms, step = self._terms, self._progress.next_step
        if terms.steps_ahead is None:
            return horizon_account(terms.cost_budget, terms.extent_steps, step, cost_total)
        then, first = (
            self._history.cost_total_then(step, terms.extent_steps - ahead, cost_total)
            for ahead in (terms.steps_ahead, 1)
        )
        return rolling_account(terms.cost_budget, terms.steps_ahead, cost_total, then, first)

    def _too_old(self, number: int, waited_seconds: float) -> DeadlineExceededError:
        allowed_seconds = self._max_age_seconds
        return DeadlineExceededError(
            f"Step {number} waited {waited_seconds * 1e3:.1f} ms; the session allows {allowed_seconds * 1e3:g} ms."
        )

    def _count(self, cost_total: Costs, repeats: Repeats) -> None:
        """Go on without an answer."""
        next_step = self._progress.next_step + 1
        self._advance(self._progress._replace(next_step=next_step, cost_total=cost_total, repeats=repeats))

    def _advance(self, progress: Progress) -> None:
        self._history.add(self._progress.next_step, self._progress.cost_total, progress.cost_total)
        self._progress = progress


def open_session(
    opening: Opening,
    digest: bytes,
    policies: Policies,
    seal: StateSeal,
    *,
    strict_observations: bool = False,
    state_bytes: int | None = None,
) -> Session:
    """Begin a session.

    Args:
        opening: what the robot asks for.
        digest: SHA-256 of the opening as it was sent, which must be the same when the session goes on elsewhere.
        policies: where the policies are.
        seal: what its states are sealed with.
        strict_observations: refuse an observation outside the observation space.
        state_bytes: of a state that can be sent back, at most. None: there is no bound.

    Raises:
        NotFoundError, FingerprintError, UnavailableError: there is no such policy, or the backup policy is not for the
            same robot, or not for as many steps.
        InvalidRequestError: names the field: a budget below zero or NaN, an extent that is not within the policy's
            horizon, a rolling window whose costs do not fit into a state, a constant action out of bounds.
    """
    session_id, selector = os.urandom(16), opening.policy
    try:
        policy = policies.select(selector.name, selector.version, selector.fingerprint, session_id.hex())
    except NotFoundError as error:
        raise error.under("open.") from None
    frame = policy.frame
    rolling = isinstance(opening.extent, RollingWindow)
    extent_steps = frame.horizon_steps if opening.extent is None else opening.extent.steps
    if not 1 <= extent_steps <= frame.horizon_steps:
        raise InvalidRequestError(
            "open.rolling_window_steps" if rolling else "open.horizon_steps",
            f"is {extent_steps}; the policy's horizon is 1 to {frame.horizon_steps} steps",
        )
    if opening.cost_budget is None:
        budget = tuple([limit * (extent_steps / frame.horizon_steps) for limit in frame.cost_limit])
    else:
        budget = opening.cost_budget
    _check_budget(budget, len(frame.cost_limit))
    if isinstance(opening.fallback.action, ConstantAction) and opening.fallback.action.action is not None:
        _check_action(opening.fallback.action.action, policy)
    terms = Terms(
        session_id=session_id,
        opening=digest,
        name=policy.served.name,
        fingerprint=policy.served.fingerprint,
        control_period_ms=policy.manifest.control_period_ms,
        cost_budget=budget,
        extent_steps=extent_steps,
        steps_ahead=steps_ahead(extent_steps, frame.window_steps) if rolling else None,
        seed=_seed(opening.mode),
    )
    observed = Repeats.none(frame.observation_size)
    progress = Progress(policy.served.version, None, 0, (0.0,) * len(budget), Authority(), None, observed)
    session = Session(opening, terms, progress, b"", policies, seal, strict_observations)
    if rolling and state_bytes is not None:
        longest = longest_window(len(budget), state_bytes - len(session.state()))
        if extent_steps > longest:
            raise InvalidRequestError(
                "open.rolling_window_steps",
                f"is {extent_steps}; the session could not go on elsewhere, for its state may outgrow what a message "
                f"holds. At most {longest} here, or more with a larger --max-message-bytes",
            )
    return session


def resume_session(
    opening: Opening,
    digest: bytes,
    state: bytes,
    policies: Policies,
    seal: StateSeal,
    *,
    strict_observations: bool = False,
) -> Session:
    """Go on with a session where a state says it was.

    Args:
        opening: as it was when the session was opened.
        digest: of that.
        state: of an answer of the session, from this server or another.
        policies: where the policies are.
        seal: what its states are sealed with.
        strict_observations: refuse an observation outside the observation space.

    Raises:
        SessionStateError: the state is not to be trusted, stale, or of another opening.
        NotFoundError, FingerprintError, UnavailableError: the session's policy is not here, or not for as many steps.
    """
    terms, progress, history = unpack(seal.open(state))
    if terms.opening != digest:
        raise SessionStateError("The session was opened otherwise. Open as before, or open a new session.")
    return Session(opening, terms, progress, history, policies, seal, strict_observations)


def _check_budget(budget: Costs, constraints: int) -> None:
    if len(budget) != constraints:
        raise InvalidRequestError(
            "open.cost_budget", f"has {len(budget)} values; the policy has {constraints} constraints"
        )
    for index, cost in enumerate(budget):
        if not cost >= 0:  # True for NaN
            raise InvalidRequestError(f"open.cost_budget[{index}]", f"is {cost:g}; it must be zero or more")


def _check_action(action: Sequence[float], policy: PolicyRuntime) -> None:
    field, low, high = "open.fallback.constant.action", policy.frame.action_low, policy.frame.action_high
    if len(action) != len(low):
        raise InvalidRequestError(field, f"has {len(action)} values; the policy's action has {len(low)}")
    check_action_space([action], low, high, field)


def _seed(mode: Mode) -> int:
    """The seed of a session's draws: the caller's, or a new one."""
    given = None if isinstance(mode, Deterministic) else mode.seed
    return int.from_bytes(os.urandom(_SEED_BYTES)) if given is None else given
