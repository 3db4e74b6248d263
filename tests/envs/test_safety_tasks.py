"""Safety-Gymnasium's tasks: every kind is made, and none computes anything else than the stock one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvpo.envs import make_env
from cvpo.envs.make import make_gymnasium_env
from cvpo.errors import EnvError
from tests.envs import stock

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stock_trajectories(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stock")
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.envs.stock", "stock.npz"]
    subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True)
    return np.load(folder / "stock.npz")


@pytest.mark.parametrize("env_id", stock.TASKS)
def test_trajectories_equal_the_stock_environments_to_the_bit(env_id: str, stock_trajectories: Any) -> None:
    env = make_gymnasium_env(env_id, max_episode_steps=stock.HORIZON, render=False)

    def reset(seed: int) -> stock.Array:
        observation: stock.Array = env.reset(seed=seed)[0]
        return observation

    def step(action: stock.Array) -> stock.Result:
        observation, reward, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
        return observation, float(reward), terminated, truncated, info

    assert env.action_space.shape is not None
    rows, costs = stock.trajectory(env_id, reset, step, env.action_space.shape[0])
    np.testing.assert_array_equal(rows.view(np.int64), stock_trajectories[env_id].view(np.int64))  # -0.0 is not 0.0
    np.testing.assert_array_equal(costs, stock_trajectories[f"{env_id} costs"])


def test_what_is_compared_has_costs_ends_and_a_goal_that_moves(stock_trajectories: Any) -> None:
    reward, cost, terminated, truncated = range(-stock.LAST, 0)  # columns
    assert stock_trajectories["SafetyPointGoal1-v0"][:, reward].max() > 1.0  # the bonus of a goal that is reached
    for name in ("PointGoal1", "PointCircle1", "PointButton1", "CarGoal1", "CarCircle1", "PointPush2"):
        assert stock_trajectories[f"Safety{name}-v0"][:, cost].sum() > 0, name
    assert stock_trajectories["SafetyHopperVelocity-v1"][:, terminated].any()
    assert stock_trajectories["SafetyPointPush1-v0"][:, truncated].sum() == len(stock.SEEDS)
    assert any("cost_buttons" in text for text in stock_trajectories["SafetyPointButton1-v0 costs"])


@pytest.mark.parametrize("agent", ["Point", "Car", "Doggo", "Racecar", "Ant"])
@pytest.mark.parametrize("task", ["Goal1", "Button0", "Push1", "Circle2", "Run0"])
def test_every_agent_and_navigation_task_is_made_and_stepped(agent: str, task: str) -> None:
    check_a_step(f"Safety{agent}{task}-v0", 500 if task in ("Circle2", "Run0") else 1000)


@pytest.mark.parametrize("agent", ["HalfCheetah", "Hopper", "Swimmer", "Walker2d", "Ant", "Humanoid"])
def test_every_velocity_task_is_made_and_stepped(agent: str) -> None:
    check_a_step(f"Safety{agent}Velocity-v1", 1000)


def check_a_step(env_id: str, horizon: int) -> None:
    env = make_env(env_id)
    assert env.spec.max_episode_steps == horizon
    first = env.reset(seed=0)
    assert first.shape == env.step(env.spec.action_high / 2).observation.shape == (env.spec.observation_size,)
    simulator: Any = getattr(env._env.unwrapped, "task", env._env.unwrapped)
    substeps = getattr(simulator, "frame_skip", 10)  # a navigation task takes 10
    assert env.spec.control_period_ms == pytest.approx(1000 * simulator.model.opt.timestep * substeps)


def test_costs_of_one_kind_can_be_picked() -> None:
    env = make_env("SafetyPointGoal2-v0", cost_names=("cost_hazards", "cost_vases_contact"))
    env.reset(seed=0)
    assert env.step(np.zeros(2)).cost.shape == (2,)


def test_a_cost_that_the_task_does_not_have_is_answered_with_those_it_has() -> None:
    env = make_env("SafetyPointGoal1-v0", cost_names=("cost_hazard",))
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r'no cost "cost_hazard" \(it has cost, cost_hazards, cost_sum\)'):
        env.step(np.zeros(2))


@pytest.mark.parametrize("horizon", [7, 1002])
def test_the_horizon_of_a_navigation_task_can_be_changed(horizon: int) -> None:
    env = make_env("SafetyPointRun0-v0", max_episode_steps=horizon)
    env.reset(seed=0)
    assert [env.step(np.zeros(2)).truncated for _ in range(horizon)] == [False] * (horizon - 1) + [True]


def test_the_swimmer_touches_neither_itself_nor_the_floor() -> None:
    env = make_env("SafetySwimmerVelocity-v1")
    env.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(200):
        env.step(generator.uniform(-1.0, 1.0, 2))
    data: Any = env._env.unwrapped.data  # type: ignore[attr-defined]  # a MuJoCo environment
    assert np.abs(data.qpos[2:]).max() > 1.0  # it bends enough to touch itself
    assert data.ncon == 0


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("SafetyPointGoal1Vision-v0", "observes camera pictures; use SafetyPointGoal1-v0"),
        ("SafetyCarRun0Debug-v0", "is driven from a keyboard; use SafetyCarRun0-v0"),
    ],
)
def test_a_task_for_a_camera_or_a_keyboard_is_refused_with_its_plain_twin(env_id: str, says: str) -> None:
    with pytest.raises(EnvError, match=says):
        make_env(env_id)


def test_frames_follow_the_world_through_steps_and_resets() -> None:
    code = (
        "import numpy as np\n"
        "from cvpo.envs import make_env\n"
        "for env_id in ('SafetyPointGoal1-v0', 'SafetySwimmerVelocity-v1'):\n"
        "    env = make_env(env_id, render=True)\n"
        "    env.reset(0)\n"
        "    frames = [env.render()]\n"
        "    for _ in range(10):\n"
        "        env.step(np.ones(2))\n"
        "    frames.append(env.render())\n"
        "    env.reset(1)\n"
        "    frames.append(env.render())\n"
        "    env.close()\n"
        "    assert all(frame.shape == (480, 480, 3) and frame.dtype == np.uint8 for frame in frames)\n"
        "    assert len({frame.tobytes() for frame in frames}) == 3\n"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT), "MUJOCO_GL": "egl"}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    if run.returncode and "EGL" in run.stderr:
        pytest.skip("this machine has no EGL")
    assert run.returncode == 0, run.stderr


def test_only_a_world_that_is_rendered_has_a_sky() -> None:
    texture_bytes = []
    for render in (False, True):
        env = make_gymnasium_env("SafetyPointCircle1-v0", max_episode_steps=None, render=render)
        env.reset(seed=0)
        simulator: Any = env.unwrapped
        texture_bytes.append(simulator.task.model.ntexdata)
    assert texture_bytes[0] < 1e6 < 20e6 < texture_bytes[1]


def test_the_mends_leave_no_trace(tmp_path: Path) -> None:
    code = (
        "import dataclasses, yaml, xmltodict, cvpo.envs\n"
        "before = dataclasses.dataclass\n"
        "cvpo.envs.make_env('SafetyPointGoal1-v0').reset(0)\n"
        "cvpo.envs.make_env('SafetyHalfCheetahVelocity-v1').reset(0)\n"
        "import safety_gymnasium.world as world\n"
        "assert dataclasses.dataclass is before and world.yaml is yaml and world.xmltodict is xmltodict\n"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())  # MuJoCo's MUJOCO_LOG.TXT among them
