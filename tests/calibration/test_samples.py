"""What a bundle keeps to be drawn, and how it is cut to size."""

import numpy as np

from cvpo.bundle import Evaluation, Interval
from cvpo.calibration.samples import example, learning_curve, single_costs
from cvpo.calibration.sessions import Session


def evaluation(gain: float) -> Evaluation:
    return Evaluation(
        mode="deterministic",
        episodes=10,
        episode_return=Interval(mean=gain, low=gain - 1, high=gain + 1),
        episode_cost=(Interval(mean=2 * gain, low=0, high=3 * gain),),
        cost_cvar90=(0.0,),
        over_limit_share=(0.0,),
    )


def test_the_curve_is_the_evaluations_up_to_the_checkpoint_in_order() -> None:
    curve = learning_curve({30: evaluation(3), 10: evaluation(1), 20: evaluation(2)}, 20)
    assert [point.steps for point in curve] == [10, 20]
    assert curve[1].episode_return == Interval(mean=2, low=1, high=3)
    assert curve[1].episode_cost == (Interval(mean=4, low=0, high=6),)
    assert learning_curve({}, 20) == ()


def test_a_long_curve_keeps_its_ends_and_points_evenly_between_them() -> None:
    curve = learning_curve({10 * i: evaluation(i) for i in range(1000)}, 9990)
    steps = [point.steps for point in curve]
    assert (len(steps), steps[0], steps[-1]) == (100, 0, 9990)
    assert set(np.diff(steps)) == {100, 110}


def test_costs_are_sums_over_an_episode_of_the_first_two_hundred() -> None:
    episodes = [np.array([[1.0, 0.5], [i, 0.5]]) for i in range(300)]
    costs = single_costs(episodes)
    assert costs[:3] == ((1.0, 1.0), (2.0, 1.0), (3.0, 1.0))
    assert len(costs) == 200


def test_what_was_spent_along_an_episode_is_what_it_cost_before_each_step() -> None:
    shown = example(np.array([1.0, 0.0, 2.0, 4.0]), Session(np.array([0.2, 0.3, 0.4, 1.0]), 2), 2.5)
    assert shown.steps == (0, 1, 2, 3)
    assert shown.spent == (0, 1, 1, 3)
    assert shown.violation_probability == (0.2, 0.3, 0.4, 1.0)
    assert (shown.budget, shown.crossing) == (2.5, 2)


def test_of_a_long_episode_two_hundred_steps_are_kept() -> None:
    shown = example(np.full(1000, 0.1), Session(np.arange(1000) / 1000, None), 200.0)
    assert (len(shown.steps), shown.steps[0], shown.steps[-1]) == (200, 0, 999)
    assert [round(10 * spent) for spent in shown.spent] == list(shown.steps)
    assert [round(1000 * said) for said in shown.violation_probability] == list(shown.steps)
