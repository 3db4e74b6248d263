"""What the client sends, and which answer it takes for which step, without a transport."""

import dataclasses
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from numpy.typing import ArrayLike

from serve.client.answer import ControlAnswer, Source
from serve.client.channel import Addresses
from serve.client.conversation import Conversation
from serve.client.events import Connected, Ended, Received
from serve.client.watchdog import Watchdog, WatchdogReason
from serve.control_values import Opening, PolicySelector
from serve.errors import (
    FingerprintError,
    InvalidRequestError,
    NotFoundError,
    PolicyServiceError,
    ResourceExhaustedError,
    UnavailableError,
)
from serve.gen.cvpo.v1 import control_pb2 as pb
from serve.gen.cvpo.v1 import policy_pb2
from serve.local import LocalPolicy
from serve.values import PolicyDescription, Space

OBSERVATION = [1, 2, -1]


@dataclass
class FakeStream:
    address: str
    sent: list[pb.ControlRequest]
    finished: bool = False
    cancelled: bool = False

    def send(self, message: pb.ControlRequest) -> None:
        self.sent.append(message)

    def finish(self) -> None:
        self.finished = True

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeLink:
    address: str
    streams: list[FakeStream] = field(default_factory=list)
    closed: bool = False

    def open(self, opening: pb.ControlRequest) -> FakeStream:
        self.streams.append(FakeStream(self.address, [opening]))
        return self.streams[-1]

    def close(self) -> None:
        self.closed = True


class Robot:
    """A conversation with one session on it, and the clock that it sees."""

    def __init__(
        self,
        description: PolicyDescription,
        opening: Opening = Opening(),  # noqa: B008  # frozen
        watchdog: Watchdog = Watchdog(),  # noqa: B008  # frozen
        idle_timeout_seconds: int = 0,
        cost_budget: tuple[float, float] = (9, 9),
    ) -> None:
        self.now = 0.0
        self.addresses = Addresses(["a", "b"])
        self.conversation = Conversation(opening, description, watchdog, self.addresses, 3.0, lambda: self.now)
        self.stream = self.connect("a")
        opened = pb.SessionOpened(session_id="s", cost_budget=cost_budget, state=b"opened")
        opened.idle_timeout.seconds = idle_timeout_seconds
        self.receive(self.stream, opened=opened)

    def connect(self, address: str) -> FakeStream:
        link = FakeLink(address)
        self.conversation.handle(Connected(link))
        (stream,) = link.streams
        return stream

    def receive(self, stream: FakeStream, **response: object) -> ControlAnswer | None:
        return self.conversation.handle(Received(stream, pb.ControlResponse(**response)))  # type: ignore[arg-type]

    def answer(self, stream: FakeStream, step: int, left: float) -> ControlAnswer | None:
        """Answer a step, told apart by its first action."""
        result = pb.ControlResult(
            step=step,
            action=[left, 0.0],
            budgets=[pb.Budget(name=name, left=1.0) for name in ("heat", "wear")],
            policy=policy_pb2.ServedPolicy(name="goal", version=1),
            state=f"after {step}".encode(),
        )
        return self.receive(stream, result=result)

    def begin(self) -> object:
        return self.conversation.begin(OBSERVATION, [0, 0], None)


@pytest.fixture(scope="module")
def description(repository: Path) -> PolicyDescription:
    return LocalPolicy.load(repository, "goal", version=1).get_policy()


def test_the_opening_has_the_fingerprint_and_the_age_at_which_the_watchdog_gives_up(
    description: PolicyDescription,
) -> None:
    opening = Robot(description, Opening(PolicySelector("goal"))).stream.sent[0].open
    assert opening.policy.fingerprint == description.policy.fingerprint
    assert opening.max_age.ToTimedelta().total_seconds() == 0.01  # half the control period of 20 ms
    opening = Robot(description, watchdog=Watchdog(timeout_seconds=0.25)).stream.sent[0].open
    assert opening.max_age.ToTimedelta().total_seconds() == 0.25
    opening = Robot(description, Opening(max_age_seconds=7.0)).stream.sent[0].open
    assert opening.max_age.ToTimedelta().total_seconds() == 7.0
    unknown = dataclasses.replace(description, control_period_seconds=None)
    assert Robot(unknown).conversation.timeout_seconds == 3.0  # as long as a call


