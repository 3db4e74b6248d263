"""n-step and discounted returns, by hand."""

import numpy as np
import pytest

from cvpo.learning.returns import NStepReturn, discounted_returns, n_step_return, window_cost

REWARD = np.array([1.0, 2.0, 4.0])
COST = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
GOES_ON = np.zeros(3, np.bool_)
HALF = np.array([0.5, 0.5])


def test_an_n_step_return_discounts_reward_and_each_cost_alike() -> None:
    # gamma 0.5: 1 + 2/2 + 4/4 = 3; costs 1 + 0 + 1/4 and 0 + 1/2 + 1/4; the values that follow count 0.5^3.
    check(n_step_return(REWARD, COST, GOES_ON, 0.5, HALF), (3.0, [1.25, 0.75], 0.125, [0.125, 0.125]))


def test_each_cost_has_a_discount_of_its_own() -> None:
    # 1 + 0 + 1/4 with gamma 0.5, and 0 + 0.1 + 0.01 with gamma 0.1.
    total = n_step_return(REWARD, COST, GOES_ON, 0.5, np.array([0.5, 0.1]))
    assert (total.reward, total.discount) == (3.0, 0.125)
    np.testing.assert_allclose(total.cost, [1.25, 0.11])
    np.testing.assert_allclose(total.cost_discount, [0.125, 0.001])


def test_reward_ends_with_a_termination_and_cost_goes_on() -> None:
    # At the second step: 1 + 2/2 of reward, none of what follows, and the costs as if nothing had happened.
    check(
        n_step_return(REWARD, COST, np.array([False, True, False]), 0.5, HALF), (2.0, [1.25, 0.75], 0, [0.125, 0.125])
    )
    check(
        n_step_return(REWARD, COST, np.array([False, False, True]), 0.5, HALF), (3.0, [1.25, 0.75], 0, [0.125, 0.125])
    )
    check(n_step_return(REWARD, COST, np.array([True, False, True]), 0.5, HALF), (1.0, [1.25, 0.75], 0, [0.125, 0.125]))


def test_one_step_is_the_plain_temporal_difference() -> None:
    check(n_step_return(REWARD[:1], COST[:1], GOES_ON[:1], 0.9, HALF), (1.0, [1.0, 0.0], 0.9, [0.5, 0.5]))


def check(found: NStepReturn, expected: tuple[float, list[float], float, list[float]]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_discounted_returns_are_those_from_each_step_on() -> None:
    # From the end: 4; 2 + 4/2 = 4; 1 + 4/2 = 3.
    np.testing.assert_array_equal(discounted_returns(REWARD, 0.5), [3.0, 4.0, 4.0])


def test_the_first_discounted_return_is_the_n_step_return_of_the_whole_segment() -> None:
    rewards = np.random.default_rng(0).normal(size=20)
    total = n_step_return(rewards, rewards[:, None], np.zeros(20, np.bool_), 0.97, np.array([0.97]))
    assert discounted_returns(rewards, 0.97)[0] == pytest.approx(total.reward)
    # With 3 more after the end, which is what the value there stands for:
    later = discounted_returns(np.append(rewards, 3.0), 0.97)
    assert later[0] == pytest.approx(total.reward + total.discount * 3.0)


@pytest.mark.parametrize(("terminated", "seen"), [(True, [True, True, True]), (False, [True, True, False])])
def test_after_a_termination_nothing_costs_anything_and_what_follows_a_truncation_is_unknown(
    terminated: bool, seen: list[bool]
) -> None:
    # Of the costs (1, 0), (2, 8), (4, 0), the next 3 from the first step on, 1 from the second, 2 from the last.
    total, known = window_cost(np.array([[1.0, 0.0], [2.0, 8.0], [4.0, 0.0]]), np.array([3, 1, 2]), terminated)
    np.testing.assert_array_equal(total, [[7.0, 8.0], [2.0, 8.0], [4.0, 0.0]])
    assert known.tolist() == seen
