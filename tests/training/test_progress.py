"""What a run tells of itself: rows that sum up the time since the row before, whether it was interrupted or not."""

import dataclasses
import math

import numpy as np
import pytest

from cvpo.bundle import Constraint
from cvpo.learning.learner import LearnerState, UpdateMetrics, create
from cvpo.training.progress import Progress, Rows, Waits
from tests.budget import small_config

CONSTRAINT = Constraint(name="cost", cost_limit=25.0, discount=0.99, horizon_steps=100, window_steps=100)
PROGRESS = Progress(
    steps=1000,
    total_steps=9000,
    steps_per_second=50.0,
    train_return=None,
    train_cost=np.array([3.0]),
    cost_limit=np.array([25.0]),
    unmet_steps=np.array([4000.0]),
    temperature=None,
    cost_multiplier=None,
    infeasible_share=0.0,
    updates_due=0,
    waits=Waits(20.0, 5.0, 8.0),
)


@pytest.fixture(scope="module")
def state() -> LearnerState:
    return create(small_config(), 1, 1, [CONSTRAINT])


def update(loss: float, kl_mean: float | None = None) -> UpdateMetrics:
    one = np.ones(1)
    kl = None if kl_mean is None else 0.5
    gap = None if kl_mean is None else one * kl_mean
    residuals = (-1e-9, -math.inf * one, one * loss, loss < 3)
    return UpdateMetrics(loss, 0.1, one * loss, *residuals, one, one, 0.7, kl_mean, kl, kl, gap)


def test_a_row_sums_up_the_updates_since_the_row_before(state: LearnerState) -> None:
    rows = Rows(("cost",))
    rows.updates += [update(1.0), update(3.0, 0.03)]  # a KL of 0.03 of its bound
    row = rows.take(PROGRESS, state)
    assert row["limit/unmet_steps/cost"] == 4000.0
    assert row["critic/loss"] == 2.0
    assert row["estep/cost_multiplier/cost"] == 2.0
    assert row["estep/infeasible_share"] == 0.5
    assert row["estep/infeasibility/cost"] == 2.0
    assert row["mstep/gap/cost"] == 0.03
    assert row["mstep/kl_mean"] == pytest.approx(0.03)
    assert "estep/cost_residual_max/cost" not in row  # -inf: not constrained
    rows.updates.append(update(7.0))
    assert rows.take(PROGRESS, state)["critic/loss"] == 7.0
    assert "critic/loss" not in rows.take(PROGRESS, state)


def test_a_row_has_the_limit_of_the_moment_where_there_is_one(state: LearnerState) -> None:
    rows = Rows(("cost",))
    assert rows.take(PROGRESS, state)["train/cost_limit/cost"] == 25.0
    assert "train/cost_limit/cost" not in rows.take(dataclasses.replace(PROGRESS, cost_limit=np.array([np.inf])), state)


def test_a_row_does_not_forget_the_updates_before_an_interruption(state: LearnerState) -> None:
    straight, stopped, resumed = Rows(("cost",)), Rows(("cost",)), Rows(("cost",))
    for rows in (straight, stopped):
        rows.updates += [update(0.1), update(1 / 3, 0.03)]
    resumed.restore(stopped.state())
    for rows in (straight, resumed):
        rows.updates.append(update(0.7))
    assert resumed.take(PROGRESS, state) == straight.take(PROGRESS, state)


def test_shares_of_waiting_are_of_the_time_since_the_row_before(state: LearnerState) -> None:
    # 5 and 8 of the first 20 seconds; then 1 and 6 of 10.
    rows = Rows(("cost",))
    row = rows.take(PROGRESS, state)
    assert (row["time/learner_waits"], row["time/simulators_wait"]) == (0.25, 0.4)
    row = rows.take(dataclasses.replace(PROGRESS, waits=Waits(30.0, 6.0, 14.0)), state)
    assert (row["time/learner_waits"], row["time/simulators_wait"]) == (0.1, 0.6)


def test_simulators_in_the_learners_process_wait_for_nobody(state: LearnerState) -> None:
    row = Rows(("cost",)).take(dataclasses.replace(PROGRESS, waits=Waits(20.0, 5.0, None)), state)
    assert row["time/learner_waits"] == 0.25
    assert "time/simulators_wait" not in row


def test_a_row_has_what_the_newest_checkpoint_cost(state: LearnerState) -> None:
    rows = Rows(("cost",))
    rows.checkpoint(0.5, 1234)
    row = rows.take(PROGRESS, state)
    assert (row["checkpoint/seconds"], row["checkpoint/bytes"]) == (0.5, 1234)
    assert "checkpoint/seconds" not in rows.take(PROGRESS, state)
