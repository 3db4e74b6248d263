"""The parts of a navigation task, each against the stock method that it stands for."""

import copy
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest

from cvpo.envs import safety_tasks
from cvpo.envs.layout import sample_layout
from cvpo.envs.lidar import Lidar
from cvpo.envs.make import make_gymnasium_env
from cvpo.envs.navigation import NavigationTask, is_known
from cvpo.envs.velocity import VelocityTask


def stock_task(env_id: str) -> Any:
    """After its first reset."""
    with safety_tasks.unseen_worlds():
        env = safety_tasks.load().make(env_id, disable_env_checker=True)
        env.reset(seed=0)
    return env.unwrapped.task


def quick(env_id: str) -> NavigationTask:
    env = make_gymnasium_env(env_id, max_episode_steps=None, render=False)
    assert isinstance(env, NavigationTask)
    return env


def random_state(task: Any) -> Any:
    return task.random_generator.random_generator.get_state()[1:3]


@pytest.mark.parametrize("env_id", ["SafetyPointButton1-v0", "SafetyCarGoal2-v0", "SafetyPointCircle2-v0"])
def test_a_layout_is_the_stock_one_and_leaves_the_same_random_state(env_id: str) -> None:
    task = stock_task(env_id)
    generator = task.random_generator
    for seed in range(3):
        generator.set_random_seed(seed)
        expected, state = generator.build_layout(), random_state(task)
        generator.set_random_seed(seed)
        layout = sample_layout(generator)
        assert layout is generator.layout
        assert list(layout) == list(expected)
        np.testing.assert_array_equal(list(layout.values()), list(expected.values()))
        for got, want in zip(random_state(task), state, strict=True):
            np.testing.assert_array_equal(got, want)


def test_an_object_that_may_stand_in_one_of_several_places_is_drawn_by_the_stock_generator() -> None:
    task = stock_task("SafetyPointGoal1-v0")
    generator = task.random_generator
    generator.placements["goal"] = ([(-1.5, -1.5, -0.5, 1.5), (0.5, -1.5, 1.5, 1.5)], 0.3)
    generator.set_random_seed(5)
    expected = generator.build_layout()
    generator.set_random_seed(5)
    np.testing.assert_array_equal(list(sample_layout(generator).values()), list(expected.values()))


@pytest.mark.parametrize("num_bins", [16, 7])
@pytest.mark.parametrize("alias", [True, False])
def test_the_lidar_reads_what_the_stock_one_does(num_bins: int, alias: bool) -> None:
    task = stock_task("SafetyPointGoal1-v0")
    task.lidar_conf.num_bins, task.lidar_conf.alias = num_bins, alias
    generator = np.random.default_rng(0)
    lidar = Lidar([range(1, 2), range(2, 10), range(10, 13)], task.lidar_conf)
    data = task.data
    for scale in (0.01, 1.0, 3.0, 10.0) * 25:
        data.qpos[:3] = generator.normal(size=3)
        mujoco.mj_forward(task.model, data)
        things = generator.normal(size=(12, 3)) * scale
        expected = [task._obs_lidar_pseudo(kind) for kind in (things[0], list(things[1:9]), things[9:])]
        got = lidar.read(np.vstack([task.agent.pos, things]), task.agent.mat)
        np.testing.assert_array_equal(got, np.concatenate(expected))


@pytest.mark.parametrize(
    "env_id", ["SafetyPointButton2-v0", "SafetyCarPush1-v0", "SafetyAntGoal2-v0", "SafetyRacecarRun0-v0"]
)
def test_every_field_of_the_compiled_model_is_the_stock_ones(env_id: str) -> None:
    env = quick(env_id)
    env.reset(seed=0)
    task = env._task
    for seed in (1, 2):
        env.reset(seed=seed)
        config = task._build_world_config(task.world_info.layout)
        with safety_tasks.unseen_worlds():
            task.world.rebuild(config, state=False)
        stock = fields(task.model)
        env._build(config)
        assert task.model.body_pos.any()
        for name, got in fields(task.model).items():
            np.testing.assert_array_equal(got, stock[name], err_msg=name)


def fields(model: Any) -> dict[str, Any]:
    """All numbers of a model, its options and statistics, but for what is switched off (`leave_out_islands`)."""
    found = {}
    for owner in (model, model.opt, model.stat):
        for name in dir(owner):
            value = None if name.startswith("_") else getattr(owner, name)
            if isinstance(value, np.ndarray | int | float) and name != "disableflags":
                found[f"{type(owner).__name__}.{name}"] = copy.copy(value)
    assert len(found) > 500
    return found


def test_the_memory_of_the_last_episode_is_as_good_as_new() -> None:
    env = quick("SafetyPointButton1-v0")
    generator = np.random.default_rng(0)
    for seed in (0, 1, 2):
        env.reset(seed=seed)
        for _ in range(20):
            env.step(generator.uniform(-1.0, 1.0, 2))
    env._set_model(env._task.model)
    fresh = mujoco.MjData(env._task.model)
    mujoco.mj_forward(env._task.model, fresh)
    np.testing.assert_equal(arrays(env._task.data), arrays(fresh))


