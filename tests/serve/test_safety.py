"""Budgets of horizons and rolling windows, the order of reasons, and who has control."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.control_values import Account, FallbackReason
from serve.server.safety import (
    Authority,
    CostHistory,
    Costs,
    cost_allowed,
    first_reason,
    horizon_account,
    rolling_account,
    steps_ahead,
)

FLAGGED, EXHAUSTED = FallbackReason.FLAGGED, FallbackReason.BUDGET_EXHAUSTED
SHIFTED, NO_ANSWER = FallbackReason.SHIFTED, FallbackReason.NO_ANSWER
RECOVERING = FallbackReason.RECOVERING

costs = st.floats(0, 1e300)


def test_a_horizon_spends_its_budget_down_to_zero() -> None:
    # 100 steps, budget 20 and 8; at step 30 the robot has spent 5 and 9.
    account = horizon_account((20.0, 8.0), 100, 30, (5.0, 9.0))
    assert account == Account(spent=(5.0, 9.0), left=(15.0, 0.0), steps_left=70)
    assert account.exhausted == (False, True)


def test_a_budget_of_zero_and_one_that_is_just_spent_are_exhausted_and_an_infinite_one_never_is() -> None:
    account = horizon_account((0.0, 8.0, math.inf), 10, 0, (0.0, 8.0, 1e9))
    assert account.exhausted == (True, True, False)
    assert account.left == (0.0, 0.0, math.inf)


def test_a_rolling_window_looks_ahead_as_far_as_the_policy_but_half_of_itself_at_most() -> None:
    assert steps_ahead(100, policy_window_steps=10) == 10
    assert steps_ahead(15, policy_window_steps=10) == 8
    assert steps_ahead(14, policy_window_steps=10) == 7
    assert steps_ahead(1, policy_window_steps=10) == 1


def roll(step_costs: list[Costs], window: int, ahead: int, budget: Costs) -> list[Account]:
    """The accounts of a rolling session at steps 0, 1, ..., where step_costs[t] is what action t cost."""
    history = CostHistory(len(budget), window - 1)
    before: Costs = (0.0,) * len(budget)
    total, accounts = before, []
    for step in range(len(step_costs) + 1):
        then, first = (history.cost_total_then(step, window - steps, total) for steps in (ahead, 1))
        accounts.append(rolling_account(budget, ahead, total, then, first))
        history.add(step, before, total)
        before = total
        if step < len(step_costs):
            total = tuple(a + b for a, b in zip(total, step_costs[step], strict=True))
    return accounts


def test_what_leaves_the_rolling_window_may_be_spent_again() -> None:
    # Windows of 5 steps, 2 of them ahead: the last 3 count. Costs by step: 1, 0, 2, 0, 0, 0.
    spent = [account.spent for account in roll([(1.0,), (0.0,), (2.0,), (0.0,), (0.0,), (0.0,)], 5, 2, (4.0,))]
    assert spent == [(0.0,), (1.0,), (1.0,), (3.0,), (2.0,), (2.0,), (0.0,)]
    left = [account.left for account in roll([(1.0,), (0.0,), (2.0,), (0.0,), (0.0,), (0.0,)], 5, 2, (3.5,))]
    assert left == [(3.5,), (2.5,), (2.5,), (0.5,), (1.5,), (1.5,), (3.5,)]


def test_a_budget_that_unpredicted_costs_have_used_up_within_a_window_is_exhausted() -> None:
    # Windows of 5 steps, 2 of them ahead, a budget of 3. At 0.75 a step the last 3 leave 0.75 for the next 2; yet with
    # the last 4, the next step would cost a window 3.75.
    step_costs: list[Costs] = [*[(0.75,)] * 5, (0.0,), (0.0,)]
    accounts = roll(step_costs, 5, 2, (3.0,))
    assert [account.spent[0] for account in accounts] == [0.0, 0.75, 1.5, 2.25, 2.25, 2.25, 1.5, 0.75]
    assert [account.left[0] for account in accounts] == [3.0, 2.25, 1.5, 0.75, 0.0, 0.0, 1.5, 2.25]
    assert [account.exhausted[0] for account in accounts] == [False] * 4 + [True] * 2 + [False] * 2


@given(
    step_costs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    window=st.integers(1, 12),
    data=st.data(),
)
def test_a_rolling_window_spends_what_its_last_steps_cost(
    step_costs: list[tuple[int, int]], window: int, data: st.DataObject
) -> None:
    ahead = data.draw(st.integers(1, window))
    exact: list[Costs] = [(float(a), float(b)) for a, b in step_costs]  # whole numbers: sums are exact
    for step, account in enumerate(roll(exact, window, ahead, (5.0, math.inf))):
        last = exact[max(0, step - (window - ahead)) : step]
        assert account.spent == tuple(sum(cost[c] for cost in last) for c in (0, 1))
        used = sum(cost[0] for cost in exact[max(0, step - (window - 1)) : step])
        assert account.left == (0.0 if used >= 5 else 5 - account.spent[0], math.inf)
        assert account.exhausted == (used >= 5, False)
        assert account.steps_left == ahead


@given(step_costs=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 2.5])), max_size=40), cut=st.integers(0, 40))
def test_a_history_goes_on_from_its_packed_form_and_keeps_no_more_than_its_window(
    step_costs: list[Costs], cut: int
) -> None:
    history = CostHistory(1, 4)
    before, total = (0.0,), (0.0,)
    for step, cost in enumerate(step_costs):
        if step == cut:
            history = CostHistory(1, 4, history.packed)
        total = (total[0] + cost[0],)
        history.add(step, before, total)
        before = total
        assert len(history.packed) <= 16 * 5
    undisturbed = CostHistory(1, 4)
    before, total = (0.0,), (0.0,)
    for step, cost in enumerate(step_costs):
        total = (total[0] + cost[0],)
        undisturbed.add(step, before, total)
        before = total
    assert history.packed == undisturbed.packed
    for back in range(5):
        assert history.cost_total_then(len(step_costs), back, total) == undisturbed.cost_total_then(
            len(step_costs), back, total
        )


@given(budget=costs | st.just(math.inf), total=costs, then=costs)
def test_rounding_never_allows_more(budget: float, total: float, then: float) -> None:
    then = min(then, total)
    account = rolling_account((budget,), 3, (total,), (then,), (then,))
    (spent,), (left,) = account.spent, account.left
    assert Fraction(spent) >= Fraction(total) - Fraction(then)
    (allowed,) = cost_allowed(account)
    assert allowed == np.float32(allowed)
    if math.isinf(budget):
        assert left == math.inf
        assert allowed == math.inf
    else:
        exact = max(Fraction(0), Fraction(budget) - (Fraction(total) - Fraction(then)))
        assert Fraction(left) <= exact
        assert 0 <= Fraction(allowed) <= exact
        # It gives away no more than rounding: 2^-23 in float32, beside what the subtraction of large numbers loses.
        loss = exact * Fraction(2) ** -22 + Fraction(max(budget, total)) * Fraction(2) ** -51 + Fraction(2) ** -149
        assert Fraction(allowed) >= min(exact, Fraction(float(np.finfo(np.float32).max))) - loss


ALL = frozenset({FLAGGED, EXHAUSTED, SHIFTED, NO_ANSWER})


def test_the_first_reason_that_applies_is_told() -> None:
    def told(no_answer: int, exhausted: int, shifted: int, flagged: int) -> FallbackReason | None:
        return first_reason(
            ALL, no_answer=bool(no_answer), exhausted=bool(exhausted), shifted=bool(shifted), flagged=bool(flagged)
        )

    assert told(1, 1, 1, 1) is NO_ANSWER
    assert told(0, 1, 1, 1) is EXHAUSTED
    assert told(0, 0, 1, 1) is SHIFTED
    assert told(0, 0, 0, 1) is FLAGGED
    assert told(0, 0, 0, 0) is None


@pytest.mark.parametrize(("counted", "told"), [({FLAGGED}, FLAGGED), ({SHIFTED, FLAGGED}, SHIFTED), (set(), None)])
def test_a_reason_that_does_not_count_is_passed_over(counted: set[FallbackReason], told: FallbackReason | None) -> None:
    assert first_reason(counted, no_answer=True, exhausted=True, shifted=True, flagged=True) is told


def control(reasons: list[FallbackReason | None], recovery_steps: int) -> list[tuple[int, FallbackReason | None]]:
    """Steps in control of the fallback and the reason that is told, for each step; None: the policy's step."""
    authority, told = Authority(), []
    for reason in reasons:
        authority, why = authority.after(reason, recovery_steps)
        told.append((authority.fallback_steps, why))
    return told


def test_a_fallback_keeps_control_until_enough_steps_in_a_row_had_no_reason() -> None:
    assert control([None, FLAGGED, None, None, None, None], 3) == [
        (0, None),
        (1, FLAGGED),
        (2, RECOVERING),
        (3, RECOVERING),
        (4, RECOVERING),
        (0, None),
    ]


def test_a_new_reason_begins_the_count_of_clear_steps_again() -> None:
    assert control([SHIFTED, None, FLAGGED, None, None, None], 2) == [
        (1, SHIFTED),
        (2, RECOVERING),
        (3, FLAGGED),
        (4, RECOVERING),
        (5, RECOVERING),
        (0, None),
    ]


@given(st.lists(st.sampled_from([None, None, FLAGGED, EXHAUSTED]), max_size=60), st.integers(1, 6))
def test_the_policy_never_has_control_within_the_recovery_steps_after_a_reason(
    reasons: list[FallbackReason | None], recovery_steps: int
) -> None:
    for step, (steps, told) in enumerate(control(reasons, recovery_steps)):
        recent = reasons[max(0, step - recovery_steps) : step + 1]
        assert (told is not None) == any(recent)
        assert (steps > 0) == (told is not None)
        if reasons[step] is not None:
            assert told is reasons[step]
