"""Safety-Gymnasium's navigation tasks, stepped and reset in one pass that computes what the stock one does, to the bit.

The stock task is made, and keeps the configuration and the state of the episode; what it computes at each step (bodies
looked up by name, contacts by the names of their geoms, lidar object by object, the simulator's forward pass three
times) is computed here from views of the simulator's memory. What is rare, a goal that is reached above all, is left
to its own methods. A task, object or setting that is not known here stays with the stock environment.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from cvpo.envs import safety_tasks
from cvpo.envs.layout import sample_layout
from cvpo.envs.lidar import Lidar
from cvpo.envs.physics import leave_out_islands, set_state, state_of
from cvpo.envs.rules import COSTS, REWARDS
from cvpo.envs.scene import BODIES, Scene, Senses
from cvpo.envs.world import World, places

AGENTS = {"Point", "Car", "Doggo", "Racecar", "Ant"}


def is_known(task: Any) -> bool:
    """Whether everything in a task is of a kind that NavigationTask computes."""
    lidar, mechanism = task.lidar_conf, task.mechanism_conf
    return (
        _stock_name(task) in REWARDS
        and _stock_name(task.agent) in AGENTS
        and all(_stock_name(thing) in BODIES for thing in task._obstacles)
        and not any(getattr(thing, "is_comp_observed", False) for thing in task._obstacles)
        and not any(getattr(thing, "is_meshed", False) for thing in task._obstacles)
        and (lidar.type, task.observation_flatten, mechanism.randomize_layout) == ("pseudo", True, True)
        and lidar.max_dist is not None
        and not (task.action_noise or task.observe_vision or task.debug or task.reward_conf.reward_orientation)
        and not task._is_load_static_geoms
    )


def _stock_name(thing: Any) -> str:
    """The name of its class, or nothing if the class is not Safety-Gymnasium's own."""
    return type(thing).__name__ if type(thing).__module__.startswith("safety_gymnasium.") else ""


