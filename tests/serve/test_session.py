"""One robot's session without a transport: openings, steps, budgets, fallbacks, versions, and going on elsewhere."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cvpo.bundle import read_bundle
from serve.codec import Limits
from serve.control_codec import (
    decode_opened,
    decode_opening,
    decode_result,
    decode_step,
    encode_opened,
    encode_opening,
    encode_result,
    encode_step,
    opening_digest,
    state_room,
)
from serve.control_values import (
    BackupPolicy,
    ConstantAction,
    Fallback,
    FallbackAction,
    FallbackReason,
    FlaggedAction,
    HoldLastAction,
    Horizon,
    LeastUnsafeAction,
    Opening,
    PolicySelector,
    RollingWindow,
    Step,
    StepResult,
    StepTiming,
)
from serve.errors import (
    DeadlineExceededError,
    FingerprintError,
    HorizonError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PolicyServiceError,
    SessionStateError,
)
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1 import policy_pb2
from serve.server.plan import ServingPlan
from serve.server.repeats import Repeats
from serve.server.repository import Repository, Snapshot, follow
from serve.server.runtime import PolicyRuntime, load
from serve.server.session import Session, open_session, resume_session
from serve.server.state import StateSeal
from serve.values import ActLists, CalibrationStatus, Deterministic, Mode, Prediction, Sampled, Shielded, Situations
from tests.serve import bundles

NAN, INF = math.nan, math.inf
KEY = b"0123456789abcdef"
CALM = (0.2, 0.2, 0.0)  # u = (0.1, -0.05): costs 0.1 and 0.05 a step
GREEDY = (1.0, 2.0, -1.0)  # u = (0.25, -1), action (0.25, -2): costs 0.25 and 1 a step
OUTSIDE = (4.5, 0.0, 0.0)  # shift score 1.5, over the threshold of 1
NONSENSE = (1e20, 0.0, 0.0)  # the graphs give NaN
FREE = (INF, INF)
CALIBRATED, SHIFTED = CalibrationStatus.CALIBRATED, CalibrationStatus.SHIFTED


@dataclass
class Served:
    """Policies by name and version; the served version is the highest, or what `serve` says."""

    versions: dict[str, dict[int, PolicyRuntime]]
    serve: dict[str, int] = field(default_factory=dict)

    def select(self, name: str, version: int | None, fingerprint: str, key: str | None = None) -> PolicyRuntime:
        versions = self.versions.get(name or "goal", {})
        wanted = self.serve.get(name or "goal", max(versions, default=0)) if version is None else version
        if wanted not in versions:
            raise NotFoundError(f"no version {wanted} of {name!r}")
        if fingerprint not in ("", versions[wanted].served.fingerprint):
            raise FingerprintError(f"not {fingerprint}")
        return versions[wanted]


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, PolicyRuntime]]:
    """goal 1 and 2, which choose actions of opposite sign, goal 3 for another robot, goal 4, whose horizon is 20 steps,
    goal 5, whose steps are longer, sure, which always answers, bare without calibration, and sensed, which knows how
    often its values may repeat."""
    root: Path = tmp_path_factory.mktemp("bundles")

    def made(name: str, version: int, text: Callable[[str], str] = str, **fields: Any) -> PolicyRuntime:
        spoiled = bundles.policy_graph(text)
        path = bundles.write(root / f"{name}{version}", bundles.manifest(name, version, **fields), policy=spoiled)
        return load(read_bundle(path))

    def never_nan(text: str) -> str:
        return text.replace("Mul(square, float_zero)", "Mul(first, float_zero)")

    def reversed_signs(text: str) -> str:
        return text.replace("0.5, 0.0, 0.0, -0.25, 0.25, 0.5", "-0.5, 0.0, 0.0, 0.25, -0.25, -0.5")

    watching = bundles.manifest("sensed")
    seen = watching.observation_statistics.model_copy(update={"frozen_after_steps": (2, None, 3)})
    watching = watching.model_copy(update={"observation_statistics": seen})
    sensed = load(read_bundle(bundles.write(root / "sensed", watching)))
    return {
        "goal": {
            1: made("goal", 1),
            2: made("goal", 2, reversed_signs),
            3: made("goal", 3, constraint_names=("heat", "noise")),
            4: made("goal", 4, horizon_steps=20),
            5: made("goal", 5, control_period_ms=40.0),
        },
        "sure": {5: made("sure", 5, lambda text: never_nan(reversed_signs(text)))},
        "bare": {1: made("bare", 1, calibration=None)},
        "sensed": {1: sensed},
    }


@pytest.fixture
def served(runtimes: dict[str, dict[int, PolicyRuntime]]) -> Served:
    return Served({name: dict(versions) for name, versions in runtimes.items()}, {"goal": 1})


@pytest.fixture
def seal() -> StateSeal:
    return StateSeal(KEY, lifetime_seconds=60.0)


def begin(served: Served, seal: StateSeal, opening: Opening = Opening(), state: bytes = b"") -> Session:  # noqa: B008
    """Open, or go on, through the messages that travel."""
    message = encode_opening(opening, state)
    decoded, digest = decode_opening(message, Limits()), opening_digest(message)
    if state:
        return resume_session(decoded, digest, state, served, seal)
    return open_session(decoded, digest, served, seal)


def take(session: Session, observation: tuple[float, ...] = CALM, cost_total: tuple[float, ...] = ()) -> StepResult:
    """The answer to the session's next step, through the messages that travel."""
    return decode_result(encode_result(session.step(as_sent(session.next_step, observation, cost_total))).result)


def as_sent(number: int, observation: tuple[float, ...], cost_total: tuple[float, ...] = ()) -> Step:
    """A step as it comes out of its message, the observation in float32."""
    return decode_step(encode_step(Step(number, observation, cost_total)))


def answers(session: Session, count: int) -> list[StepResult]:
    """To the same observation again and again."""
    return [take(session) for _ in range(count)]


def with_fallback(action: FallbackAction, **fields: Any) -> Opening:
    return Opening(cost_budget=FREE, fallback=Fallback(action, **fields))


# --- opening -------------------------------------------------------------------------------------------------------


def test_a_session_opens_with_the_policys_limits_for_its_horizon(served: Served, seal: StateSeal) -> None:
    opened = begin(served, seal, Opening(PolicySelector("goal"))).opened()
    assert (opened.cost_budget, opened.extent_steps, opened.next_step) == ((20.0, 8.0), 100, 0)
    assert opened.policy == served.versions["goal"][1].served
    assert opened.idle_timeout_seconds == 60.0
    assert decode_opened(encode_opened(opened).opened) == opened


def test_default_budgets_are_in_proportion_to_the_steps(served: Served, seal: StateSeal) -> None:
    assert begin(served, seal, Opening(extent=Horizon(25))).opened().cost_budget == (5.0, 2.0)
    assert begin(served, seal, Opening(extent=RollingWindow(50))).opened().cost_budget == (10.0, 4.0)


