"""What the shift score notices, and what its threshold promises, on observations whose distribution is known."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cvpo.calibration.shift import MARGIN, choose_threshold, fit_shift_score
from cvpo.errors import ConfigError
from cvpo.learning.networks import Normalizer

DIMENSIONS = 4


def together(count: int, seed: int) -> NDArray[np.float64]:
    """Two values that go together, their difference, and one that never changes."""
    generator = np.random.default_rng(seed)
    one, noise, other = generator.normal(size=(3, count)).clip(-3, 3)
    return np.stack([one, one + 0.1 * noise, other, np.zeros(count)], axis=1)


def training(size: int, reach: float) -> Normalizer:
    """Of mean 0 and standard deviation 1, which saw values from -reach to reach."""
    normalizer = Normalizer(size)
    normalizer.low.fill_(-reach)
    normalizer.high.fill_(reach)
    return normalizer


def score(values: NDArray[np.float64]) -> NDArray[np.float64]:
    fitted = fit_shift_score(training(DIMENSIONS, 4.0), torch.from_numpy(together(5000, 0)).float())
    found: NDArray[np.float64] = fitted(torch.from_numpy(values).float()).double().numpy()
    return found


def test_what_the_score_was_fitted_to_is_inside() -> None:
    assert score(together(5000, 0)).max() == 0


@pytest.mark.parametrize(
    "where",
    [
        [1.0, -1.0, 0.0, 0.0],  # two that go together do not
        [2.0, 0.0, 2.0, 0.0],  # the second and the third swapped
        [1.0, 1.0, 0.0, 0.5],  # what never changed has changed
        [0.0, 0.0, 7.0, 0.0],  # one outside of its range
    ],
)
def test_what_does_not_belong_together_or_is_outside_of_its_range_is_noticed(where: list[float]) -> None:
    threshold = choose_threshold([score(together(500, seed)) for seed in range(1, 21)])
    assert score(np.array([where]))[0] > threshold.value
    assert (score(together(5000, 99)) > threshold.value).mean() < 0.003


def test_distance_is_counted_in_standard_deviations_of_the_direction() -> None:
    # The sum of the two is -2 to 2 at deviation sqrt(2), of the unit vector; the difference is always 0, of which the
    # ridge leaves a deviation of sqrt(0.001). (1, -1) is 0 along the one and sqrt(2) along the other.
    pairs = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    fitted = fit_shift_score(training(2, 1.0), pairs)
    found = fitted(torch.tensor([[0.5, 0.5], [1.0, -1.0], [1.0, 4.0]]))
    assert found[:2].tolist() == pytest.approx([0, (2 / 0.001) ** 0.5 - MARGIN], abs=1e-3)
    assert found[2].item() == pytest.approx(3 * (1 / 2 / 0.001) ** 0.5 - MARGIN, rel=1e-4)


def test_distance_is_counted_from_what_the_policy_saw_wherever_that_is() -> None:
    # Around (5, 5), which training saw, too: the sum is 8 to 12 at a deviation of sqrt(2), of the unit vector.
    fitted = fit_shift_score(training(2, 10.0), torch.tensor([[6.0, 6.0], [4.0, 4.0]]))
    found = fitted(torch.tensor([[5.0, 5.0], [8.0, 8.0], [1.0, 1.0]]))
    assert found.tolist() == pytest.approx([0, 2 - MARGIN, 3 - MARGIN], abs=2e-3)


def test_one_value_outside_of_what_training_saw_is_noticed_among_many() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(5000, 60)).clip(-4, 4)).float()
    fitted = fit_shift_score(training(60, 4.0), values)
    wrong = torch.zeros(1, 60)
    wrong[0, 7] = 9.0
    assert fitted(wrong).item() == pytest.approx(5.0 - MARGIN)


def test_the_threshold_is_the_lowest_that_the_given_share_of_steps_is_over() -> None:
    # Ten episodes of 100 steps with scores 0 to 99, so a rate of 0.05 leaves 95 to 99 over it; (10·0.05 + 1)/11.
    chosen = choose_threshold([np.arange(100, dtype=np.float64) for _ in range(10)], 0.05)
    assert chosen.value == 94.0
    assert chosen.false_alarm_rate == pytest.approx(1.5 / 11)
    assert chosen.episodes == 10


def test_every_episode_counts_the_same_however_long() -> None:
    # One step of the short episode is half of it, and a quarter of both on average.
    short, long = np.array([0.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert choose_threshold([short, long], 0.24).value == 5.0
    assert choose_threshold([short, long], 0.25).value == 4.0
    assert choose_threshold([short, long], 0.375).value == 3.0


def test_a_rate_below_any_share_gives_the_largest_score_seen() -> None:
    chosen = choose_threshold([np.array([1.0, 7.0]), np.array([2.0])], 0.001)
    assert chosen.value == 7.0
    assert chosen.false_alarm_rate == pytest.approx(1.002 / 3)


def test_what_is_claimed_of_a_fresh_episode_holds_where_episodes_differ() -> None:
    # Episodes of two kinds: most with scores below 1, one in five with scores up to 10.
    generator = np.random.default_rng(0)

    def episode() -> NDArray[np.float64]:
        return generator.uniform(0, 10 if generator.random() < 0.2 else 1, 50)

    shares = []
    for _ in range(400):
        chosen = choose_threshold([episode() for _ in range(19)], 0.02)
        shares.append((episode() > chosen.value).mean())
    assert chosen.false_alarm_rate == pytest.approx(1.38 / 20)
    assert np.mean(shares) < 1.38 / 20


@pytest.mark.parametrize(("count", "rate"), [(0, 0.1), (2, 0.0), (2, 1.0)])
def test_without_episodes_or_a_rate_there_is_no_threshold(count: int, rate: float) -> None:
    with pytest.raises(ConfigError, match=rf"there are {count} and {rate:g}"):
        choose_threshold([np.ones(3)] * count, rate)
