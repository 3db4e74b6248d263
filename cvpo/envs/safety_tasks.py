"""Safety-Gymnasium 1.0.0 on current Python and MuJoCo: imported with a mend, its tasks made fast and without its noise.

Nothing here changes what a task computes: trajectories are the stock environment's to the bit. Each mend is
in force only while the import, the construction or the reset that needs it runs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import io
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import gymnasium
import numpy as np

from cvpo.errors import EnvError

KNOWN_VERSION = "1.0.0"  # whose arithmetic the quick tasks repeat
INSTALL = "run `make install`, or `pip install --no-deps safety-gymnasium==1.0.0`"

_mending = threading.RLock()  # the mends replace names in other modules: one at a time


def load() -> ModuleType:
    """Import safety_gymnasium, which registers its tasks, and return it.

    Raises:
        EnvError: it is not installed, or does not work with the installed Gymnasium; says what to install.
    """
    if loaded := sys.modules.get("safety_gymnasium"):
        return loaded
    if int(gymnasium.__version__.partition(".")[0]) >= 1:
        raise EnvError(
            f"Safety-Gymnasium does not work with gymnasium {gymnasium.__version__}; "
            f"install gymnasium==0.29.1 (`pip install gymnasium==0.29.1`)."
        )
    with (
        _mending,
        _ndarray_defaults_allowed(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # gymnasium_robotics' notices
        try:
            return importlib.import_module("safety_gymnasium")
        except ModuleNotFoundError as error:
            if error.name == "safety_gymnasium":
                raise EnvError(f"Safety-Gymnasium is not installed; {INSTALL}.") from error
            raise EnvError(f"Safety-Gymnasium needs {error.name}, which is not installed; {INSTALL}.") from error


def task_ids() -> set[str]:
    """The id of every Safety-Gymnasium task, with its import as a consequence."""
    registration = importlib.import_module(f"{load().__name__}.utils.registration")
    return set(registration.safe_registry)


def plain_id(env_id: str) -> str:
    """`SafetyPointGoal1-v0` for `SafetyPointGoal1Gymnasium-v0`, under which Gymnasium knows the same task, too."""
    return re.sub(r"^(Safety\w+)Gymnasium(-v\d+)$", r"\1\2", env_id)


def make_task(env_id: str, *, max_episode_steps: int | None, render: bool) -> gymnasium.Env[Any, Any]:
    """Make one of `task_ids()` as a Gymnasium environment with its cost in `info["cost"]`.

    Raises:
        EnvError: the task sees through a camera, or is driven from a keyboard.
    """
    safety_gymnasium = load()
    with _mending, _swimmer_loads(), _mujoco_warnings_dropped():
        env = safety_gymnasium.make(
            env_id,
            max_episode_steps=max_episode_steps,
            render_mode="rgb_array" if render else None,
            disable_env_checker=True,
        )
    assert isinstance(env, gymnasium.Env)
    task = getattr(env.unwrapped, "task", None)  # navigation tasks have one, velocity tasks are plain MuJoCo ones
    if task is not None:
        if task.observe_vision or task.debug:
            how = "observes camera pictures" if task.observe_vision else "is driven from a keyboard"
            raise EnvError(f"{env_id} {how}; use {env_id.replace('Vision', '').replace('Debug', '')}.")
        if max_episode_steps is not None:
            task.num_steps = max_episode_steps  # a second time limit inside
        env.unwrapped.dt = _control_period(task)  # type: ignore[attr-defined]  # as MuJoCo environments call it
    made: Any = None
    if not render and safety_gymnasium.__version__ == KNOWN_VERSION:
        made = _quick(env, task)
    if made is None:
        made = safety_gymnasium.wrappers.SafetyGymnasium2Gymnasium(env)
        if task is not None:
            task.obs_info.obs_space_dict = _UncheckedDict(task.obs_info.obs_space_dict.spaces)
        if render:
            made = _FilmedWorld(made)
        elif task is not None:
            made = _UnseenWorld(made)
    assert isinstance(made, gymnasium.Env)
    if task is not None:
        made.metadata = {**made.metadata, "closeness": _closeness(task)}
    return made


def _closeness(task: Any) -> list[int]:
    """Where the lidars of what costs are in the flat observation of a navigation task."""
    costly = {f"{thing.name}_lidar" for thing in task._obstacles if thing.is_constrained}
    found: list[int] = []
    start = 0
    for name, space in task.obs_info.obs_space_dict.spaces.items():
        size = gymnasium.spaces.flatdim(space)
        if name in costly:
            found += range(start, start + size)
        start += size
    return found


def _quick(env: gymnasium.Env[Any, Any], task: Any) -> Any:
    """The same with less work, or None where that is not known to be the same."""
    spec = env.spec
    if spec is None or spec.max_episode_steps is None:
        return None
    if task is None:
        return _module("velocity").VelocityTask(env.unwrapped, spec)
    navigation = _module("navigation")
    known = task.num_steps == spec.max_episode_steps and navigation.is_known(task)
    return navigation.NavigationTask(env.unwrapped, spec) if known else None


def _module(name: str) -> Any:
    """One of those that import MuJoCo."""
    return importlib.import_module(f"cvpo.envs.{name}")


class _UnseenWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Leaves the sky out of the world, which each reset compiles anew: it takes most of a second and nobody sees it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with unseen_worlds():
            return self.env.reset(seed=seed, options=options)


class _FilmedWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Renders with MuJoCo's own renderer: the stock ones, made for MuJoCo 2, crash the process on MuJoCo 3.

    A navigation task's always does. Gymnasium 0.29's, of a velocity task, does in one of four processes in which a
    renderer was closed before.
    """

    _renderer: Any = None
    _model: Any = None

    def render(self) -> Any:
        """The world from above and afar, or the body from where it is followed [480, 480, 3]."""
        mujoco = importlib.import_module("mujoco")
        task = getattr(self.unwrapped, "task", None)
        simulator: Any = task if task is not None else self.unwrapped
        if self._model is not simulator.model:  # a reset compiled a new world
            self._forget()
            self._renderer, self._model = mujoco.Renderer(simulator.model, 480, 480), simulator.model
        options = mujoco.MjvOption()
        options.geomgroup[:] = 1
        camera = "fixedfar" if task is not None else "track"
        self._renderer.update_scene(simulator.data, camera=camera, scene_option=options)
        return self._renderer.render()

    def close(self) -> None:
        self._forget()
        super().close()  # type: ignore[no-untyped-call]  # gymnasium 0.29 leaves it unannotated

    def _forget(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = self._model = None


class _UncheckedDict(gymnasium.spaces.Dict):
    """A space that contains everything. Tasks assert it of each observation, which takes a fifth of a short step."""

    def contains(self, x: Any) -> bool:
        return True


def _control_period(task: Any) -> float:
    """Seconds of simulation per step of a navigation task, whose model exists from the first reset on only."""
    directory = importlib.import_module("safety_gymnasium.world").BASE_DIR
    option = ElementTree.parse(Path(directory, task.agent.base)).find("option")
    timestep = option.get("timestep", "0.002") if option is not None else "0.002"  # MuJoCo's default
    return float(timestep) * float(task.sim_conf.frameskip_binom_n)


@contextlib.contextmanager
def _ndarray_defaults_allowed() -> Iterator[None]:
    """Let dataclasses have numpy arrays as defaults, as before Python 3.11; each instance gets its own copy."""
    strict: Callable[..., Any] = dataclasses.dataclass

    def lenient(cls: type | None = None, /, **options: bool) -> Any:
        if cls is None:
            return functools.partial(lenient, **options)
        for name in vars(cls).get("__annotations__", {}):
            if isinstance(default := vars(cls).get(name), np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=default.copy))
        return strict(cls, **options)

    with _replaced(dataclasses, "dataclass", lenient):
        yield