REFUSED = [
    ("open.cost_budget[0]", Opening(cost_budget=(-0.1, 1.0))),
    ("open.cost_budget[1]", Opening(cost_budget=(1.0, NAN))),
    ("open.cost_budget[1]", Opening(cost_budget=(1.0, -INF))),
    ("open.cost_budget", Opening(cost_budget=(1.0,))),
    ("open.cost_budget", Opening(cost_budget=(1.0, 1.0, 1.0))),
    ("open.horizon_steps", Opening(extent=Horizon(0))),
    ("open.horizon_steps", Opening(extent=Horizon(101))),
    ("open.rolling_window_steps", Opening(extent=RollingWindow(0))),
    ("open.rolling_window_steps", Opening(extent=RollingWindow(101))),
    ("open.shielded.candidates", Opening(mode=Shielded(1))),
    ("open.shielded.candidates", Opening(mode=Shielded(257))),
    ("open.fallback.least_unsafe.candidates", with_fallback(LeastUnsafeAction(1))),
    ("open.fallback.least_unsafe.candidates", with_fallback(LeastUnsafeAction(257))),
    ("open.fallback.constant.action", with_fallback(ConstantAction((0.5,)))),
    ("open.fallback.constant.action[1]", with_fallback(ConstantAction((0.5, 2.5)))),
    ("open.fallback.constant.action[0]", with_fallback(ConstantAction((NAN, 0.0)))),
]


@pytest.mark.parametrize(("where", "opening"), REFUSED)
def test_a_wrong_opening_is_refused_and_names_the_field(
    served: Served, seal: StateSeal, where: str, opening: Opening
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        begin(served, seal, opening)
    assert caught.value.field == where


@pytest.mark.parametrize("seconds", [0, -1])
def test_an_age_that_is_not_above_zero_is_refused(seconds: int) -> None:
    message = encode_opening(Opening())
    message.max_age.FromSeconds(seconds)  # which our clients do not send
    message.max_age.SetInParent()
    with pytest.raises(InvalidRequestError) as caught:
        decode_opening(message, Limits())
    assert caught.value.field == "open.max_age"


@pytest.mark.parametrize("number", [0, 5, 6, 99])
def test_a_reason_that_is_none_is_refused(number: int) -> None:
    message = pb.OpenSession(fallback=pb.Fallback(reasons=[pb.FALLBACK_REASON_FLAGGED]))
    message.fallback.reasons.append(number)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError) as caught:
        decode_opening(message, Limits())
    assert caught.value.field == "open.fallback.reasons[1]"


def test_more_reasons_than_there_are_are_refused_before_they_are_looked_at() -> None:
    message = pb.OpenSession(fallback=pb.Fallback(reasons=[pb.FALLBACK_REASON_FLAGGED] * 4))
    assert decode_opening(message, Limits()).fallback.reasons == {FallbackReason.FLAGGED}
    message.fallback.reasons.extend([99] * 1_000_000)  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="has 1000004 entries; there are 4") as caught:
        decode_opening(message, Limits())
    assert caught.value.field == "open.fallback.reasons"


def test_what_an_opening_leaves_out_has_the_defaults_of_the_contract() -> None:
    opening = decode_opening(pb.OpenSession(fallback=pb.Fallback(least_unsafe=pb.LeastUnsafeAction())), Limits())
    assert opening == Opening(fallback=Fallback(LeastUnsafeAction(16)))
    assert opening.fallback.recovery_steps == 10
    assert opening.fallback.reasons == {1, 2, 3, 4}
    assert decode_opening(pb.OpenSession(), Limits()) == Opening()


def test_without_a_fallback_it_may_have_no_reasons_and_no_steps_to_recover() -> None:
    nothing = Fallback(FlaggedAction(), frozenset(), recovery_steps=0)
    assert decode_opening(encode_opening(Opening(fallback=nothing)), Limits()) == Opening()


def test_an_opening_that_names_what_is_not_there_is_told_which_field_does(
    runtimes: dict[str, dict[int, PolicyRuntime]], seal: StateSeal
) -> None:
    policies = {name: follow(versions, ServingPlan(), None) for name, versions in runtimes.items()}
    repository = Repository(Snapshot(policies))

    def field_of(opening: Opening, state: bytes = b"") -> str:
        digest = opening_digest(encode_opening(opening))
        with pytest.raises(NotFoundError) as caught:
            _ = (
                resume_session(opening, digest, state, repository, seal)
                if state
                else open_session(opening, digest, repository, seal)
            )
        return caught.value.field

    goal = PolicySelector("goal", version=1)
    assert field_of(Opening(PolicySelector("nobody"))) == "open.policy.name"
    assert field_of(Opening(replace(goal, version=9))) == "open.policy.version"
    nobody, unknown = (BackupPolicy(selector) for selector in (PolicySelector("nobody"), replace(goal, version=9)))
    assert field_of(Opening(goal, fallback=Fallback(nobody))) == "open.fallback.backup.policy.name"
    assert field_of(Opening(goal, fallback=Fallback(unknown))) == "open.fallback.backup.policy.version"


def test_a_session_that_goes_on_where_its_policy_is_not_is_told_what_names_it(
    runtimes: dict[str, dict[int, PolicyRuntime]], seal: StateSeal
) -> None:
    def repository(here: dict[str, list[int]]) -> Repository:
        loaded = {name: {version: runtimes[name][version] for version in here[name]} for name in here}
        return Repository(Snapshot({name: follow(versions, ServingPlan(), None) for name, versions in loaded.items()}))

    def field_of(opening: Opening, here: dict[str, list[int]]) -> str:
        """Open where versions 1 of goal and 5 of sure are the only ones, and go on where others are."""
        digest = opening_digest(encode_opening(opening))
        one = {"goal": [1], "sure": [5]} if opening.policy.name else {"goal": [1]}
        session = open_session(opening, digest, repository(one), seal)
        take(session, CALM, (0.0, 0.0))
        with pytest.raises(NotFoundError) as caught:
            resume_session(opening, digest, session.state(), repository(here), seal)
        return caught.value.field

    # Version 3 of goal is for another robot, so that a session which names none asks for the one of its state.
    goal = PolicySelector("goal")
    assert field_of(Opening(replace(goal, version=1)), {"goal": [3]}) == "open.policy.version"
    assert field_of(Opening(goal), {"goal": [3]}) == "open.state"
    assert field_of(Opening(goal), {"sure": [5]}) == "open.policy.name"
    assert field_of(Opening(), {"sure": [5]}) == "open.state"
    backup = Opening(PolicySelector("sure"), fallback=Fallback(BackupPolicy(goal)))
    assert field_of(backup, {"goal": [3], "sure": [5]}) == "open.state"
    assert field_of(backup, {"sure": [5]}) == "open.fallback.backup.policy.name"


def test_a_backup_must_be_for_the_same_robot(served: Served, seal: StateSeal) -> None:
    for_another = BackupPolicy(PolicySelector("goal", version=3))
    with pytest.raises(FingerprintError):
        begin(served, seal, with_fallback(for_another))
    with pytest.raises(FingerprintError):
        begin(served, seal, with_fallback(BackupPolicy(PolicySelector("sure", fingerprint="0123456789abcdef"))))
    with pytest.raises(NotFoundError):
        begin(served, seal, with_fallback(BackupPolicy(PolicySelector("nobody"))))