def test_a_safe_action_may_be_on_a_bound_that_float32_does_not_hold(description: PolicyDescription) -> None:
    low, high = (float(np.float32(bound)) for bound in (-0.7, 0.7))  # as descriptions come; both are inside of 0.7
    narrow = dataclasses.replace(description, action=Space(description.action.names, (low, low), (high, high)))
    robot = Robot(narrow, watchdog=Watchdog(safe_action=(-0.7, 0.7)))
    robot.begin()
    assert robot.conversation.overdue().action.tolist() == [low, high]
    with pytest.raises(InvalidRequestError, match=r"^watchdog\.safe_action\[1\]: is 0\.71; the action space is -0\.7"):
        Robot(narrow, watchdog=Watchdog(safe_action=(-0.7, 0.71)))


def test_an_answer_from_a_stream_that_was_left_is_not_taken_for_that_of_the_step_in_flight(
    description: PolicyDescription,
) -> None:
    robot = Robot(description)
    robot.begin()
    assert robot.answer(robot.stream, 0, 0.1) is not None
    robot.begin()
    assert robot.conversation.overdue().watchdog is not None  # step 1 of the first stream
    robot.receive(robot.stream, notice=pb.Notice(kind=pb.NOTICE_KIND_DRAINING))
    link = FakeLink("b")
    robot.conversation.handle(Connected(link))
    robot.begin()
    (second,) = link.streams
    assert second.sent[0].open.state == b"after 0"
    assert second.sent[1].step.step == 1  # again: the state knows nothing of the first stream's
    assert robot.answer(robot.stream, 1, 0.2) is None
    robot.receive(second, opened=pb.SessionOpened(next_step=1, state=b"after 0"))
    answer = robot.answer(second, 1, 0.3)
    assert answer is not None
    assert answer.action[0] == pytest.approx(0.3)
    assert robot.stream.finished


