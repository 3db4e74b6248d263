"""The MuJoCo model of a navigation task, parsed once and compiled anew for each episode's layout."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

KINDS = ("geoms", "free_geoms", "mocaps")  # of things in a configuration of Safety-Gymnasium's World
Places = dict[str, tuple[list[float], float]]
"""Position [3] ([2] of the agent, whose height is fixed) and angle about the vertical of each thing, by its name."""


def places(config: dict[str, Any]) -> Places:
    """Where the things of a configuration stand."""
    stand = {
        name: (thing["pos"].tolist(), float(thing["rot"])) for kind in KINDS for name, thing in config[kind].items()
    }
    return {"agent": (config["agent_xy"].tolist(), float(config["agent_rot"])), **stand}


def rest(config: dict[str, Any]) -> dict[str, Any]:
    """What else a configuration says: all that does not depend on the layout."""
    things = {
        kind: [
            {key: _plain(thing[key]) for key in thing if key not in ("pos", "rot")} for thing in config[kind].values()
        ]
        for kind in KINDS
    }
    others = {key: _plain(value) for key, value in config.items() if key not in ("agent_xy", "agent_rot", *KINDS)}
    return {**others, **things}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


class World:
    """What Safety-Gymnasium's `World.build` compiles, without reading and writing XML at each reset.

    The first layout's XML is parsed to a specification, whose positions and orientations are then overwritten. The
    compiler gets the same numbers, so every field of the model is the same.
    """

    def __init__(self, xml: str, config: dict[str, Any]) -> None:
        """Parse the XML that was made of a configuration without meshes, which are turned in other ways."""
        self._spec = mujoco.MjSpec.from_string(xml)
        self._rest = rest(config)
        self._agent, self._camera = self._spec.body("agent"), self._spec.camera("track")
        self._height = float(self._agent.pos[2])
        bodies = {name: self._spec.body(name) for kind in ("geoms", "free_geoms") for name in config[kind]}
        self._things = {**bodies, **{name: self._spec.geom(name) for name in config["mocaps"]}}

    def fits(self, config: dict[str, Any]) -> bool:
        """Whether a configuration differs from the first one in its layout only."""
        return rest(config) == self._rest

    def compile(self, stand: Places) -> Any:
        """The model (an MjModel) of a layout."""
        for name, (position, angle) in stand.items():
            thing = self._things[name] if name != "agent" else self._agent
            thing.pos = position if name != "agent" else [*position, self._height]
            thing.quat = [np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]
        theta = stand["agent"][1] + np.pi  # the camera that tracks the agent stands behind it
        self._camera.pos = [0 * np.cos(theta) - 2 * np.sin(theta), 0 * -np.sin(theta) - 2 * np.cos(theta), 2]
        self._camera.alt.xyaxes = [np.cos(theta), -np.sin(theta), 0, np.sin(theta), np.cos(theta), 1]
        return self._spec.compile()