def test_a_backup_must_speak_of_all_steps_of_the_session(served: Served, seal: StateSeal) -> None:
    of_20_steps, of_longer_steps = (with_fallback(BackupPolicy(PolicySelector("goal", n))) for n in (4, 5))
    for longer in (None, Horizon(21)):
        with pytest.raises(FingerprintError, match="version 4 has a horizon of 20 steps"):
            begin(served, seal, replace(of_20_steps, extent=longer))
    for extent in (Horizon(20), RollingWindow(100)):  # the latter's predictions speak of 10 steps
        taken = take(begin(served, seal, replace(of_20_steps, extent=extent)), OUTSIDE)
        assert taken.prediction is not None
        assert taken.prediction.steps_left.tolist() == [taken.account.steps_left]
    with pytest.raises(FingerprintError, match="control period"):
        begin(served, seal, replace(of_longer_steps, extent=Horizon(20)))


# --- steps ---------------------------------------------------------------------------------------------------------


def test_a_step_is_judged_over_the_steps_and_the_budget_that_are_left(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, Opening(cost_budget=(4.0, 2.0), extent=Horizon(8)))
    first = take(session, GREEDY, (0.0, 0.0))
    assert first.action.tolist() == [[0.25, -2.0]]
    assert first.prediction is not None
    assert first.prediction.steps_left.tolist() == [8]
    assert first.prediction.cost_allowed.tolist() == [[4.0, 2.0]]
    assert first.prediction.cost_to_go.tolist() == [[2.0, 8.0]]
    assert first.prediction.violation.tolist() == [[False, True]]  # 2 / (2 + 4), 8 / (8 + 2), over 0.6
    assert not first.feasible
    assert first.fallback is None
    second = take(session, CALM, (0.25, 1.0))
    assert second.account.spent == (0.25, 1.0)
    assert second.account.left == (3.75, 1.0)
    assert second.account.steps_left == 7
    assert second.prediction is not None
    assert second.prediction.steps_left.tolist() == [7]
    assert second.prediction.cost_allowed.tolist() == [[3.75, 1.0]]
    assert second.constraints == ("heat", "wear")


def test_a_rolling_session_is_judged_over_the_next_steps_of_the_window(served: Served, seal: StateSeal) -> None:
    # Windows of 16 steps; the policy's window of 10 is more than half of it, so 8 steps ahead and 8 back.
    session = begin(served, seal, Opening(cost_budget=(4.0, INF), extent=RollingWindow(16)))
    spent, left = [], []
    for step in range(40):
        result = take(session, CALM, (float(min(step, 10)), 0.0))  # each of the first ten steps costs 1
        assert result.account.steps_left == 8
        assert result.prediction is not None
        assert result.prediction.steps_left.tolist() == [8]
        assert result.prediction.cost_allowed[0, 0] == result.account.left[0]
        spent.append(result.account.spent[0])
        left.append(result.account.left[0])
    assert spent[:20] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    # From step 4 on the budget is used up; at step 22 the last 15 steps cost 3, for the first time less than it.
    assert left == [4, 3, 2, 1, *[0] * 18, *[4] * 18]


@pytest.mark.parametrize(
    ("max_message_bytes", "longest"),
    [
        (
            500,
            9,
        ),  # 36 are the opening's, 12 lengths, 248 the rest of the state; 204 hold 8 records: 8 steps and the next
        (700, 17),  # 16 records
    ],
)
def test_a_rolling_window_is_no_longer_than_a_state_that_can_be_sent_back(
    served: Served, seal: StateSeal, max_message_bytes: int, longest: int
) -> None:
    def opened(steps: int) -> Session:
        message = encode_opening(Opening(cost_budget=(INF, INF), extent=RollingWindow(steps)))
        room = state_room(message, Limits(max_message_bytes=max_message_bytes))
        decoded, digest = decode_opening(message, Limits()), opening_digest(message)
        return open_session(decoded, digest, served, seal, state_bytes=room)

    with pytest.raises(InvalidRequestError, match=rf"At most {longest} here.*--max-message-bytes") as caught:
        opened(longest + 1)
    assert caught.value.field == "open.rolling_window_steps"
    session = opened(longest)
    largest = 0
    for step in range(3 * longest):
        session.pass_over(as_sent(step, CALM, (step + 1.0, 0.0)))
        again = encode_opening(Opening(cost_budget=(INF, INF), extent=RollingWindow(longest)), session.state())
        largest = max(largest, pb.ControlRequest(open=again).ByteSize())
    assert max_message_bytes - 48 < largest <= max_message_bytes  # less than two records are left


def test_the_newest_of_steps_that_wait_is_one_that_can_be_answered_after_those_before_it(
    served: Served, seal: StateSeal
) -> None:
    session = begin(served, seal, Opening(PolicySelector("goal")))
    waiting = [as_sent(0, CALM, (1.0, 1.0)), as_sent(1, CALM, (5.0, 1.0))]
    assert session.newest(waiting) == 1
    assert session.newest([*waiting, as_sent(2, CALM, (5.0, 1.0))]) == 2
    assert session.newest([*waiting, as_sent(2, CALM, (4.0, 1.0))]) == 1  # its total fell
    assert session.newest([*waiting, as_sent(3, CALM, (5.0, 1.0))]) == 1  # one is left out
    assert session.next_step == 0  # nothing was counted


def test_a_step_that_is_far_too_long_is_refused_before_it_is_copied(served: Served, seal: StateSeal) -> None:
    """Copying the values of a message of 4 MB takes 50 ms, in which no other robot is answered."""
    session = begin(served, seal, Opening(PolicySelector("goal")))
    message = pb.ControlStep(observation=[0.0] * 1_000_000)
    refused = decode_step(message)
    assert refused.observation is message.observation
    with pytest.raises(InvalidRequestError, match="has 1000000 values"):
        session.step(refused)


def test_a_step_past_the_horizon_is_an_error(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, Opening(cost_budget=FREE, extent=Horizon(2)))
    assert [take(session).account.steps_left for _ in range(2)] == [2, 1]
    with pytest.raises(HorizonError):
        take(session)
    assert session.next_step == 2


WRONG_STEPS = [
    ("step.step", Step(4, CALM, (1.0, 1.0))),  # again
    ("step.step", Step(6, CALM, (1.0, 1.0))),  # one left out
    ("step.step", Step(0, CALM, (1.0, 1.0))),  # back
    ("step.step", Step(2**64 - 1, CALM, (1.0, 1.0))),
    ("step.observation", Step(5, (1.0, 2.0), (1.0, 1.0))),
    ("step.observation", Step(5, (), (1.0, 1.0))),
    ("step.observation[1]", Step(5, (1.0, NAN, 0.0), (1.0, 1.0))),
    ("step.observation[0]", Step(5, (-INF, 0.0, NAN), (1.0, 1.0))),
    ("step.cost_total", Step(5, CALM)),
    ("step.cost_total", Step(5, CALM, (1.0,))),
    ("step.cost_total[0]", Step(5, CALM, (0.4, 1.0))),  # fell
    ("step.cost_total[1]", Step(5, CALM, (1.0, NAN))),
    ("step.cost_total[1]", Step(5, CALM, (1.0, INF))),
    ("step.cost_total[0]", Step(5, CALM, (-1.0, 1.0))),
]