class NavigationTask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A navigation task that `is_known`, with its cost in `info["cost"]`; the time limit is kept here, too."""

    def __init__(self, builder: Any, spec: EnvSpec) -> None:
        """Args:
        builder: a Builder of Safety-Gymnasium, without its wrappers.
        spec: what it is registered as, with its horizon.
        """
        assert spec.max_episode_steps is not None
        super().__init__(builder)
        self._spec, self._horizon = spec, spec.max_episode_steps
        self._builder, self._task = builder, builder.task
        self._steps: int | None = None
        self._ended = True
        self._world: World | None = None

    @property
    def spec(self) -> EnvSpec:  # type: ignore[override]  # of a wrapper it is computed, too
        return self._spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As Builder.reset."""
        if seed is not None:
            self._builder.set_seed(seed)
        task = self._task
        self._ended, self._steps = False, 0
        self._prepare()
        layout = task.world_info.layout = sample_layout(task.random_generator)
        task.world_info.reset_layout = {name: place.copy() for name, place in layout.items()}
        config = task.world_info.world_config_dict = task._build_world_config(layout)
        self._build(config)
        task.update_world()
        task.specific_reset()
        task.agent.reset()
        mujoco.mj_forward(task.model, task.data)
        self._scene.look()
        costs = self._cost()
        assert costs["cost_sum"] == 0, f"World has starting cost! {costs}"
        return self._observe(), {}

    def step(self, action: NDArray[Any]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As Builder.step."""
        assert not self._ended, "Environment must be reset before stepping."
        assert self._steps is not None  # or it would be ended
        task, scene = self._task, self._scene
        if action.shape != scene.control.shape:
            raise ValueError("Action dimension mismatch")
        scene.advance(action)
        reward, achieved = self._reward()
        clip = task.reward_conf.reward_clip
        if clip and not -clip < reward < clip:
            reward = np.clip(reward, -clip, clip)
        info = self._cost()
        cost = info["cost_sum"]
        task.specific_step()
        terminated = False
        if achieved:
            info["goal_met"] = True
            terminated = not task.mechanism_conf.continue_goal or not self._set_next_goal()
        terminated = terminated or not task.agent.is_alive()
        self._steps += 1
        truncated = self._steps >= self._horizon
        self._ended = terminated or truncated
        info["cost"] = cost
        return self._observe(), reward, terminated, truncated, info

    def _set_next_goal(self) -> bool:
        """Set a new goal in the world as it is now, and return whether there was room for one."""
        task = self._task
        task.update_layout()
        try:
            task.update_world()
        except importlib.import_module("safety_gymnasium.utils.common_utils").ResamplingError:
            if not task.mechanism_conf.terminate_resample_failure:
                raise
            return False
        self._scene.look()
        return True

    def _cost(self) -> dict[str, Any]:
        costs: dict[str, Any] = {}
        for add in self._costs:
            add(costs)
        costs["cost_sum"] = sum(costs.values())
        if self._task.cost_conf.constrain_indicator:
            for name in costs:
                costs[name] = float(costs[name] > 0.0)
        return costs

    def _observe(self) -> NDArray[np.float64]:
        scene, senses, lidar = self._scene, self._senses, self._lidar
        observation = np.empty(senses.size + lidar.size)
        senses.read(observation)
        observation[senses.size :] = lidar.read(scene.positions, scene.turn)
        if self._buttons is not None and self._buttons.timer != 0:  # for a moment after one is pressed, none is seen
            observation[self._buttons_seen] = 0.0
        return observation

    def _prepare(self) -> None:
        """Say where things may stand, which stays so (the first lines of Underlying._build)."""
        placements, generator = self._task.placements_conf, self._task.random_generator
        if placements.placements is None:
            self._task._build_placements_dict()
            generator.set_placements_info(placements.placements, placements.extents, placements.margin)

    def _build(self, config: dict[str, Any]) -> None:
        """Compile the world of a configuration, and look up what the steps of its episode need."""
        task = self._task
        self._stand = places(config)
        if self._world is not None and self._world.fits(config):
            self._set_model(self._world.compile(self._stand))
        else:
            with safety_tasks.unseen_worlds():
                if task.world is None:
                    stock = importlib.import_module("safety_gymnasium.world")
                    task.world = stock.World(task.agent, task._obstacles, config)
                else:
                    task.world.parse(config)
                task.world.build()
            self._world = World(task.world.xml_string, config)
            leave_out_islands(task.model)
        self._bind()

    def _set_model(self, model: Any) -> None:
        """Start to simulate another layout of the same world, in the memory of the last one: they are as large."""
        leave_out_islands(model)
        data = self._task.data
        mujoco.mj_resetData(model, data)
        mujoco.mj_forward(model, data)
        self._task.world.engine.update(model, data)

    def _bind(self) -> None:
        task = self._task
        self._scene = scene = Scene(task)
        self._senses = Senses(task.agent, task.model, task.data)
        seen = [thing for thing in task._obstacles if thing.is_lidar_observed]
        self._lidar = Lidar([scene.rows[thing.name] for thing in seen], task.lidar_conf)
        self._reward = REWARDS[type(task).__name__](scene, task)
        self._costs = [
            COSTS[type(thing).__name__](scene, thing)
            for thing in task._obstacles
            if thing.is_constrained and type(thing).__name__ in COSTS
        ]
        self._buttons = getattr(task, "buttons", None)
        if self._buttons is not None:
            start = self._senses.size + seen.index(self._buttons) * task.lidar_conf.num_bins
            self._buttons_seen = slice(start, start + task.lidar_conf.num_bins)

    # The state of an episode, a few kilobytes: where things stand, how they move, what the task remembers.

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(safety_tasks.make_task, max_episode_steps=self._horizon, render=False)
        return make, (self._builder.spec.id,), self._state()

    def _state(self) -> dict[str, Any]:
        task = self._task
        state: dict[str, Any] = {
            "steps": self._steps,
            "ended": self._ended,
            "random": task.random_generator.random_generator,
        }
        if self._steps is not None:
            state |= {
                "layout": {name: place.tolist() for name, place in task.world_info.layout.items()},
                "stand": self._stand,
                "numbers": [_numbers(thing) for thing in (task, task.agent, *task._obstacles)],
                "bodies": task.model.body_pos.copy(),  # goals are moved in the model
                "physics": state_of(task.model, task.data),
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        task = self._task
        self._steps, self._ended = state["steps"], state["ended"]
        if self._steps is not None:
            self._prepare()
            layout = {name: np.array(place) for name, place in state["layout"].items()}
            task.world_info.layout = task.random_generator.layout = layout
            config = task.world_info.world_config_dict = task._build_world_config(layout)
            self._build(config)
            self._stand = state["stand"]
            assert self._world is not None
            self._set_model(self._world.compile(self._stand))
            task.model.body_pos[:] = state["bodies"]
            set_state(task.model, task.data, state["physics"])
            for thing, numbers in zip((task, task.agent, *task._obstacles), state["numbers"], strict=True):
                vars(thing).update(numbers)
        task.random_generator.random_generator = state["random"]
        if self._steps is not None:
            self._bind()
            self._scene.look()


def _numbers(thing: Any) -> dict[str, Any]:
    """What a task, an agent or an object remembers from one step to the next."""
    return {name: value for name, value in vars(thing).items() if isinstance(value, int | float | np.number)}