@contextlib.contextmanager
def unseen_worlds() -> Iterator[None]:
    """Compile worlds without the 24 MB skybox picture, and read the file of their assets once only."""
    world = importlib.import_module(f"{load().__name__}.world")
    xmltodict = world.xmltodict

    def unparse(xml: dict[str, Any]) -> str:
        asset = xml["mujoco"]["asset"]
        asset["texture"] = [texture for texture in asset["texture"] if texture.get("@type") != "skybox"]
        return str(xmltodict.unparse(xml))

    def load_yaml(file: io.TextIOWrapper, Loader: type) -> Any:  # noqa: N803 - yaml's own name
        return copy.deepcopy(_parsed_yaml(file.name))

    with (
        _mending,
        _replaced(world, "xmltodict", SimpleNamespace(parse=xmltodict.parse, unparse=unparse)),
        _replaced(world, "yaml", SimpleNamespace(load=load_yaml, FullLoader=world.yaml.FullLoader)),
    ):
        yield


@functools.cache
def _parsed_yaml(path: str) -> Any:
    yaml = importlib.import_module("yaml")
    return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.FullLoader)


@contextlib.contextmanager
def _swimmer_loads() -> Iterator[None]:
    """Load the Swimmer, whose model has an attribute that MuJoCo dropped in 3.0.

    `collision="predefined"` allowed contacts between listed pairs only, and the model lists none. Taking it out
    alone would let the swimmer's body touch itself and the floor, so contacts are switched off in its place.
    """
    mujoco_env = importlib.import_module("gymnasium.envs.mujoco.mujoco_env")
    stock = mujoco_env.MujocoEnv._initialize_simulation

    def initialize_simulation(env: Any) -> tuple[Any, Any]:
        xml = Path(env.fullpath).read_text(encoding="utf-8")
        if 'collision="predefined"' not in xml:
            return stock(env)  # type: ignore[no-any-return]  # an untyped pair
        mujoco = mujoco_env.mujoco
        model = mujoco.MjModel.from_xml_string(xml.replace('collision="predefined"', ""))
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        model.vis.global_.offwidth, model.vis.global_.offheight = env.width, env.height  # as stock does
        return model, mujoco.MjData(model)

    with _replaced(mujoco_env.MujocoEnv, "_initialize_simulation", initialize_simulation):
        yield


@contextlib.contextmanager
def _mujoco_warnings_dropped() -> Iterator[None]:
    """Drop what MuJoCo says of old attributes in the tasks' models: else it writes MUJOCO_LOG.TXT where the user is."""
    mujoco = importlib.import_module("mujoco")
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


@contextlib.contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
