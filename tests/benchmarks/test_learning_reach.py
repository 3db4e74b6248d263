"""What the physics of PointCircle1 allow: the point drives as the simulated robot does, and its returns are right."""

import numpy as np
import pytest
import torch

from benchmarks.learning import reach
from benchmarks.learning.reach import BUDGETS, STEPS, Point

POINT = Point(mass=0.005, force=0.015, damping=0.01, seconds_a_step=0.02, circle=1.5, wall=1.125, reward_factor=0.1)


def test_the_point_is_the_simulated_robot() -> None:
    point, starts = reach.simulated(2)  # raises where the two do not drive alike
    assert (point.top_speed, point.circle, point.wall) == pytest.approx((1.5, 1.5, 1.125))
    assert point.bound() == pytest.approx(75)
    assert starts.shape == (2, 2)


def test_who_drives_straight_out_earns_nothing_and_pays_beyond_the_wall() -> None:
    thrust = torch.tensor([[[1.0, 0.0]]]).double().expand(1, STEPS, 2)
    episode_return, soft_cost, cost = POINT.drive(thrust, torch.zeros(1, 2).double(), 1e-6)
    # x(t) = v (t − τ (1 − exp(−t/τ))), v = 1.5 m/s, τ = m/c = 0.5 s: the wall is passed after 1.193 s, 59.6 steps.
    assert episode_return.item() == pytest.approx(0, abs=1e-9)
    assert cost.item() == pytest.approx(STEPS - 59, abs=1)
    assert soft_cost.item() == pytest.approx(cost.item(), abs=1)


def test_who_circles_earns_speed_over_distance_from_the_circle() -> None:
    # From rest at (1, 0) one step along y: reward is factor · speed / (1 + 0.5), up to what the step moves it outwards.
    thrust = torch.tensor([[[0.0, 1.0]]]).double()
    episode_return, _, cost = POINT.drive(thrust, torch.tensor([[1.0, 0.0]]).double(), 0.01)
    speed = 1.5 * (1 - np.exp(-0.02 / 0.5))
    assert episode_return.item() == pytest.approx(0.1 * speed / 1.5, rel=1e-3)
    assert cost.item() == 0


def test_the_search_keeps_budgets_and_the_bound() -> None:
    most = reach.search(POINT, np.array([[0.3, 0.0], [0.0, -0.5]]), guesses=2, iterations=3)
    assert most.shape == (len(BUDGETS), 2)
    unlimited = most[BUDGETS.index(float("inf"))]
    assert (unlimited > 0).all()
    assert (unlimited < POINT.bound()).all()
    assert np.isnan(most[0]).all()  # three steps of the search do not bring a path inside of the walls
