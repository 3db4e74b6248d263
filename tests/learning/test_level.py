"""The factor that puts the level of the cost critics right."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cvpo.learning.level import BOUND, LevelMeter

Array = NDArray[np.float64]
DISCOUNTS = np.array([0.5])


def seeing(episodes: int, cost_value: float, cost: float, meter: LevelMeter | None = None) -> LevelMeter:
    """Episodes of ten steps with the same prediction and the same cost throughout."""
    meter = meter or LevelMeter.start(1)
    for _ in range(episodes):
        meter = meter.seeing(np.full((10, 1), cost_value), np.full((10, 1), cost), DISCOUNTS)
    return meter


def test_a_critic_that_nothing_was_seen_of_is_taken_as_it_is() -> None:
    assert LevelMeter.start(2).factor().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [0.4, 1.0, 3.0])
def test_a_critic_that_is_wrong_by_a_factor_is_put_right(wrong: float) -> None:
    # A cost of 1 a step for ever is worth 2 with a discount of 0.5. One episode is counted as it was predicted.
    (factor,) = seeing(200, cost_value=2.0 * wrong, cost=1.0).factor()
    assert factor * wrong == pytest.approx(1.0, rel=0.12)


@pytest.mark.parametrize("wrong", [0.4, 2.5])
def test_episodes_may_be_short_beside_what_the_discount_looks_ahead(wrong: float) -> None:
    meter, discounts = LevelMeter.start(1), np.array([0.99])
    for _ in range(200):
        meter = meter.seeing(np.full((20, 1), 100 * wrong), np.ones((20, 1)), discounts)
    assert meter.factor() * wrong == pytest.approx([1.0], rel=0.12)


def test_critics_that_are_right_are_left_as_they_are() -> None:
    for episodes in (1, 3, 50):
        assert seeing(episodes, cost_value=2.0, cost=1.0).factor() == pytest.approx(1.0)


def test_old_episodes_are_forgotten() -> None:
    before = seeing(100, cost_value=4.0, cost=1.0)
    (factor,) = seeing(100, cost_value=1.0, cost=1.0, meter=before).factor()
    assert factor == pytest.approx(2.0, rel=0.1)


def test_a_few_episodes_without_cost_do_not_say_that_there_is_none() -> None:
    factors = [float(seeing(episodes, cost_value=2.0, cost=0.0).factor()[0]) for episodes in (1, 2, 4, 100)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == pytest.approx(0.5, abs=0.1)
    assert factors[-1] == 1 / BOUND


def test_the_factor_is_bounded_where_the_critic_says_next_to_nothing() -> None:
    assert seeing(20, cost_value=1e-3, cost=1.0).factor().tolist() == [BOUND]


def test_what_a_critic_makes_up_beyond_the_end_makes_no_factor_below_zero() -> None:
    # It says 0.1 nine times and then 1,000, so 0.9 - 1,000 · (1/2 + ... + 1/512) of what was seen: less than nothing,
    # which counts as nothing. What came is worth 2 - 1, 2 - 1/2, ..., 2 - 1/256 from each step to the last.
    rising = np.concatenate([np.full((9, 1), 0.1), [[1e3]]])
    meter = LevelMeter.start(1).seeing(rising, np.full((10, 1), 1.0), DISCOUNTS)
    said, realized = 1000.9, 16 + 1 / 256
    assert meter.factor() == pytest.approx([(realized + said) / said])  # one episode is counted as it was predicted


def test_each_cost_has_its_own_factor_and_discount() -> None:
    meter = LevelMeter.start(2)
    for _ in range(200):
        meter = meter.seeing(np.full((10, 2), [4.0, 1.0]), np.full((10, 2), 1.0), np.array([0.5, 0.1]))
    assert meter.factor() == pytest.approx([0.5, 1 / 0.9], rel=0.12)


@pytest.mark.parametrize(("cost", "alone"), [(0.0, 0.5), (1.0, BOUND)])
def test_a_piece_of_an_episode_moves_no_level_that_was_seen_before_it(cost: float, alone: float) -> None:
    def piece(meter: LevelMeter) -> float:  # two steps, of which one costs or none does
        return float(meter.seeing(np.array([[0.02], [0.02]]), np.array([[cost], [0.0]]), DISCOUNTS).factor()[0])

    before = LevelMeter.start(1)
    for _ in range(50):
        before = before.seeing(np.full((1_000, 1), 0.02), np.full((1_000, 1), 0.01), DISCOUNTS)
    assert piece(LevelMeter.start(1)) == pytest.approx(alone)
    assert piece(before.as_one_episode()) == pytest.approx(before.factor()[0], rel=0.1)


def test_a_level_of_before_counts_as_one_episode() -> None:
    before = seeing(100, cost_value=4.0, cost=1.0).as_one_episode()
    assert before.episodes == 1.0
    assert before.factor() == seeing(1, cost_value=4.0, cost=1.0).factor()
    assert LevelMeter.start(2).as_one_episode().factor().tolist() == [1.0, 1.0]
