"""An environment in the middle of its episode, taken to bytes and back."""

from collections.abc import Iterator

import numpy as np
import pytest

from cvpo.envs import CostEnv, make_env, snapshot


def episode(env: CostEnv, actions: np.random.Generator, steps: int) -> Iterator[list[float]]:
    """Rows of observation, reward, cost, terminated, truncated; a new episode begins where one ends."""
    for _ in range(steps):
        step = env.step(actions.uniform(env.spec.action_low, env.spec.action_high))
        yield [*step.observation.tolist(), step.reward, *step.cost, step.terminated, step.truncated]
        if step.terminated or step.truncated:
            yield [*env.reset(seed=9).tolist(), 0.0, 0.0, False, False]


@pytest.mark.parametrize(
    ("env_id", "kilobytes"),
    [
        ("SafetyPointGoal1-v0", 6),
        ("SafetyPointButton1-v0", 7),
        ("SafetyCarPush2-v0", 7),
        ("SafetyPointCircle2-v0", 5),
        ("SafetyPointRun0-v0", 5),
        ("SafetyAntGoal2-v0", 8),
        ("SafetyHalfCheetahVelocity-v1", 3),
        ("SafetyAntVelocity-v1", 3),
        ("SafetyHumanoidVelocity-v1", 4),
        ("SafetyPointFadingHard1-v0", 60),
    ],
)
def test_a_thawed_environment_goes_on_as_the_frozen_one_does(env_id: str, kilobytes: int) -> None:
    env = make_env(env_id, max_episode_steps=60)
    env.reset(seed=3)
    list(episode(env, np.random.default_rng(0), 40))
    frozen = snapshot.freeze(env)
    assert frozen is not None
    assert len(frozen) < 1000 * kilobytes
    expected = list(episode(env, np.random.default_rng(1), 60))
    thawed = snapshot.thaw(frozen)
    np.testing.assert_array_equal(list(episode(thawed, np.random.default_rng(1), 60)), expected)
    again = snapshot.freeze(snapshot.thaw(frozen))
    assert again is not None
    np.testing.assert_array_equal(list(episode(snapshot.thaw(again), np.random.default_rng(1), 60)), expected)


def test_an_environment_that_was_never_reset_is_frozen_too() -> None:
    frozen = snapshot.freeze(make_env("SafetyPointGoal1-v0"))
    assert frozen is not None
    thawed, fresh = snapshot.thaw(frozen), make_env("SafetyPointGoal1-v0")
    np.testing.assert_array_equal(thawed.reset(seed=1), fresh.reset(seed=1))
