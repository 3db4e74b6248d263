"""One environment: what it returns, and what it refuses to return."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from cvpo.envs import make_env
from cvpo.errors import EnvError

ACTION = np.array([0.1, 0.1])


def toy(name: str) -> str:
    return f"tests.envs.toys:{name}"


def error_of_the_third_step(name: str) -> str:
    env = make_env(toy(name), max_episode_steps=20)
    env.reset(seed=5)
    env.step(ACTION)
    env.step(ACTION)
    with pytest.raises(EnvError) as caught:
        env.step(ACTION)
    return str(caught.value)


def test_a_step_returns_flat_float32_and_one_cost_per_name() -> None:
    env = make_env(toy("drift"), cost_names=("cost_fuel", "cost"))
    first = env.reset(seed=1)
    step = env.step(np.array([0.5, -1.0]))
    assert first.dtype == step.observation.dtype == np.float32
    assert first.shape == step.observation.shape == (2,)
    # fuel is |0.5| + |-1|; the second coordinate starts near 0 and moves by about -1, so it is below 0
    np.testing.assert_array_equal(step.cost, [1.5, 0.0])
    assert (step.terminated, step.truncated) == (False, False)


def test_the_same_seed_gives_the_same_episode() -> None:
    env = make_env(toy("drift"))
    runs = [[env.reset(seed=3), *(env.step(ACTION).observation for _ in range(4))] for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(env.reset(seed=4), runs[0][0])


def test_actions_are_clipped_to_their_bounds() -> None:
    env = make_env(toy("drift"), cost_names=("cost_fuel",))
    env.reset(seed=0)
    assert env.step(np.array([7.0, -7.0])).cost == [1.0 + 2.0]


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (np.array([np.nan, 0.0]), "the action [nan  0.] is not of numbers within ±1e+15"),
        (np.array([1e16, 0.0]), "the action [1.e+16 0.e+00] is not of numbers within ±1e+15"),
        (np.zeros(3), "the action has shape (3,)"),
        (np.zeros((1, 2)), "the action has shape (1, 2)"),
    ],
)
def test_an_action_that_is_not_of_numbers_or_of_another_shape_is_refused(
    action: NDArray[np.float64], says: str
) -> None:
    env = make_env(toy("drift"))
    env.reset(seed=0)
    with pytest.raises(EnvError, match=re.escape(says)):
        env.step(action)


def test_no_episode_is_longer_than_the_horizon() -> None:
    env = make_env(toy("Drift"), max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(ACTION).truncated for _ in range(3)] == [False, False, True]
    env.reset(seed=0)
    assert not env.step(ACTION).truncated


def test_a_termination_is_no_truncation() -> None:
    env = make_env(toy("drift"))
    env.reset(seed=0)
    steps = [env.step(np.array([0.0, 2.0])) for _ in range(3)]  # past 4 at the third step at the latest
    ends = [step.terminated for step in steps]
    assert any(ends)
    assert not any(step.truncated for step in steps)


def test_a_dict_observation_is_flattened_in_the_order_of_its_keys() -> None:
    env = make_env(toy("DictObservation"), max_episode_steps=5)
    flat = make_env(toy("drift")).reset(seed=2)
    np.testing.assert_array_equal(env.reset(seed=2), [flat[0], flat[1], flat[0]])
    assert env.step(ACTION).observation.shape == (3,)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoCost", 'info has no cost "cost" (it has cost_fuel, costs)'),
        ("NoInfo", "info is None, not a dict with the cost in it"),
        ("NegativeCost", 'info["cost"] is -0.5'),
        ("InfiniteCost", 'info["cost"] is inf'),
        ("WordCost", "info[\"cost\"] is 'much'"),
        ("NanObservation", "observation[1] is nan"),
        ("HugeObservation", "observation[1] is -1.0000000272564224e+16, not a number within ±1e+15"),
        ("HugeReward", "the reward is 1e+25, not a number within ±1e+15"),
        ("HugeCost", 'info["cost"] is 1e+25; a cost is a number from 0 to 1e+15'),
        ("InfiniteReward", "the reward is -inf"),
        ("NoReward", "the reward is None"),
        ("WrongShape", "the observation has 3 values instead of 2"),
        ("OldStep", "step raised ValueError"),
        ("Raises", "step raised RuntimeError: the gripper is stuck (toys.py, line 154)"),
        ("Leaves", "step raised SystemExit: the viewer was closed"),
    ],
)
def test_a_broken_step_is_an_error_that_names_environment_step_seed_and_value(name: str, says: str) -> None:
    text = error_of_the_third_step(name)
    assert text.startswith(f"tests.envs.toys:{name}, at step 3 of the episode with seed 5: ")
    assert says in text


def test_a_broken_reset_is_an_error_that_names_environment_and_seed() -> None:
    with pytest.raises(EnvError, match=r"OldReset, at the reset of the episode with seed 5"):
        make_env(toy("OldReset"), max_episode_steps=5).reset(seed=5)


def test_nothing_is_rendered_unless_asked_for() -> None:
    env = make_env("SafetyPointCircle1-v0")
    env.reset(seed=0)
    assert env.render() is None