def test_a_late_answer_brings_the_state_to_go_on_from(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.begin()
    late = robot.conversation.overdue()
    assert late.watchdog is not None
    assert (late.source, late.watchdog.reason, late.step) == (Source.WATCHDOG, WatchdogReason.LATE, None)
    assert robot.answer(robot.stream, 0, 0.1) is None
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    second = robot.connect("b")
    assert second.sent[0].open.state == b"after 0"
    assert second.sent[0].open.policy == robot.stream.sent[0].open.policy
    robot.begin()
    assert second.sent[1].step.step == 1


def test_an_error_brings_the_state_to_go_on_from(description: PolicyDescription) -> None:
    robot = Robot(description, idle_timeout_seconds=60)
    robot.begin()
    robot.now = 59.0
    error = pb.StepError(status=Status(code=code_pb2.ABORTED), next_step=1, state=b"after the error")
    refused = robot.receive(robot.stream, error=error)
    assert refused is not None
    assert refused.watchdog is not None
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    robot.begin()
    robot.now = 118.0  # as old as the first state may not be
    second = robot.connect("b")
    assert second.sent[0].open.state == b"after the error"
    assert second.sent[1].step.step == 1
    robot.conversation.handle(Ended(second, NotFoundError("b: not here")))
    assert robot.conversation.lost is None


def test_an_error_of_a_server_of_before_leaves_the_state_as_it_was(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.begin()
    robot.receive(robot.stream, error=pb.StepError(status=Status(code=code_pb2.INTERNAL)))
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    assert robot.connect("b").sent[0].open.state == b"opened"


def test_a_server_that_is_found_when_there_is_one_already_is_not_needed(description: PolicyDescription) -> None:
    robot = Robot(description)
    link = FakeLink("b")
    robot.conversation.handle(Connected(link))
    assert link.closed
    assert link.streams == []


def test_the_server_that_went_on_with_the_session_is_asked_first(description: PolicyDescription) -> None:
    robot = Robot(description)
    assert robot.addresses.in_order() == ["a", "b"]
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    second = robot.connect("b")
    robot.receive(second, opened=pb.SessionOpened(next_step=0))
    assert robot.addresses.in_order() == ["b", "a"]


def test_a_stream_on_which_nothing_comes_for_a_second_is_given_up(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.now = 100.0  # a pause between two steps is no silence
    for now in (100.0, 100.5, 100.9):
        robot.now = now
        robot.begin()
        robot.conversation.overdue()
        assert not robot.stream.cancelled
    robot.now = 101.1
    robot.begin()
    robot.conversation.overdue()
    assert robot.stream.cancelled


def test_a_refusal_counts_until_a_server_goes_on_with_the_session(description: PolicyDescription) -> None:
    robot = Robot(description)
    gone, refused = UnavailableError("gone"), FingerprintError("another key")
    robot.conversation.handle(Ended(robot.stream, gone))
    robot.conversation.handle(Ended(robot.connect("a"), refused))
    second = robot.connect("b")
    robot.receive(second, opened=pb.SessionOpened(next_step=0))
    robot.conversation.handle(Ended(second, gone))
    robot.conversation.handle(Ended(robot.connect("b"), refused))
    assert robot.conversation.lost is None
    robot.now = 3.0
    robot.conversation.handle(Ended(robot.connect("a"), refused))
    assert robot.conversation.lost is refused


def test_a_server_that_lags_behind_its_repository_does_not_lose_a_session(description: PolicyDescription) -> None:
    robot, refused = Robot(description, idle_timeout_seconds=60), NotFoundError("no version 2 yet")
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    for robot.now, address in ((0.0, "a"), (0.1, "b"), (1.9, "a")):
        robot.conversation.handle(Ended(robot.connect(address), refused))
        assert robot.conversation.lost is None
    robot.now = 2.1
    robot.conversation.handle(Ended(robot.connect("b"), refused))
    assert robot.conversation.lost is refused


def test_one_refusal_is_enough_where_the_state_is_older_than_servers_go_on_from(description: PolicyDescription) -> None:
    robot = Robot(description, idle_timeout_seconds=60)
    robot.now = 100.0
    robot.begin()
    assert robot.answer(robot.stream, 0, 0.1) is not None  # its state is 60 s old at 160
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    refused = FingerprintError("another key")
    for robot.now in (100.1, 130.0, 160.0):
        robot.conversation.handle(Ended(robot.connect("a"), refused))
        assert robot.conversation.lost is None  # b, which cannot be reached, may yet go on with it
    robot.now = 160.1
    robot.conversation.handle(Ended(robot.connect("a"), refused))
    assert robot.conversation.lost is refused


@pytest.mark.parametrize(
    "wrong",
    [
        pb.ControlResult(action=[0.1]),
        pb.ControlResult(action=[0.1, float("nan")]),
        pb.ControlResult(action=[0.1, 0.0], fallback=pb.FallbackTaken(reason=99)),  # type: ignore[arg-type]
        pb.ControlResult(action=[0.1, 0.0], prediction=policy_pb2.Prediction()),
        pb.ControlResult(),
    ],
)
def test_an_answer_that_cannot_be_used_is_never_handed_to_the_robot(
    description: PolicyDescription, wrong: pb.ControlResult
) -> None:
    robot = Robot(description)
    robot.begin()
    answer = robot.receive(robot.stream, result=wrong)
    assert answer is not None
    assert answer.watchdog is not None
    assert answer.watchdog.reason is WatchdogReason.REFUSED
    assert "another release" in answer.watchdog.message
    assert answer.action.tolist() == [0.0, 0.0]
    robot.begin()
    assert robot.stream.sent[-1].step.step == 1
    assert robot.receive(robot.stream, result=wrong) is None  # of step 0 again: of no step in flight
    assert robot.answer(robot.stream, 1, 0.5) is not None


def test_messages_that_answer_nothing_are_passed_over(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.begin()
    assert robot.receive(robot.stream) is None
    assert robot.receive(robot.stream, notice=pb.Notice(kind=pb.NOTICE_KIND_VERSION_CHANGED)) is None
    assert robot.receive(robot.stream, error=pb.StepError(step=7)) is None
    assert robot.answer(robot.stream, 0, 0.5) is not None


def test_what_the_robot_does_to_an_action_is_not_held(description: PolicyDescription) -> None:
    robot = Robot(description, watchdog=Watchdog(hold_steps=1))
    robot.begin()
    answer = robot.answer(robot.stream, 0, 0.5)
    assert answer is not None
    answer.action[:] = 99
    robot.begin()
    assert robot.conversation.overdue().action.tolist() == [0.5, 0.0]


def test_steps_that_raise_or_are_left_are_steps_without_an_answer(description: PolicyDescription) -> None:
    robot = Robot(description, watchdog=Watchdog(hold_steps=5))
    robot.begin()
    assert robot.answer(robot.stream, 0, 0.5) is not None
    with pytest.raises(InvalidRequestError):
        robot.conversation.begin([0], [0, 0], None)
    with pytest.raises(InvalidRequestError):
        robot.conversation.begin(OBSERVATION, [-1, 0], None)
    robot.begin()
    with pytest.raises(InvalidRequestError):
        robot.receive(robot.stream, error=pb.StepError(step=1, next_step=1, status=Status(code=3)))
    robot.conversation.end_step(robot.begin())  # its caller has left
    for steps, held in ((5, True), (6, False)):
        robot.begin()
        taken = robot.conversation.overdue().watchdog
        assert taken is not None
        assert (taken.steps, taken.held) == (steps, held)


@pytest.mark.parametrize("answered", [False, True])
def test_what_the_robot_does_to_budgets_is_not_in_later_answers(description: PolicyDescription, answered: bool) -> None:
    robot = Robot(description)
    robot.begin()
    answer = robot.answer(robot.stream, 0, 0.5) if answered else robot.conversation.overdue()
    left = 1.0 if answered else 9.0
    for _ in range(3):
        assert answer is not None
        assert answer.cost_left.tolist() == [left, left]
        assert answer.cost_spent.tolist() == [0.0, 0.0]
        assert answer.budget_exhausted.tolist() == [False, False]
        answer.cost_left[:] = answer.cost_spent[:] = 99
        answer.budget_exhausted[:] = True
        robot.begin()
        answer = robot.conversation.overdue()


@pytest.mark.parametrize("total", [[math.nan, 0], [math.inf, 0], [0.5, 0]])
def test_a_total_that_is_refused_does_not_become_the_one_that_costs_are_added_to(
    description: PolicyDescription, total: list[float]
) -> None:
    robot = Robot(description)
    robot.conversation.begin(OBSERVATION, None, [1, 0])
    robot.answer(robot.stream, 0, 0.5)
    with pytest.raises(InvalidRequestError) as caught:
        robot.conversation.begin(OBSERVATION, None, total)
    assert caught.value.field == "cost_total[0]"
    robot.conversation.begin(OBSERVATION, [1, 1], None)
    assert robot.stream.sent[-1].step.cost_total == [2, 1]


def test_a_step_without_a_cost_leaves_the_total_as_it_was(description: PolicyDescription) -> None:
    robot = Robot(description, cost_budget=(math.inf, math.inf))  # where none need be told
    for number, cost in enumerate(([1, 0], None, [1, 1])):
        robot.conversation.begin(OBSERVATION, cost, None)
        robot.answer(robot.stream, number, 0.5)
    assert [list(message.step.cost_total) for message in robot.stream.sent[1:]] == [[1, 0], [], [2, 1]]


def test_a_cost_that_a_total_cannot_hold_is_refused_and_not_added(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.conversation.begin(OBSERVATION, [1e308, 0], None)
    robot.answer(robot.stream, 0, 0.5)
    with pytest.raises(InvalidRequestError, match="more than a total can hold") as caught:
        robot.conversation.begin(OBSERVATION, [1e308, 1], None)
    assert caught.value.field == "cost[0]"
    robot.conversation.begin(OBSERVATION, [0, 1], None)
    assert robot.stream.sent[-1].step.cost_total == [1e308, 1]


@pytest.mark.parametrize("observation", ["north", [[1, 2, -1]], 3.0])
def test_a_cost_counts_whose_observation_is_no_vector(description: PolicyDescription, observation: ArrayLike) -> None:
    robot = Robot(description)
    for number in range(2):
        with pytest.raises(InvalidRequestError, match="observation"):
            robot.conversation.begin(observation, [1, 0.5], None)
        robot.begin()
        assert robot.stream.sent[-1].step.cost_total == [number + 1, 0.5 * (number + 1)]
        robot.answer(robot.stream, number, 0.1)


@pytest.mark.parametrize("size", [2, 4, 2**20])
def test_an_observation_of_another_length_is_refused_before_it_is_sent(
    description: PolicyDescription, size: int
) -> None:
    robot = Robot(description)
    with pytest.raises(InvalidRequestError, match=f"has {size} values; the policy's observation has 3") as caught:
        robot.conversation.begin([0.0] * size, [1, 0], None)
    assert caught.value.field == "step.observation"
    robot.begin()
    (_, step) = robot.stream.sent
    assert list(step.step.observation) == OBSERVATION
    assert list(step.step.cost_total) == [1, 0]  # the cost of what is refused counts


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_observation_that_is_not_finite_is_refused_also_while_no_server_is_there(
    description: PolicyDescription, value: float
) -> None:
    robot = Robot(description)
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    with pytest.raises(InvalidRequestError, match="must be finite") as caught:
        robot.conversation.begin([1, value, -1], [1, 0], None)
    assert caught.value.field == "step.observation[1]"
    robot.begin()
    assert robot.connect("b").sent[1].step.cost_total == [1, 0]


def test_values_whose_sum_no_float_holds_are_finite(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.conversation.begin([1e308, 1e308, 0], [0, 0], None)
    assert len(robot.stream.sent) == 2


def test_a_cost_that_is_missing_is_refused_also_while_no_server_is_there(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    with pytest.raises(InvalidRequestError, match="missing; this session has a budget") as caught:
        robot.conversation.begin(OBSERVATION, None, None)
    assert caught.value.field == "step.cost_total"


def test_what_comes_for_a_step_that_its_caller_has_left_is_for_no_other(description: PolicyDescription) -> None:
    robot = Robot(description, watchdog=Watchdog(hold_steps=1))
    robot.conversation.end_step(robot.begin())
    refused = Status(code=code_pb2.INVALID_ARGUMENT)
    assert robot.receive(robot.stream, error=pb.StepError(step=0, status=refused, next_step=0)) is None
    robot.conversation.end_step(robot.begin())
    assert robot.answer(robot.stream, 0, 0.5) is None
    robot.begin()
    assert robot.conversation.overdue().action.tolist() == [0.0, 0.0]  # nothing was answered that could be held


def test_a_server_that_is_found_for_a_lost_session_is_let_go(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.conversation.handle(Ended(robot.stream, UnavailableError("gone")))
    robot.conversation.handle(Ended(robot.connect("a"), FingerprintError("another key")))
    robot.now = 3.0
    robot.conversation.handle(Ended(robot.connect("b"), FingerprintError("another key")))
    assert robot.conversation.lost is not None
    link = FakeLink("a")
    robot.conversation.handle(Connected(link))
    assert link.streams == []
    assert link.closed


def test_a_session_that_is_closed_takes_no_step(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.conversation.finish()
    assert robot.stream.finished
    with pytest.raises(PolicyServiceError, match="closed"):
        robot.begin()


def test_when_the_next_server_refuses_the_one_that_is_stopping_answers_the_step_in_flight(
    description: PolicyDescription,
) -> None:
    robot = Robot(description)
    robot.receive(robot.stream, notice=pb.Notice(kind=pb.NOTICE_KIND_DRAINING))
    link = FakeLink("b")
    robot.conversation.handle(Connected(link))
    robot.begin()
    assert len(robot.stream.sent) == 1  # its opening: the step went to the next server
    robot.conversation.handle(Ended(link.streams[0], ResourceExhaustedError("full")))
    assert robot.stream.sent[1].step.step == 0
    answer = robot.answer(robot.stream, 0, 0.1)
    assert answer is not None
    assert answer.source is Source.POLICY


def test_a_step_is_refused_while_another_one_is_out_and_its_cost_counts(description: PolicyDescription) -> None:
    robot = Robot(description)
    robot.begin()
    result = pb.ControlResult(action=[0.5, 0.0], policy=policy_pb2.ServedPolicy(name="goal"))
    its_answer = Received(robot.stream, pb.ControlResponse(result=result))
    waiting = iter([its_answer])
    with pytest.raises(PolicyServiceError, match="one at a time"):
        robot.conversation.begin([0, 0, 0], [1, 0], None, waiting)
    assert len(robot.stream.sent) == 2  # the opening and the first step
    answer = robot.conversation.handle(next(waiting))
    assert answer is not None
    assert answer.source is Source.POLICY
    robot.begin()
    assert robot.stream.sent[-1].step.cost_total == [1, 0]


def test_a_caller_that_leaves_late_does_not_end_the_step_of_another(description: PolicyDescription) -> None:
    robot = Robot(description)
    first = robot.begin()
    assert robot.answer(robot.stream, 0, 0.5) is not None
    robot.begin()  # by another thread, before the first caller has left
    robot.conversation.end_step(first)
    with pytest.raises(PolicyServiceError, match="Another step"):
        robot.begin()
    assert robot.answer(robot.stream, 1, 0.25) is not None


def test_every_cost_counts_from_whatever_thread(description: PolicyDescription) -> None:
    robot, each, threads = Robot(description), 2_000, 4

    def count() -> None:
        for _ in range(each):
            robot.conversation.count([1, 0])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(count) for _ in range(threads)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    with pytest.raises(InvalidRequestError, match=f"it was {each * threads} before"):
        robot.conversation.begin(OBSERVATION, None, [0, 0])