@pytest.mark.parametrize(("where", "step"), WRONG_STEPS)
@pytest.mark.parametrize("extent", [Horizon(50), RollingWindow(4)])
def test_a_wrong_step_names_the_field_and_leaves_the_session_as_it_was(
    served: Served, seal: StateSeal, where: str, step: Step, extent: Horizon | RollingWindow
) -> None:
    opening = Opening(
        mode=Sampled(seed=3),
        cost_budget=(1.0, 1.0),
        extent=extent,
        fallback=Fallback(HoldLastAction(), recovery_steps=2),
    )
    session, undisturbed = begin(served, seal, opening), begin(served, seal, opening)
    for one in (session, undisturbed):
        for number in range(5):
            take(one, GREEDY, (0.1 * (number + 1), 0.0))
    for method in (session.step, session.pass_over):
        with pytest.raises(InvalidRequestError) as caught:
            method(step)
        assert caught.value.field == where
    assert session.next_step == 5
    for number in range(4):
        assert comparable(take(session, CALM, (0.6 + number, 0.5))) == comparable(
            take(undisturbed, CALM, (0.6 + number, 0.5))
        )


def test_without_a_finite_budget_costs_may_be_left_out(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, Opening(cost_budget=FREE))
    take(session)
    assert take(session, CALM, (3.0, 0.0)).account.spent == (3.0, 0.0)
    assert take(session).account.spent == (3.0, 0.0)
    with pytest.raises(InvalidRequestError, match="cost_total"):
        take(session, CALM, (2.0, 0.0))


def test_a_late_step_is_not_computed_but_counts_with_its_cost(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, Opening(max_age_seconds=0.02, cost_budget=(4.0, 4.0)))
    assert session.step(Step(0, CALM, (0.0, 0.0)), queued_seconds=0.02).step == 0
    with pytest.raises(DeadlineExceededError, match=r"waited 21\.0 ms.*allows 20 ms"):
        session.step(Step(1, CALM, (1.0, 0.0)), queued_seconds=0.021)
    assert session.next_step == 2
    assert take(session, CALM, (1.5, 0.0)).account.left == (2.5, 4.0)
    with pytest.raises(InvalidRequestError):  # what is wrong is wrong, however late it comes
        session.step(Step(3, CALM, (0.5, 0.0)), queued_seconds=1.0)
    assert session.next_step == 3


def test_a_step_that_grows_too_old_once_it_is_begun_counts_as_one_that_came_late(
    served: Served, seal: StateSeal
) -> None:
    session = begin(served, seal, Opening(max_age_seconds=0.02, cost_budget=(4.0, 4.0)))
    before = time.perf_counter()
    begun = session.begin(Step(0, CALM, (1.0, 0.0)), queued_seconds=0.015)
    assert 0.0049 < begun.until - before < 0.0051 + time.perf_counter() - before
    with pytest.raises(DeadlineExceededError, match=r"^Step 0 waited \d+\.\d ms; the session allows 20 ms\.$"):
        session.finish(begun, DeadlineExceededError("after a wait for others"))
    assert session.next_step == 1
    assert take(session, CALM, (1.5, 0.0)).account.left == (2.5, 4.0)
    assert begin(served, seal).begin(Step(0, CALM, (0.0, 0.0))).until == math.inf


def test_what_a_begun_step_waits_for_others_is_no_time_of_computing(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal)
    begun = session.begin(Step(0, CALM, (0.0, 0.0)), queued_seconds=0.015)
    own = begun.asked.answer()
    time.sleep(0.05)
    timing = session.finish(begun, own).timing
    assert timing.queued_seconds >= 0.065
    assert own.compute_seconds <= timing.computed_seconds <= time.perf_counter() - begun.checked - 0.05


def test_steps_passed_over_count_with_their_cost_also_in_a_rolling_window(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, Opening(cost_budget=(4.0, 4.0), extent=RollingWindow(4)))  # two back, two ahead
    session.pass_over(Step(0, CALM, (0.0, 0.0)))
    session.pass_over(Step(1, CALM, (1.0, 0.0)))
    assert take(session, CALM, (1.0, 2.0)).account.spent == (1.0, 2.0)
    assert take(session, CALM, (1.0, 2.0)).account.spent == (0.0, 2.0)
    assert take(session, CALM, (1.0, 2.0)).account.spent == (0.0, 0.0)


def test_draws_follow_from_the_seed_and_the_step(served: Served, seal: StateSeal) -> None:
    def actions(seed: int | None) -> list[list[float]]:
        session = begin(served, seal, Opening(cost_budget=FREE, mode=Sampled(seed)))
        return [take(session).action[0].tolist() for _ in range(5)]

    assert actions(7) == actions(7)
    assert actions(7) != actions(8)
    assert actions(None) != actions(None)
    assert len({tuple(action) for action in actions(7)}) == 5


# --- fallbacks -----------------------------------------------------------------------------------------------------

BACKUP = BackupPolicy(PolicySelector("sure"))


def told(result: StepResult) -> tuple[FallbackReason, int] | None:
    return None if result.fallback is None else (result.fallback.reason, result.fallback.steps)


def test_a_constant_action_takes_control_and_gives_it_back(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, with_fallback(ConstantAction((0.5, -1.0)), recovery_steps=2))
    assert told(take(session)) is None
    taken = take(session, OUTSIDE)
    assert told(taken) == (FallbackReason.SHIFTED, 1)
    assert taken.action.tolist() == [[0.5, -1.0]]
    assert taken.prediction is not None
    assert taken.prediction.cost_value.tolist() == [[5.0, 5.0]]  # of this action: 10 |u|, u = (0.5, -0.5)
    assert taken.prediction.calibration_status.tolist() == [CalibrationStatus.SHIFTED]
    assert not taken.feasible
    clear = take(session)
    assert told(clear) == (FallbackReason.RECOVERING, 2)
    assert clear.prediction is not None
    assert clear.prediction.calibration_status.tolist() == [CalibrationStatus.EXTERNAL_ACTION]
    assert clear.feasible
    assert told(take(session)) == (FallbackReason.RECOVERING, 3)
    assert told(take(session)) is None


def test_a_constant_action_that_is_not_given_is_the_safe_one_of_the_manifest(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, with_fallback(ConstantAction()))
    assert take(session, OUTSIDE).action.tolist() == [[0.0, 0.0]]


def test_the_last_action_is_held_and_the_safe_one_where_there_is_none(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, with_fallback(HoldLastAction(), recovery_steps=1))
    assert take(session, OUTSIDE).action.tolist() == [[0.0, 0.0]]
    take(session)
    own = take(session, GREEDY)
    assert told(own) is None
    held = [take(session, OUTSIDE), take(session, CALM)]
    assert [told(result) for result in held] == [(FallbackReason.SHIFTED, 1), (FallbackReason.RECOVERING, 2)]
    for result in held:
        assert result.action.tolist() == own.action.tolist()
        assert result.prediction is not None
        assert result.prediction.cost_value.tolist() == [[2.5, 10.0]]  # 10 |u|, u = (0.25, -1)


