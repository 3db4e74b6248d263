"""The schedule of questions: when they are due, and from when a wait counts."""

import gc
import itertools
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from cvpo.commands.load import (
    NOT_SENT,
    StreamAsker,
    control_messages,
    due_times,
    follow,
    hurry,
    on_schedule,
    one_after_the_other,
)
from serve.gen.cvpo.v1 import control_pb2


class Clock:
    """Time that passes only where somebody sleeps or works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.work)

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_clients_take_turns_within_a_period() -> None:
    assert due_times(0, 2, rate_hz=10, seconds=0.3).tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert due_times(1, 2, rate_hz=10, seconds=0.3).tolist() == pytest.approx([0.05, 0.15, 0.25])


def test_a_stall_is_counted_for_every_question_that_it_delays(clock: Clock) -> None:
    # Due at 0, 1, 2, 3 and 10. The first answer takes 2.5, the others 0.25: the second is asked at 2.5 and answered at
    # 2.75, 1.75 after it was due; the third at 3.0, 1.0 after; the fourth is asked at 3.0, when it is due.
    times = iter([2.5, 0.25, 0.25, 0.25, 0.25])

    def ask() -> str:
        clock.work(next(times))
        return "OK"

    trace = follow(ask, np.array([0.0, 1.0, 2.0, 3.0, 10.0]), start=0.0, end=100.0)
    assert trace.waits == [2.5, 1.75, 1.0, 0.25, 0.25]


def test_a_client_that_wakes_up_late_does_not_blame_the_server(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.work(seconds + 0.5))

    def ask() -> str:
        clock.work(0.25)
        return "OK"

    trace = follow(ask, np.array([1.0]), start=0.0, end=100.0)
    assert trace.waits == [0.25]
    assert trace.overslept == [0.5]


def test_what_could_not_be_asked_in_time_counts_as_not_sent(clock: Clock) -> None:
    def ask() -> str:
        clock.work(4.0)
        return "OK"

    trace = follow(ask, np.arange(10, dtype=np.float64), start=0.0, end=10.0)
    assert trace.waits == [4.0, 7.0, 10.0]  # answered at 4, 8 and 12, due at 0, 1 and 2
    assert trace.errors == Counter({NOT_SENT: 7})


def test_errors_are_counted_by_code_and_are_no_waits(clock: Clock) -> None:
    codes = iter(["OK", "UNAVAILABLE", "OK", "UNAVAILABLE"])

    def ask() -> str:
        clock.work(1.0)
        return next(codes)

    trace = hurry(ask, 4.0)
    assert trace.waits == [1.0, 1.0]
    assert trace.errors == Counter({"UNAVAILABLE": 2})


def test_no_value_of_two_steps_in_a_row_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[control_pb2.ControlStep] = []

    def answer(requests: Iterator[bytes]) -> Iterator[bytes]:
        for request in requests:
            asked = control_pb2.ControlRequest.FromString(request)
            if asked.HasField("open"):
                yield control_pb2.ControlResponse(opened=control_pb2.SessionOpened(next_step=7)).SerializeToString()
            else:
                sent.append(asked.step)
                yield control_pb2.ControlResponse(result=control_pb2.ControlResult()).SerializeToString()

    class Channel:
        def stream_stream(self, method: str) -> object:
            return answer

        def close(self) -> None: ...

    monkeypatch.setattr("cvpo.commands.load.connect", lambda *_: Channel())
    asker = StreamAsker("", *control_messages("goal", [0.0, 1.0, -2.0], 5, 1), timeout_seconds=1)
    assert [asker.ask() for _ in range(4)] == ["OK"] * 4
    assert [step.step for step in sent] == [7, 8, 9, 10]
    for step, after in itertools.pairwise(sent):
        assert all(now != then for now, then in zip(step.observation, after.observation, strict=True))
        assert after.observation == pytest.approx(step.observation, abs=1e-6)
        assert all(abs(value) <= most for value, most in zip(step.observation, [1e-44, 1, 2], strict=True))


class Sleeper:
    def ask(self) -> str:
        time.sleep(0.001)
        return "OK"

    def close(self) -> None: ...


def test_all_clients_ask_all_that_is_due() -> None:
    done = on_schedule([Sleeper() for _ in range(5)], rate_hz=50, seconds=0.2, patience_seconds=60)
    assert len(done.waits) == 5 * 10
    assert done.latency.unanswered == 0


def test_clients_in_a_hurry_ask_at_the_same_time() -> None:
    done = one_after_the_other([Sleeper(), Sleeper()], seconds=0.2)
    assert len(done.waits) > 2
    assert min(done.waits) >= 0.001


def test_what_was_there_before_is_not_looked_through_for_garbage_while_clients_wait() -> None:
    class Witness(Sleeper):
        def ask(self) -> str:
            known.append(len(gc.get_objects()))
            return super().ask()

    before, known = len(gc.get_objects()), list[int]()
    one_after_the_other([Witness()], seconds=0.01)
    assert max(known) < before / 10
    assert gc.get_freeze_count() == 0
