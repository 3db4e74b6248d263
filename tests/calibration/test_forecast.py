"""Forecasts of the cost of the next steps: what they learn, and what holds whatever they learned."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpo.bundle import Constraint
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.forecast_fit import ForecastEpisode, fit_forecast
from cvpo.evaluate import Episode
from tests.small_policies import OBSERVATION_SIZE, T, random_forecast, random_map

STEPS, WINDOW = 60, 10


def constraint() -> Constraint:
    return Constraint(name="cost", cost_limit=6.0, discount=0.9, horizon_steps=STEPS, window_steps=WINDOW)


def as_it_is(observation: torch.Tensor) -> torch.Tensor:
    return observation


def episode(observation: float, cost: np.ndarray, terminated: bool = False) -> Episode:
    seen = np.full((len(cost), 1), observation, np.float32)
    column = cost.astype(np.float64)[:, None]
    return Episode(seen, np.zeros(len(cost)), column, terminated, np.ones_like(column), None, None)


def test_the_observation_tells_what_the_cost_value_does_not() -> None:
    generator = np.random.default_rng(0)
    dear = [episode(1.0, generator.random(STEPS) < 0.8) for _ in range(20)]
    free = [episode(-1.0, np.zeros(STEPS)) for _ in range(20)]
    forecast = fit_forecast([*dear, *free], [constraint()], as_it_is, seed=0)
    high, low = (ForecastEpisode(e, forecast, as_it_is) for e in (dear[0], free[0]))
    for steps in (WINDOW, STEPS):  # of the mean cost, dear episodes have twice as much
        assert high.forecast(np.full(STEPS, steps))[0, 0] == pytest.approx(2.0, rel=0.25)
        assert low.forecast(np.full(STEPS, steps))[0, 0] == pytest.approx(0.0, abs=0.1)


def test_what_is_near_is_told_apart_from_what_is_far() -> None:
    # All cost comes in the last ten steps, and the observation says how far that is.
    cost = np.concatenate([np.zeros(STEPS - 10), np.ones(10)])
    seen = np.linspace(1, -1, STEPS, dtype=np.float32)[:, None]
    column = cost[:, None]
    whole = Episode(seen, np.zeros(STEPS), column, False, np.ones_like(column), None, None)
    forecast = fit_forecast([whole] * 40, [constraint()], as_it_is, seed=0)
    followed = ForecastEpisode(whole, forecast, as_it_is)
    window = followed.forecast(np.full(STEPS, WINDOW))[:, 0] * WINDOW  # in units of the mean cost of a step, 1/6
    assert window[10] < 3
    assert window[STEPS - 10] > 40
    assert followed.forecast(np.full(STEPS, STEPS))[0, 0] * STEPS == pytest.approx(60, rel=0.3)


def test_what_is_left_of_an_episode_that_ends_for_good_is_told_of_the_steps_that_are_asked_about() -> None:
    # Those that end after twelve steps cost 1 at each, the others 0.5 at each of 60: a mean cost of 0.75 a step. The
    # service cannot know when one will end: it asks about what is left of the horizon, or about a window.
    short, whole = episode(1.0, np.ones(12), terminated=True), episode(-1.0, np.full(STEPS, 0.5))
    short.observation[:, 0] = np.linspace(0, 2, 12)
    forecast = fit_forecast([short, whole] * 20, [constraint()], as_it_is, seed=0)
    followed = ForecastEpisode(short, forecast, as_it_is)
    left, window = STEPS - np.arange(12), np.full(12, WINDOW)
    rest, near = (0.75 * steps * followed.forecast(steps)[:, 0] for steps in (left, window))
    assert rest == pytest.approx(np.arange(12, 0, -1), abs=1.5)
    assert near == pytest.approx(np.minimum(np.arange(12, 0, -1), WINDOW), abs=1.5)


@given(seed=st.integers(0, 30), left=st.integers(1, T), value=st.floats(0, 100))
@settings(deadline=None)
def test_no_forecast_is_negative(seed: int, left: int, value: float) -> None:
    forecast = random_forecast(1, seed)
    observation = 5 * torch.randn(1, OBSERVATION_SIZE, generator=torch.Generator().manual_seed(seed))
    assert forecast(observation, torch.full((1, 1, 1), value), torch.tensor([left])).item() >= 0


def test_a_cost_value_that_is_not_a_number_is_a_certain_violation() -> None:
    left, observation = torch.tensor([5]), torch.zeros(1, OBSERVATION_SIZE)
    forecast = random_forecast(1)(observation, torch.full((1, 1, 1), torch.nan), left)
    prediction = random_map(1)(forecast, left, torch.tensor([[100.0]]))
    assert prediction.violation_probability.item() == 1


def test_actions_and_constraints_do_not_mix() -> None:
    forecast = random_forecast(2)
    observation, left = torch.randn(3, OBSERVATION_SIZE), torch.tensor([3, 20, T])
    value = torch.rand(3, 2, 4)
    before = forecast(observation, value, left)
    other = value.clone()
    other[:, 1, 2] += 1
    after = forecast(observation, other, left)
    same = torch.ones(3, 2, 4, dtype=torch.bool)
    same[:, 1, 2] = False
    torch.testing.assert_close(before[same], after[same])
    assert not torch.allclose(before[~same], after[~same])


def test_one_episode_is_enough_to_fit() -> None:
    forecast = fit_forecast([episode(0.0, np.ones(STEPS))], [constraint()], as_it_is, seed=0)
    assert isinstance(forecast, CostForecast)
    followed = ForecastEpisode(episode(0.0, np.ones(STEPS)), forecast, as_it_is)
    assert np.isfinite(followed.forecast(np.full(STEPS, STEPS))).all()
