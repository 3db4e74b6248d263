"""Bullet-Safety-Gym's tasks: stock first episodes, each from its seed alone, kept in the middle."""

import contextlib
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from cvpo.envs import CostEnv, bullet_tasks, make_env, snapshot

pytest.importorskip("pybullet", reason="it needs the extra bullet")

Array = NDArray[np.float64]


def episode(env: CostEnv, seed: int, steps: int) -> Array:
    """Observation, reward and cost of random steps, [steps + 1, O + 2]."""
    return np.vstack([np.append(env.reset(seed), [0, 0]), go_on(env, seed, steps)])


def go_on(env: CostEnv, seed: int, steps: int) -> Array:
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(steps):
        step = env.step(generator.uniform(-1, 1, env.spec.action_size))
        rows.append(np.concatenate([step.observation, [step.reward], step.cost]))
        if step.terminated or step.truncated:
            break
    return np.array(rows)


@pytest.mark.parametrize("env_id", sorted(bullet_tasks.TASK_IDS))
def test_an_episode_is_the_first_of_a_stock_environment_whatever_came_before(env_id: str) -> None:
    seed, steps = 3, 60
    env = make_env(env_id)
    episode(env, seed + 1, steps)
    ours = episode(env, seed, steps)

    with contextlib.redirect_stdout(sys.__stdout__):  # which pytest replaces, and the task writes to by its descriptor
        stock: Any = gymnasium.make(env_id, disable_env_checker=True).unwrapped
    np.random.seed(int(np.random.Generator(np.random.PCG64(seed)).integers(2**32)))
    observation, _ = stock.reset()
    generator = np.random.default_rng(seed)
    rows = [np.append(observation.astype(np.float32), [0, 0])]
    for _ in range(len(ours) - 1):
        action = generator.uniform(-1, 1, env.spec.action_size).astype(np.float32)
        observation, reward, _, _, info = stock.step(action)
        rows.append(np.append(observation.astype(np.float32), [float(reward), info["cost"]]))
    np.testing.assert_array_equal(ours, np.array(rows))
    env.close()
    stock.close()


@pytest.mark.parametrize("env_id", ["SafetyBallCircle-v0", "SafetyCarRun-v0"])
def test_a_thawed_task_goes_on_as_the_frozen_one_does_and_in_the_next_episodes(env_id: str) -> None:
    env = make_env(env_id)
    episode(env, 1, 20)
    episode(env, 2, 30)
    frozen = snapshot.freeze(env)
    assert frozen is not None
    assert len(frozen) < 3_000
    thawed = snapshot.thaw(frozen)
    np.testing.assert_array_equal(go_on(thawed, 5, 40), go_on(env, 5, 40))
    np.testing.assert_array_equal(episode(thawed, 6, 20), episode(env, 6, 20))


def test_tasks_in_one_process_do_not_disturb_each_other_nor_the_global_generator() -> None:
    alone = episode(make_env("SafetyCarCircle-v0"), 0, 20)
    env, other = make_env("SafetyCarCircle-v0"), make_env("SafetyCarCircle-v0")
    np.random.seed(7)
    before: Any = np.random.get_state()
    rows = [np.append(env.reset(0), [0, 0])]
    other.reset(1)
    generator = np.random.default_rng(0)
    for _ in range(20):
        step = env.step(generator.uniform(-1, 1, 2))
        other.step(np.ones(2))
        rows.append(np.concatenate([step.observation, [step.reward], step.cost]))
    other.close()
    np.testing.assert_array_equal(np.array(rows), alone)
    after: Any = np.random.get_state()
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize(
    ("env_id", "steps", "period_ms"),
    [
        ("SafetyBallCircle-v0", 200, 100.0),
        ("SafetyCarCircle-v0", 300, 100.0),
        ("SafetyBallRun-v0", 100, 1000 / 30),
        ("SafetyCarRun-v0", 200, 1000 / 30),
    ],
)
def test_an_episode_is_as_long_as_it_is_registered(env_id: str, steps: int, period_ms: float) -> None:
    spec = make_env(env_id).spec
    assert (spec.max_episode_steps, spec.cost_names) == (steps, ("cost",))
    assert spec.control_period_ms == pytest.approx(period_ms)
    assert make_env(env_id, max_episode_steps=7).spec.max_episode_steps == 7


def test_a_ball_that_runs_out_of_the_boundary_costs_one_a_step() -> None:
    env = make_env("SafetyBallCircle-v0")  # safe between x = -6 and 6; the observation has x / 10
    env.reset(0)
    steps = [env.step(np.array([1.0, 0.0])) for _ in range(150)]
    outside = [float(step.observation[0] > 0.6) for step in steps]
    assert 0 < sum(outside) < len(steps)
    assert [float(step.cost[0]) for step in steps] == outside


def test_the_package_may_be_named_and_a_task_is_not_the_one_of_the_other_package() -> None:
    assert make_env("bullet_safety_gym:SafetyCarCircle-v0").spec.max_episode_steps == 300
    assert make_env("SafetyCarCircle-v0").spec.observation_size == 8
    assert make_env("SafetyCarCircle1-v0").spec.observation_size == 40


def test_a_frame_is_a_picture() -> None:
    env = make_env("SafetyBallCircle-v0", render=True)
    env.reset(0)
    frame = env.render()
    assert frame is not None
    assert frame.shape == (360, 480, 3)
    assert frame.std() > 0


@pytest.mark.parametrize("missing", ["bullet_safety_gym", "pybullet"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from cvpo.envs import make_env\n"
        "from cvpo.errors import EnvError\n"
        "try:\n    make_env('SafetyBallCircle-v0')\n"
        "except EnvError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert missing in said.replace("Bullet-Safety-Gym is", "bullet_safety_gym is")
    assert "pip install --no-deps bullet-safety-gym==1.4.0" in said
