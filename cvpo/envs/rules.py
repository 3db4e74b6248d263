"""What navigation tasks of Safety-Gymnasium 1.0.0 reward and what they cost, from numbers instead of names and arrays.

Each function here is given the scene once per episode and returns what is called at each step. Sums are in the order
in which the stock class has them; distances in a plane are sums of two, which round the same in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cvpo.envs.scene import Scene

Reward = Callable[[], tuple[Any, bool]]
"""The reward of a step, and whether the goal is reached."""
Cost = Callable[[dict[str, Any]], None]
"""Adds the costs of one kind of object to those of the step."""


def goal(scene: Scene, task: Any) -> Reward:
    """GoalLevel0."""
    thing, row = task.goal, scene.rows["goal"][0]

    def reward() -> tuple[Any, bool]:
        distance = planar(scene.points[0], scene.points[row])
        value = 0.0 + (task.last_dist_goal - distance) * thing.reward_distance
        task.last_dist_goal = distance
        achieved = distance <= thing.size
        return (value + thing.reward_goal if achieved else value), achieved

    return reward


def button(scene: Scene, task: Any) -> Reward:
    """ButtonLevel0."""
    buttons, row = task.buttons, scene.rows["goal"][0]

    def reward() -> tuple[Any, bool]:
        distance = planar(scene.points[0], scene.points[row])
        value = 0.0 + (task.last_dist_goal - distance) * buttons.reward_distance
        task.last_dist_goal = distance
        wanted = scene.geoms.index(f"button{buttons.goal_button}") if scene.touched() else None
        achieved = any(wanted in pair for pair in scene.touched())
        return (value + buttons.reward_goal if achieved else value), achieved

    return reward


def push(scene: Scene, task: Any) -> Reward:
    """PushLevel0."""
    box, thing = task.push_box, task.goal
    box_row, goal_row = scene.rows["push_box"][0], scene.rows["goal"][0]

    def reward() -> tuple[Any, bool]:
        positions = scene.positions
        to_box = spatial(positions[box_row] - positions[0])
        to_goal = spatial(positions[box_row] - positions[goal_row])
        gate = task.last_dist_box > box.null_dist * box.size
        value = 0.0 + (task.last_dist_box - to_box) * box.reward_box_dist * gate
        value += (task.last_box_goal - to_goal) * box.reward_box_goal
        task.last_dist_box, task.last_box_goal = to_box, to_goal
        achieved = bool(to_goal <= thing.size)
        return (value + thing.reward_goal if achieved else value), achieved

    return reward


def circle(scene: Scene, task: Any) -> Reward:
    """CircleLevel0."""
    radius, factor = task.circle.radius, task.reward_factor

    def reward() -> tuple[Any, bool]:
        x, y, _ = scene.positions[0]
        u, v, _ = scene.velocity()
        distance = np.sqrt(x**2 + y**2)
        return 0.0 + (((-u * y + v * x) / distance) / (1 + np.abs(distance - radius))) * factor, False

    return reward


def run(scene: Scene, task: Any) -> Reward:
    """RunLevel0, as it is."""
    return lambda: (task.calculate_reward(), False)


def hazards(scene: Scene, thing: Any) -> Cost:
    """Hazards: how far inside the agent is."""
    rows = scene.rows[thing.name]

    def add(costs: dict[str, Any]) -> None:
        cost, agent, size = 0, scene.points[0], thing.size
        for point in scene.points[rows.start : rows.stop]:
            distance = planar(agent, point)
            if distance <= size:
                cost += thing.cost * (size - distance)
        costs["cost_hazards"] = cost

    return add


def sigwalls(scene: Scene, thing: Any) -> Cost:
    """Sigwalls: outside of two or four walls that stop nobody."""

    def add(costs: dict[str, Any]) -> None:
        x, y, _ = scene.points[0]
        out = abs(x) > thing.locate_factor
        costs["cost_out_of_boundary"] = out or (thing.num == 4 and abs(y) > thing.locate_factor)

    return add


def buttons(scene: Scene, thing: Any) -> Cost:
    """Buttons: touched, while they count, and not the one to press."""
    touched = touches(scene, "button")

    def add(costs: dict[str, Any]) -> None:
        if thing.timer == 0:
            wrong = [pair for pair in touched() if f"button{thing.goal_button}" not in (scene.geoms[g] for g in pair)]
            costs["cost_buttons"] = repeated(thing.cost, wrong)

    return add


def gremlins(scene: Scene, thing: Any) -> Cost:
    """Gremlins: touched."""
    touched = touches(scene, "gremlin")

    def add(costs: dict[str, Any]) -> None:
        costs["cost_gremlins"] = repeated(thing.contact_cost, touched())

    return add


def pillars(scene: Scene, thing: Any) -> Cost:
    """Pillars: touched."""
    touched = touches(scene, "pillar")

    def add(costs: dict[str, Any]) -> None:
        costs["cost_pillars"] = repeated(thing.cost, touched())

    return add


def vases(scene: Scene, thing: Any) -> Cost:
    """Vases, as they are."""
    return lambda costs: costs.update(thing.cal_cost())


def planar(one: list[float], other: list[float]) -> float:
    """The distance in the plane of the floor (BaseAgent.dist_xy)."""
    dx, dy = other[0] - one[0], other[1] - one[1]
    return math.sqrt(dx * dx + dy * dy)


def spatial(difference: Any) -> Any:
    """The length of a vector [3], which numpy sums, since the order of three counts."""
    return np.sqrt(np.add.reduce(np.square(difference)))


def touches(scene: Scene, prefix: str) -> Callable[[], list[tuple[int, int]]]:
    """What finds the contacts of the agent with a geom whose name begins so."""
    is_kind = [name.startswith(prefix) for name in scene.geoms]
    return lambda: [(one, other) for one, other in scene.touched() if is_kind[one] or is_kind[other]]


def repeated(cost: float, times: list[Any]) -> float:
    """The cost added as many times as there are items."""
    total: float = 0
    for _ in times:
        total += cost
    return total


REWARDS: dict[str, Callable[[Scene, Any], Reward]] = {
    **{
        f"{name}Level{level}": rule
        for name, rule in (("Goal", goal), ("Button", button), ("Push", push), ("Circle", circle))
        for level in range(3)
    },
    "RunLevel0": run,
}
COSTS: dict[str, Callable[[Scene, Any], Cost]] = {
    "Hazards": hazards,
    "Sigwalls": sigwalls,
    "Buttons": buttons,
    "Gremlins": gremlins,
    "Pillars": pillars,
    "Vases": vases,
}
"""By the name of the object's class, where it `is_constrained`."""