def test_the_backup_policy_answers_for_itself(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, with_fallback(BACKUP))
    assert take(session, GREEDY).action.tolist() == [[0.25, -2.0]]
    taken = take(session, OUTSIDE)
    assert taken.action.tolist() == [[-1.0, 0.0]]  # its weights have the opposite sign
    assert taken.policy.name == "goal"
    assert taken.fallback is not None
    assert taken.fallback.backup == served.versions["sure"][5].served
    recovering = take(session, GREEDY)
    assert recovering.action.tolist() == [[-0.25, 2.0]]
    assert recovering.prediction is not None
    assert recovering.prediction.calibration_status.tolist() == [CalibrationStatus.CALIBRATED]


def test_the_least_unsafe_candidate_is_that_of_the_shielded_policy(served: Served, seal: StateSeal) -> None:
    opening = Opening(cost_budget=(4.0, 2.0), extent=Horizon(8), fallback=Fallback(LeastUnsafeAction(32)))
    taken = take(begin(served, seal, opening), GREEDY, (0.0, 0.0))
    assert told(taken) == (FallbackReason.FLAGGED, 1)
    assert taken.prediction is not None
    own = take(begin(served, seal, replace(opening, fallback=Fallback())), GREEDY, (0.0, 0.0))
    assert own.prediction is not None
    assert taken.prediction.violation_probability.max() < own.prediction.violation_probability.max()
    assert taken.chosen > 0
    assert taken.fallback is not None
    assert taken.fallback.backup is None


SENSED = Opening(PolicySelector("sensed"), cost_budget=FREE)  # x may repeat twice in a row, y always, z three times


def statuses(session: Session, observations: Sequence[tuple[float, ...]]) -> list[CalibrationStatus]:
    predictions = [take(session, observation).prediction for observation in observations]
    return [CalibrationStatus(p.calibration_status[0]) for p in predictions if p is not None]


def test_an_observation_that_repeats_for_longer_than_its_values_may_is_shifted(served: Served, seal: StateSeal) -> None:
    moving = [(0.1 * step, 0.2, 0.1 * step) for step in range(6)]
    stuck = [moving[-1]] * 4
    found = statuses(begin(served, seal, SENSED), [*moving, *stuck, CALM])
    assert found == [*[CALIBRATED] * 8, SHIFTED, SHIFTED, CALIBRATED]  # x has repeated three times, then x and z four
    unsaid = begin(served, seal, Opening(cost_budget=FREE))
    assert statuses(unsaid, [CALM] * 20) == [CALIBRATED] * 20  # a bundle that says nothing of repeats


def test_each_value_is_counted_by_itself(served: Served, seal: StateSeal) -> None:
    observations = [(0.1 * step, 0.2, 0.0) for step in range(6)]  # z has repeated `step` times
    assert statuses(begin(served, seal, SENSED), observations) == [*[CALIBRATED] * 4, SHIFTED, SHIFTED]


def test_what_is_frozen_is_flagged_and_hands_control_to_the_fallback(served: Served, seal: StateSeal) -> None:
    opening = replace(SENSED, fallback=Fallback(ConstantAction(), frozenset({FallbackReason.SHIFTED})))
    taken = [take(begin(served, seal, SENSED), CALM), *answers(begin(served, seal, opening), 4)]
    assert [result.fallback and result.fallback.reason for result in taken] == [None] * 4 + [FallbackReason.SHIFTED]
    assert taken[-1].action.tolist() == [[0.0, 0.0]]
    assert taken[-1].prediction is not None
    assert taken[-1].prediction.violation.all()


def test_steps_without_an_answer_count_and_those_that_are_refused_do_not(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, replace(SENSED, max_age_seconds=0.02))
    session.pass_over(as_sent(0, CALM))
    with pytest.raises(DeadlineExceededError):
        session.step(as_sent(1, CALM), queued_seconds=1.0)
    for _ in range(5):
        with pytest.raises(InternalError):
            take(session, NONSENSE)
    with pytest.raises(InvalidRequestError):
        session.step(Step(3, CALM))
    assert statuses(session, [CALM, CALM]) == [CALIBRATED, SHIFTED]


def test_what_is_frozen_stays_so_where_a_session_goes_on(served: Served, seal: StateSeal) -> None:
    opening = replace(SENSED, fallback=Fallback(ConstantAction(), frozenset({FallbackReason.SHIFTED}), 2))
    seen = [CALM, CALM, CALM, CALM, CALM, (0.3, 0.2, 0.0), *[(0.3, 0.1, 0.1)] * 3, *[CALM] * 3]
    undisturbed = begin(served, seal, opening)
    opened = undisturbed.opened().state
    taken = [take(undisturbed, observation) for observation in seen]
    reasons = [result.fallback and result.fallback.reason.name for result in taken]
    # x repeats three times and more, then z five times, then nothing for two steps, x three times, and again nothing.
    recovering = ["RECOVERING"] * 2
    assert reasons == [*[None] * 3, *["SHIFTED"] * 3, *recovering, "SHIFTED", *recovering, None]
    for cut, state in enumerate([opened, *(result.state for result in taken[:-1])]):
        session = begin(served, seal, opening, state)
        again = [take(session, observation) for observation in seen[cut:]]
        assert [comparable(result) for result in again] == [comparable(result) for result in taken[cut:]]


def test_a_value_that_rests_for_years_is_counted_no_further_than_its_state_holds() -> None:
    resting = Repeats((0.5, 0.5), [2**32 - 2, 2**32 - 1]).after((0.5, 0.5))
    assert resting.steps == [2**32 - 1, 2**32 - 1]


def test_a_flagged_action_is_the_policys_own_whatever_its_flags(served: Served, seal: StateSeal) -> None:
    session = begin(served, seal, Opening(cost_budget=(0.0, 0.0)))
    for observation in (GREEDY, OUTSIDE):
        result = take(session, observation, (1.0, 1.0))
        assert result.fallback is None
        assert not result.feasible
        assert result.account.exhausted == (True, True)
    with pytest.raises(InternalError):
        take(session, NONSENSE, (1.0, 1.0))
    assert session.next_step == 2
    take(session, CALM, (1.0, 1.0))


@pytest.mark.parametrize(
    ("action", "answered"),
    [(ConstantAction((0.5, 1.0)), [0.5, 1.0]), (HoldLastAction(), [0.25, -2.0]), (BACKUP, [-1.0, 0.0])],
)
def test_a_fallback_answers_where_the_policy_gives_nothing(
    served: Served, seal: StateSeal, action: FallbackAction, answered: list[float]
) -> None:
    session = begin(served, seal, with_fallback(action))
    take(session, GREEDY)
    result = take(session, NONSENSE)
    assert told(result) == (FallbackReason.NO_ANSWER, 1)
    assert result.action.tolist() == [answered]
    assert not result.feasible
    assert (result.prediction is None) == (action is not BACKUP)  # the critic gives nothing here, either
    assert told(take(session, CALM)) == (FallbackReason.RECOVERING, 2)