def arrays(data: Any) -> dict[str, Any]:
    """All numbers of a simulation, but for the places of a sparse Jacobian, which are not set where it is dense."""
    names = [name for name in dir(data) if not name.startswith(("_", "efc_J_", "iefc_J_"))]
    found = {name: getattr(data, name) for name in names}
    found = {name: value for name, value in found.items() if isinstance(value, np.ndarray | int | float)}
    assert len(found) > 200
    return found


def test_buttons_cost_nothing_and_are_not_seen_for_a_moment_after_one_was_pressed() -> None:
    with safety_tasks.unseen_worlds():
        stock = safety_tasks.load().make("SafetyPointButton1-v0", disable_env_checker=True)
        stock.reset(seed=0)
    env = quick("SafetyPointButton1-v0")
    env.reset(seed=0)
    reported = []
    for task in (stock.unwrapped.task, env._task):
        task.buttons.timer = 2
    for _ in range(3):
        observation, _, _, _, _, info = stock.step(np.ones(2))
        got, _, _, _, our_info = env.step(np.ones(2))
        np.testing.assert_array_equal(got, observation)
        assert our_info == info | {"cost": info["cost_sum"]}
        reported.append("cost_buttons" in our_info)
    assert reported == [False, False, True]


def test_a_world_that_was_changed_is_compiled_as_it_is_now() -> None:
    env = quick("SafetyPointGoal1-v0")
    env.reset(seed=0)
    env._task.hazards.size = 0.35
    env.reset(seed=1)
    assert env._task.model.geom("hazard3").size[0] == 0.35


@pytest.mark.parametrize("env_id", ["SafetyPointGoal1-v0", "SafetyPointButton1-v0", "SafetyCarCircle1-v0"])
def test_the_simulators_forward_pass_changes_nothing_when_it_is_repeated(env_id: str) -> None:
    """Stock tasks make it three times per step, NavigationTask once."""
    env = quick(env_id)
    env.reset(seed=0)
    generator = np.random.default_rng(0)
    model, data = env._task.model, env._task.data
    for _ in range(50):
        env.step(generator.uniform(-1.0, 1.0, 2))
        before = copy.deepcopy(arrays(data))
        mujoco.mj_forward(model, data)
        np.testing.assert_equal(arrays(data), before)


@pytest.mark.parametrize(("env_id", "trees"), [("SafetyCarCircle1-v0", 1), ("SafetyPointGoal1-v0", 2)])
def test_islands_are_left_out_where_there_can_be_one_at_most(env_id: str, trees: int) -> None:
    env = quick(env_id)
    for seed in (0, 1):
        env.reset(seed=seed)
        model = env._task.model
        assert model.ntree == trees
        assert bool(model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_ISLAND) == (trees == 1)


def test_what_is_not_known_stays_with_the_stock_environment() -> None:
    changes: dict[str, Callable[[Any], None]] = {
        "natural lidar": lambda task: setattr(task.lidar_conf, "type", "natural"),
        "exponential lidar": lambda task: setattr(task.lidar_conf, "max_dist", None),
        "compass": lambda task: setattr(task.goal, "is_comp_observed", True),
        "dict": lambda task: setattr(task, "observation_flatten", False),
        "noise": lambda task: setattr(task, "action_noise", 0.1),
        "layout": lambda task: setattr(task.mechanism_conf, "randomize_layout", False),
        "object": lambda task: task._geoms.update(mine=Mine()),
    }
    for name, change in changes.items():
        task = safety_tasks.load().make("SafetyPointGoal1-v0").unwrapped.task
        assert is_known(task)
        change(task)
        assert not is_known(task), name
    assert not isinstance(
        make_gymnasium_env("SafetyPointFadingEasy1-v0", max_episode_steps=None, render=False), NavigationTask
    )


def test_another_version_of_safety_gymnasium_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety_tasks.load(), "__version__", "1.1.0")
    for env_id in ("SafetyPointGoal1-v0", "SafetyAntVelocity-v1"):
        env = make_gymnasium_env(env_id, max_episode_steps=None, render=False)
        assert not isinstance(env, NavigationTask | VelocityTask)
        assert isinstance(env.reset(seed=0)[0], np.ndarray)


class Mine:
    """An object of a user's."""


def test_the_id_that_gymnasium_knows_a_task_by_makes_the_same_environment() -> None:
    for name, version, kind in (("PointGoal1", "v0", NavigationTask), ("AntVelocity", "v1", VelocityTask)):
        env = make_gymnasium_env(f"Safety{name}Gymnasium-{version}", max_episode_steps=None, render=False)
        assert isinstance(env, kind)
        assert env.spec.id == f"Safety{name}-{version}"


@pytest.mark.parametrize("env_id", ["SafetyPointGoal1-v0", "SafetyHalfCheetahVelocity-v1"])
def test_steps_are_taken_between_a_reset_and_an_end(env_id: str) -> None:
    env = make_gymnasium_env(env_id, max_episode_steps=2, render=False)
    assert env.action_space.shape is not None
    action = np.zeros(env.action_space.shape, env.action_space.dtype)
    with pytest.raises(Exception, match="reset"):
        env.step(action)
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(action)[3] for _ in range(2)] == [False, True]
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"[Aa]ction"):
        env.step(np.zeros(99))
