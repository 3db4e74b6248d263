"""n-step and discounted returns, by hand."""

import numpy as np
import pytest

from cvpo.returns import discounted_returns, n_step_return

REWARD = np.array([1.0, 2.0, 4.0])
COST = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
HALF = np.array([0.5, 0.5])


def test_an_n_step_return_discounts_reward_and_each_cost_alike() -> None:
    # gamma 0.5: 1 + 2/2 + 4/4 = 3; costs 1 + 0 + 1/4 and 0 + 1/2 + 1/4; the value that follows counts 0.5^3.
    reward, cost, discount = n_step_return(REWARD, COST, 0.5, HALF, terminated=False)
    assert reward == 3.0
    np.testing.assert_array_equal(cost, [1.25, 0.75])
    assert discount == 0.125


def test_each_cost_has_a_discount_of_its_own() -> None:
    # 1 + 0 + 1/4 with gamma 0.5, and 0 + 0.1 + 0.01 with gamma 0.1.
    reward, cost, discount = n_step_return(REWARD, COST, 0.5, np.array([0.5, 0.1]), terminated=False)
    assert (reward, discount) == (3.0, 0.125)
    np.testing.assert_allclose(cost, [1.25, 0.11])


def test_nothing_follows_a_termination() -> None:
    reward, cost, discount = n_step_return(REWARD, COST, 0.5, HALF, terminated=True)
    assert reward == 3.0
    np.testing.assert_array_equal(cost, [1.25, 0.75])
    assert discount == 0.0


def test_one_step_is_the_plain_temporal_difference() -> None:
    reward, cost, discount = n_step_return(REWARD[:1], COST[:1], 0.9, HALF, terminated=False)
    assert (reward, cost.tolist(), discount) == (1.0, [1.0, 0.0], 0.9)


def test_discounted_returns_are_those_from_each_step_on() -> None:
    # From the end: 4; 2 + 4/2 = 4; 1 + 4/2 = 3.
    np.testing.assert_array_equal(discounted_returns(REWARD, 0.5), [3.0, 4.0, 4.0])


def test_discounted_returns_take_the_value_after_the_last_step() -> None:
    # 8 more after the end: 4 + 8/2 = 8; 2 + 8/2 = 6; 1 + 6/2 = 4.
    np.testing.assert_array_equal(discounted_returns(REWARD, 0.5, bootstrap=8.0), [4.0, 6.0, 8.0])


def test_the_first_discounted_return_is_the_n_step_return_of_the_whole_segment() -> None:
    rewards = np.random.default_rng(0).normal(size=20)
    total, _, discount = n_step_return(rewards, rewards[:, None], 0.97, np.array([0.97]), terminated=False)
    assert discounted_returns(rewards, 0.97, bootstrap=3.0)[0] == pytest.approx(total + discount * 3.0)