def test_where_the_backup_gives_nothing_the_safe_action_is_answered(served: Served, seal: StateSeal) -> None:
    served.versions["sure"] = {5: served.versions["goal"][2]}  # as sure, but it gives nothing for nonsense
    session = begin(served, seal, with_fallback(BACKUP, recovery_steps=1))
    for step in range(2):
        taken = take(session, NONSENSE)
        assert told(taken) == (FallbackReason.NO_ANSWER, step + 1)
        assert taken.action.tolist() == [[0.0, 0.0]]
        assert taken.fallback is not None
        assert taken.fallback.backup is None
        assert taken.prediction is None  # the critic gives nothing here, either
        assert not taken.feasible
        assert session.failure is not None
        assert session.backup_failure is not None
    recovering = take(session, CALM)
    assert recovering.fallback is not None
    assert recovering.fallback.backup is not None
    assert session.failure is None
    assert session.backup_failure is None


def test_a_backup_that_fails_while_the_policy_answers_leaves_the_safe_action_judged(
    served: Served, seal: StateSeal, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = served.versions["sure"][5]
    act = PolicyRuntime.act

    def fail(self: PolicyRuntime, situations: Situations, mode: Mode) -> ActLists:
        if self is backup:
            raise InternalError("of a kind that nobody thought of")
        return act(self, situations, mode)

    monkeypatch.setattr(PolicyRuntime, "act", fail)
    session = begin(served, seal, with_fallback(BACKUP))
    taken = take(session, OUTSIDE)
    assert told(taken) == (FallbackReason.SHIFTED, 1)
    assert taken.action.tolist() == [[0.0, 0.0]]
    assert taken.policy.name == "goal"
    assert taken.prediction is not None
    assert taken.prediction.cost_value.tolist() == [[0.0, 0.0]]  # of an action of zeros
    assert taken.prediction.calibration_status.tolist() == [SHIFTED]
    assert not taken.feasible
    assert session.failure is None
    assert "nobody thought of" in str(session.backup_failure)


def test_where_the_fallback_gives_nothing_either_the_step_is_an_error_and_can_be_sent_again(
    served: Served, seal: StateSeal
) -> None:
    session = begin(served, seal, with_fallback(LeastUnsafeAction()))
    with pytest.raises(InternalError):
        take(session, NONSENSE)
    assert session.next_step == 0
    assert told(take(session)) is None


def test_reasons_are_told_in_their_order_and_only_those_that_count(served: Served, seal: StateSeal) -> None:
    def reason(observation: tuple[float, ...], budget: float, *counted: FallbackReason) -> FallbackReason | None:
        reasons = frozenset(counted) or Fallback().reasons
        opening = Opening(cost_budget=(budget, INF), fallback=Fallback(ConstantAction(), reasons))
        result = take(begin(served, seal, opening), observation, (1.0, 0.0))
        return result.fallback.reason if result.fallback else None

    assert reason(NONSENSE, 1.0) is FallbackReason.NO_ANSWER
    assert reason(OUTSIDE, 1.0) is FallbackReason.BUDGET_EXHAUSTED
    assert reason(OUTSIDE, 2.0) is FallbackReason.SHIFTED
    assert reason(GREEDY, 2.0) is FallbackReason.FLAGGED  # 25 expected of 1 that is left
    assert reason(CALM, 1000.0) is None
    assert reason(GREEDY, 2.0, FallbackReason.SHIFTED, FallbackReason.BUDGET_EXHAUSTED) is None
    assert reason(OUTSIDE, 2.0, FallbackReason.FLAGGED) is FallbackReason.FLAGGED


def test_an_observation_outside_is_told_also_by_a_policy_without_calibration(served: Served, seal: StateSeal) -> None:
    opening = replace(
        with_fallback(ConstantAction(), reasons=frozenset({FallbackReason.SHIFTED})), policy=PolicySelector("bare")
    )
    session = begin(served, seal, opening)
    assert told(take(session, GREEDY)) is None
    assert told(take(session, OUTSIDE)) == (FallbackReason.SHIFTED, 1)


def test_what_needs_no_policy_to_be_told_is_shifted_where_the_policy_gives_nothing(
    served: Served, seal: StateSeal
) -> None:
    opening = with_fallback(ConstantAction(), reasons=frozenset({FallbackReason.SHIFTED}))
    session = begin(served, seal, opening)
    with pytest.raises(InternalError):  # far from what was seen in training, which only the policy knows
        take(session, NONSENSE)
    assert told(take(session, (1e20, 5.5, 0.0))) == (FallbackReason.SHIFTED, 1)  # y is -5 to 5
    frozen = begin(served, seal, replace(SENSED, fallback=opening.fallback))
    for step in range(3):
        frozen.pass_over(as_sent(step, NONSENSE))
    assert told(take(frozen, NONSENSE)) == (FallbackReason.SHIFTED, 1)


# --- versions ------------------------------------------------------------------------------------------------------


def test_a_session_without_a_version_moves_with_the_one_that_is_served_and_only_to_its_kind(
    served: Served, seal: StateSeal
) -> None:
    session = begin(served, seal, Opening(cost_budget=FREE))
    pinned = begin(served, seal, Opening(PolicySelector("goal", version=1), cost_budget=FREE))

    def step() -> tuple[int, int]:
        return take(session).policy.version, take(pinned).policy.version

    assert step() == (1, 1)
    served.serve["goal"] = 2
    assert step() == (2, 1)
    served.serve["goal"] = 3  # for another robot
    assert step() == (2, 1)
    del served.versions["goal"][2]  # no longer loaded: who holds it goes on with it
    assert step() == (2, 1)
    served.serve["goal"] = 1
    assert step() == (1, 1)


def test_a_session_stays_with_a_version_that_speaks_of_all_its_steps(served: Served, seal: StateSeal) -> None:
    opening = Opening(cost_budget=(10.0, INF), extent=Horizon(100), fallback=Fallback(ConstantAction()))
    session = begin(served, seal, opening)
    # u_0 is 0.25: 25 are expected of the 10 that are left; of the next 20 steps alone 5, which would raise no flag.
    for step, serve in enumerate([1, 4, 4, 5]):
        served.serve["goal"] = serve
        result = take(session, GREEDY, (0.0, 0.0))
        assert result.policy.version == 1
        assert result.fallback is not None
        assert result.fallback.reason is FallbackReason.FLAGGED
        assert result.prediction is not None
        assert result.prediction.steps_left.tolist() == [100 - step]
    served.serve["goal"] = 4
    resumed = begin(served, seal, opening, result.state)
    assert take(resumed, GREEDY, (0.0, 0.0)).policy.version == 1
    del served.versions["goal"][1]
    with pytest.raises(NotFoundError):
        begin(served, seal, opening, result.state)


@pytest.mark.parametrize("extent", [Horizon(20), RollingWindow(100)])  # the latter's predictions speak of 10 steps
def test_a_session_moves_to_a_shorter_horizon_that_speaks_of_all_its_steps_but_not_to_longer_steps(
    served: Served, seal: StateSeal, extent: Horizon | RollingWindow
) -> None:
    session = begin(served, seal, Opening(cost_budget=FREE, extent=extent))
    assert take(session).policy.version == 1
    served.serve["goal"] = 4
    moved = take(session)
    assert moved.policy.version == 4
    served.serve["goal"] = 5
    assert take(session).policy.version == 4
    assert take(begin(served, seal, Opening(cost_budget=FREE, extent=extent), moved.state)).policy.version == 4


def test_a_backup_without_a_version_moves_too(served: Served, seal: StateSeal) -> None:
    opening = replace(
        with_fallback(BackupPolicy(PolicySelector("goal"))), policy=PolicySelector("sure", 5), cost_budget=FREE
    )
    session = begin(served, seal, opening)
    assert take(session, OUTSIDE).action.tolist() == [[1.0, 0.0]]
    served.serve["goal"] = 2
    result = take(session, OUTSIDE)
    assert result.action.tolist() == [[-1.0, 0.0]]
    assert result.fallback is not None
    assert result.fallback.backup is not None
    assert result.fallback.backup.version == 2


# --- going on elsewhere --------------------------------------------------------------------------------------------


def comparable(result: StepResult) -> object:
    """All of an answer but the time it took and when its state was issued, every number by its bits."""

    def bits(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.shape, value.tobytes()
        if isinstance(value, StepResult | Prediction):
            return [bits(each) for each in vars(value).values()]
        return repr(value)

    return bits(replace(result, timing=StepTiming(0, 0, 0), state=b""))


@pytest.mark.parametrize("action", [LeastUnsafeAction(4), ConstantAction(), HoldLastAction(), BACKUP])
def test_a_session_goes_on_from_each_of_its_answers(served: Served, seal: StateSeal, action: FallbackAction) -> None:
    """Also in the middle of a fallback, of its recovery, and of a rolling window."""
    opening = Opening(
        PolicySelector("goal"),
        cost_budget=(40.0, 40.0),
        extent=RollingWindow(8),
        mode=Sampled(3),
        fallback=Fallback(action, recovery_steps=3),
    )
    observations = [CALM, OUTSIDE, CALM, GREEDY, GREEDY, CALM, GREEDY, OUTSIDE, OUTSIDE, CALM, CALM, CALM, GREEDY]
    totals = [(0.5 * step, 0.1 * (step // 3)) for step in range(len(observations))]

    def live(session: Session) -> list[StepResult]:
        return [take(session, observations[step], totals[step]) for step in range(session.next_step, len(totals))]

    undisturbed = live(begin(served, seal, opening))
    reasons = [result.fallback and result.fallback.reason.name for result in undisturbed]
    recovering = ["RECOVERING"] * 3
    assert reasons == [None, "SHIFTED", *recovering, None, None, "SHIFTED", "SHIFTED", *recovering, None]
    for cut, answer in enumerate(undisturbed[:-1], 1):
        rest = live(begin(served, seal, opening, answer.state))
        assert [comparable(result) for result in rest] == [comparable(result) for result in undisturbed[cut:]]


observations = st.sampled_from([CALM, CALM, GREEDY, OUTSIDE, NONSENSE, (0.3, -0.1, 0.2)])
openings = st.builds(
    Opening,
    policy=st.sampled_from([PolicySelector("goal"), PolicySelector("goal", version=1), PolicySelector("sensed")]),
    cost_budget=st.sampled_from([None, (1.0, 0.5), (30.0, INF), FREE]),
    extent=st.sampled_from([None, Horizon(40), RollingWindow(7), RollingWindow(30)]),
    mode=st.sampled_from([Deterministic(), Sampled(5), Sampled(), Shielded(4, 5), Shielded(4)]),
    max_age_seconds=st.sampled_from([None, 0.5]),
    fallback=st.builds(
        Fallback,
        st.sampled_from([FlaggedAction(), LeastUnsafeAction(4), ConstantAction(), HoldLastAction(), BACKUP]),
        recovery_steps=st.integers(1, 4),
    ),
)
steps = st.lists(
    st.tuples(
        observations, st.sampled_from([0.0, 0.0, 0.1, 0.7]), st.sampled_from(["answer", "answer", "late", "pass"])
    ),
    min_size=2,
    max_size=30,
)


@hypothesis_settings(max_examples=60)
@given(opening=openings, steps=steps, data=st.data())
def test_a_session_that_goes_on_elsewhere_answers_as_the_undisturbed_one(
    runtimes: dict[str, dict[int, PolicyRuntime]],
    opening: Opening,
    steps: list[tuple[tuple[float, ...], float, str]],
    data: st.DataObject,
) -> None:
    """Whatever the mode and the fallback, wherever it is cut, also while versions move."""
    cut = data.draw(st.integers(0, len(steps) - 1), label="cut")
    move = data.draw(st.integers(0, len(steps)), label="move")
    served = Served(runtimes, {"goal": 1})
    elsewhere = StateSeal(KEY, 60.0)
    undisturbed = begin(served, StateSeal(KEY, 60.0), opening)
    moved = begin(
        served, elsewhere, opening, undisturbed.opened().state
    )  # the same draws, where the server drew the seed
    state, answered = moved.opened().state, 0
    total = (0.0, 0.0)
    sent: dict[int, tuple[tuple[float, ...], tuple[float, float]]] = {}
    for index, (observation, cost, fate) in enumerate(steps):
        served.serve["goal"] = 1 if index < move else 2
        if index == cut:
            # Here the server dies: the robot goes on from its last answer, and sends what came after that again.
            moved = begin(served, elsewhere, opening, state)
            assert moved.session_id == undisturbed.session_id
            assert moved.next_step == answered
            for again in range(answered, undisturbed.next_step):
                moved.pass_over(as_sent(again, *sent[again]))
        total = (total[0] + cost, total[1] + cost / 3)
        number = undisturbed.next_step
        sent[number] = (observation, total)
        outcomes: list[object] = []
        for session in (undisturbed, moved):
            step = as_sent(number, observation, total)
            try:
                if fate == "pass":
                    session.pass_over(step)
                    outcomes.append(None)
                else:
                    result = session.step(step, queued_seconds=1.0 if fate == "late" else 0.0)
                    outcomes.append(comparable(decode_result(encode_result(result).result)))
                    if session is moved:
                        state, answered = result.state, session.next_step
            except PolicyServiceError as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]
        assert moved.next_step == undisturbed.next_step


def test_a_state_is_refused_that_is_forged_cut_of_another_key_or_of_another_opening(
    served: Served, seal: StateSeal
) -> None:
    session = begin(served, seal)
    state = session.step(Step(0, CALM, (0.0, 0.0))).state
    assert begin(served, seal, state=state).next_step == 1
    forged = [state[:index] + bytes([state[index] ^ 1]) + state[index + 1 :] for index in range(len(state))]
    cut = [state[:length] for length in range(1, len(state))]
    for bad in [*forged, *cut, state + b"\0", b"nonsense"]:
        with pytest.raises(SessionStateError):
            begin(served, seal, state=bad)
    with pytest.raises(SessionStateError, match="not one that this server"):
        begin(served, StateSeal(b"fedcba9876543210", 60.0), state=state)
    with pytest.raises(SessionStateError, match="another release"):
        begin(served, seal, state=b"\1" + state[1:])
    with pytest.raises(SessionStateError, match="opened otherwise"):
        begin(served, seal, Opening(cost_budget=(1e9, 1e9)), state)


def test_a_key_may_be_of_any_length_and_all_of_it_counts(served: Served) -> None:
    long = KEY * 100
    state = begin(served, StateSeal(long, 60.0)).opened().state
    assert begin(served, StateSeal(long, 60.0), state=state).next_step == 0
    with pytest.raises(SessionStateError, match="not one that this server"):
        begin(served, StateSeal(long + b"!", 60.0), state=state)


def test_a_state_grows_stale(served: Served) -> None:
    now = 1000.0
    seal = StateSeal(KEY, 60.0, clock=lambda: now)
    state = begin(served, seal).step(Step(0, CALM, (0.0, 0.0))).state
    now = 1060.0
    again = begin(served, seal, state=state)
    fresh = again.opened().state
    now = 1060.5
    with pytest.raises(SessionStateError, match="60 s"):
        begin(served, seal, state=state)
    assert begin(served, seal, state=fresh).next_step == 1


def test_a_state_from_the_future_is_refused_beyond_what_clocks_differ_by(served: Served) -> None:
    now = 1000.0
    seal = StateSeal(KEY, 60.0, clock=lambda: now)
    state = begin(served, seal).opened().state
    now = 995.0
    assert begin(served, seal, state=state).next_step == 0
    now = 994.5
    with pytest.raises(SessionStateError, match="the clocks of the servers differ"):
        begin(served, seal, state=state)


def test_a_session_whose_policy_is_not_here_is_refused(served: Served, seal: StateSeal) -> None:
    opening = Opening(PolicySelector("goal", version=1))
    state = begin(served, seal, opening).opened().state
    del served.versions["goal"][1]
    with pytest.raises(NotFoundError):
        begin(served, seal, opening, state)


def test_a_session_goes_on_with_its_version_where_another_kind_is_served(served: Served, seal: StateSeal) -> None:
    state = begin(served, seal).opened().state
    served.serve["goal"] = 3
    assert take(begin(served, seal, state=state), CALM, (0.0, 0.0)).policy.version == 1


def test_a_key_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match="guessed"):
        StateSeal(b"short", 60.0)


@given(openings)
def test_an_opening_survives_its_message(opening: Opening) -> None:
    assert decode_opening(encode_opening(opening, b"state"), Limits()) == opening
    assert opening_digest(encode_opening(opening, b"state")) == opening_digest(encode_opening(opening))


def test_a_strict_session_refuses_what_is_outside_the_observation_space(served: Served, seal: StateSeal) -> None:
    opening, outside = Opening(cost_budget=FREE), (0.0, 5.5, 0.0)  # y is -5 to 5
    strict = open_session(opening, b"", served, seal, strict_observations=True)
    with pytest.raises(InvalidRequestError) as caught:
        take(strict, outside)
    assert caught.value.field == "step.observation[1]"
    assert take(strict).step == 0
    answered = take(begin(served, seal, opening), outside)
    assert answered.prediction is not None
    assert answered.prediction.calibration_status.tolist() == [CalibrationStatus.SHIFTED]


# --- anything a robot may send -------------------------------------------------------------------------------------

doubles = st.floats(width=64) | st.sampled_from([0.0, 1.0, 1e308, 5e-324, -0.0])
singles = st.floats(width=32) | st.sampled_from([0.0, 0.5, 3.4e38, 1e-45])
uint32s = st.integers(0, 2**32 - 1) | st.integers(0, 120)
uint64s = st.integers(0, 2**64 - 1) | st.integers(0, 3)
selectors = st.builds(
    policy_pb2.PolicySelector,
    name=st.sampled_from(["goal", "goal", "sure", "bare", "", "\x00", "ü" * 9]),
    version=st.none() | uint64s,
)
any_openings = (
    st.builds(
        pb.OpenSession,
        policy=selectors,
        cost_budget=st.lists(doubles, max_size=3) | st.just([]),
        max_age=st.none()
        | st.builds(Duration, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)),
        fallback=st.one_of(
            st.none(),
            st.builds(pb.Fallback, flagged=st.just(pb.FlaggedAction()), recovery_steps=uint32s),
            st.builds(pb.Fallback, hold_last=st.just(pb.HoldLastAction()), recovery_steps=uint32s),
            st.builds(pb.Fallback, least_unsafe=st.builds(pb.LeastUnsafeAction, candidates=uint32s)),
            st.builds(pb.Fallback, constant=st.builds(pb.ConstantAction, action=st.lists(singles, max_size=3))),
            st.builds(pb.Fallback, backup=st.builds(pb.BackupPolicy, policy=selectors)),
        ),
    )
    | st.builds(
        pb.OpenSession,
        policy=st.just(policy_pb2.PolicySelector(name="goal")),
        rolling_window_steps=st.integers(0, 101),
        sampled=st.builds(policy_pb2.Sampled, seed=st.none() | uint64s),
    )
    | st.builds(
        pb.OpenSession,
        horizon_steps=uint32s,
        shielded=st.builds(policy_pb2.Shielded, candidates=st.integers(0, 20), seed=st.none() | uint64s),
    )
)
any_steps = st.lists(
    st.builds(
        pb.ControlStep,
        step=st.integers(0, 4) | uint64s,
        observation=st.lists(singles, min_size=3, max_size=3) | st.lists(singles, max_size=4),
        cost_total=st.lists(doubles, min_size=2, max_size=2) | st.lists(doubles, max_size=3),
    ),
    max_size=5,
)


@hypothesis_settings(max_examples=300)
@given(message=any_openings, messages=any_steps)
def test_whatever_a_robot_sends_is_answered_or_refused_with_its_reason(
    runtimes: dict[str, dict[int, PolicyRuntime]], message: pb.OpenSession, messages: list[pb.ControlStep]
) -> None:
    served, seal = Served(runtimes, {"goal": 1}), StateSeal(KEY, 60.0)
    try:
        session = open_session(decode_opening(message, Limits()), opening_digest(message), served, seal)
    except (InvalidRequestError, NotFoundError, FingerprintError):
        return
    for index, step in enumerate(messages):
        before = session.next_step
        if index % 2:
            step.step = before
        try:
            result = session.step(decode_step(step))
        except (InvalidRequestError, HorizonError, InternalError):
            assert session.next_step == before
            continue
        answer = encode_result(result).result
        assert all(low <= value <= high for low, value, high in zip((-1, -2), answer.action, (1, 2), strict=True))
        assert all(budget.left >= 0 and 0 <= budget.spent < INF for budget in answer.budgets)
        assert all(
            c.cost_allowed <= b.left for c, b in zip(answer.prediction.constraints, answer.budgets, strict=False)
        )
        resumed = resume_session(decode_opening(message, Limits()), opening_digest(message), result.state, served, seal)
        assert resumed.next_step == session.next_step == before + 1
