"""The bodies, contacts and sensors of a navigation task, read from the simulator's memory instead of by their names."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

BODIES = {  # of each kind of object; the world's own body is at the origin, where the circle is
    "Circle": "world",
    "Goal": "goal",
    "Buttons": "button{}",
    "Hazards": "hazard{}",
    "Pillars": "pillar{}",
    "Sigwalls": "sigwall{}",
    "Vases": "vase{}",
    "PushBox": "push_box",
    "Gremlins": "gremlin{}obj",
}


class Scene:
    """One compiled world of a task. What is looked up, is looked up here, once per episode."""

    def __init__(self, task: Any) -> None:
        self._model, self._data = model, data = task.model, task.data
        self._frames = task.sim_conf.frameskip_binom_n, task.sim_conf.frameskip_binom_p
        self._draw_frames = task.random_generator.random_generator.binomial
        self._low, self._high = model.actuator_ctrlrange[:, 0].copy(), model.actuator_ctrlrange[:, 1].copy()
        self.control = data.ctrl
        self._gremlins = next(iter(task._mocaps.values()), None)
        self._mocap_position = data.mocap_pos

        names = ["agent"]
        self.rows: dict[str, range] = {}
        """Of `positions` and `points`, for each object by its name; the agent is row 0."""
        for thing in task._obstacles:
            body, count = BODIES[type(thing).__name__], getattr(thing, "num", 1)
            self.rows[thing.name] = range(len(names), len(names) + count)
            names += [body.format(index) for index in range(count)]
        self._bodies = np.array([model.body(name).id for name in names])
        self._body_positions = data.xpos
        self.agent = int(self._bodies[0])
        self.turn: NDArray[np.float64] = data.xmat[self.agent].reshape(3, 3)
        """The agent's rotation matrix [3, 3], as it is now."""

        self.geoms = [model.geom(index).name for index in range(model.ngeom)]
        of_agent = set(task.agent.body_info.geom_names)
        self._is_agent = [name in of_agent for name in self.geoms]
        self._jacobian = np.zeros((3, model.nv))

    def look(self) -> None:
        """Read where everything is, after the simulator's forward pass."""
        self.positions: NDArray[np.float64] = self._body_positions.take(self._bodies, axis=0)
        """[N, 3]"""
        self.points: list[list[float]] = self.positions.tolist()
        """The same as numbers, which are quicker one by one."""
        self._touched: list[tuple[int, int]] | None = None

    def advance(self, action: NDArray[Any]) -> None:
        """Simulate one step of the task, as Underlying.simulation_forward does.

        Its forward pass at the end is the only one: MuJoCo's gives the same, to the bit, when nothing was changed, and
        stock tasks repeat it before they compute costs and observations.
        """
        model, data, step = self._model, self._data, mujoco.mj_step
        np.minimum(np.maximum(action, self._low), self._high, out=self.control)
        frames = self._draw_frames(*self._frames)
        if self._gremlins is None:
            step(model, data, frames)
        else:
            self._mocap_position[:, 2] = self._gremlins.size
            for _ in range(frames):
                phase, travel = data.time, self._gremlins.travel
                self._mocap_position[:, 0] = np.sin(phase) * travel
                self._mocap_position[:, 1] = np.cos(phase) * travel
                step(model, data)
        mujoco.mj_forward(model, data)
        self.look()

    def touched(self) -> list[tuple[int, int]]:
        """Pairs of geoms in contact of which one is the agent's."""
        if self._touched is None:
            is_agent = self._is_agent
            pairs = self._data.contact.geom.tolist() if self._data.ncon else []
            self._touched = [(one, other) for one, other in pairs if is_agent[one] or is_agent[other]]
        return self._touched

    def velocity(self) -> NDArray[np.float64]:
        """Of the agent's body [3]."""
        mujoco.mj_jacBody(self._model, self._data, self._jacobian, None, self.agent)
        return np.dot(self._jacobian, self._data.qvel)  # type: ignore[no-any-return]  # numpy's stub


class Senses:
    """The agent's part of an observation: sensors as they are, then angles and orientations made continuous.

    The order is that of BaseAgent.build_sensor_observation_space.
    """

    def __init__(self, agent: Any, model: Any, data: Any) -> None:
        info = agent.sensor_info
        self._readings = data.sensordata

        def addresses(name: str) -> list[int]:
            sensor = model.sensor(name)
            start = int(sensor.adr[0])
            return list(range(start, start + int(sensor.dim[0])))

        direct = [*agent.sensor_conf.sensors, *info.hinge_vel_names, *info.ballangvel_names]
        index = [address for name in direct for address in addresses(name)]
        if info.freejoint_pos_name:
            index += addresses(info.freejoint_pos_name)[2:]
        if info.freejoint_qvel_name:
            index += addresses(info.freejoint_qvel_name)
        self._direct = np.array(index, np.intp)
        self._angles = np.array([address for name in info.hinge_pos_names for address in addresses(name)], np.intp)
        self._balls = [slice(addresses(name)[0], addresses(name)[0] + 4) for name in info.ballquat_names]
        self._direct_end = len(index)
        self._angles_end = self._direct_end + 2 * len(self._angles)
        self.size = self._angles_end + 9 * len(self._balls)

    def read(self, observation: NDArray[np.float64]) -> None:
        """Write the senses to the first `size` values of an observation."""
        readings, start = self._readings, self._angles_end
        observation[: self._direct_end] = readings.take(self._direct)
        if self._angles_end > self._direct_end:
            angles = readings.take(self._angles)
            observation[self._direct_end : start : 2] = np.sin(angles)
            observation[self._direct_end + 1 : start : 2] = np.cos(angles)
        for ball in self._balls:
            mujoco.mju_quat2Mat(observation[start : start + 9], readings[ball])
            start += 9
