"""Small environments: one that is right, and one for each way to be wrong. Made as `tests.envs.toys:NAME`."""

import ctypes
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers.time_limit import TimeLimit
from numpy.typing import NDArray

Result = tuple[Any, Any, Any, Any, dict[str, Any]]


class Drift(gymnasium.Env[Any, Any]):
    """A point with noise, in a plane: x += action + noise. Reward x[0]; cost 1 where x[1] > 0, fuel |action|.

    Terminates where |x| > 4.
    """

    def __init__(self) -> None:
        self.observation_space: Any = Box(-10.0, 10.0, (2,), np.float64)
        self.action_space: Any = Box(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), dtype=np.float64)
        self.dt = 0.05
        self.x = np.zeros(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.normal(0.0, 0.1, 2)
        self.steps = 0
        return self.x.copy(), {}

    def step(self, action: NDArray[np.float64]) -> Any:
        self.steps += 1
        self.x = self.x + action + self.np_random.normal(0.0, 0.1, 2)
        info = {"cost": float(self.x[1] > 0), "cost_fuel": float(np.abs(action).sum())}
        return self.x.copy(), float(self.x[0]), bool(np.abs(self.x).max() > 4), False, info


def drift() -> gymnasium.Env[Any, Any]:
    """Drift, at most 20 steps."""
    return TimeLimit(Drift(), 20)


class NearWalls(Drift):
    """Drift, as if it said how near two walls are."""

    metadata = {"closeness": [1, 0]}  # noqa: RUF012  # as Gymnasium has it


class _Altered(Drift):
    """Drift whose results are altered from step 3 on."""

    def alter(self, result: Result) -> Any:
        raise NotImplementedError

    def step(self, action: NDArray[np.float64]) -> Any:
        result = super().step(action)
        return result if self.steps < 3 else self.alter(result)


class NoCost(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:4], {"cost_fuel": 1.0, "costs": 2.0, "time": 3.0}


class NoInfo(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:4], None


class NegativeCost(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:4], {"cost": -0.5}


class InfiniteCost(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:4], {"cost": np.inf}


class WordCost(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:4], {"cost": "much"}


class NanObservation(_Altered):
    def alter(self, result: Result) -> Any:
        return np.array([0.0, np.nan]), *result[1:]


class HugeObservation(_Altered):
    def alter(self, result: Result) -> Any:
        return np.array([0.0, -1e16]), *result[1:]


class HugeReward(_Altered):
    def alter(self, result: Result) -> Any:
        return result[0], 1e25, *result[2:]


class HugeCost(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:4], {"cost": 1e25}


class InfiniteReward(_Altered):
    def alter(self, result: Result) -> Any:
        return result[0], -np.inf, *result[2:]


class NoReward(_Altered):
    def alter(self, result: Result) -> Any:
        return result[0], None, *result[2:]


class WrongShape(_Altered):
    def alter(self, result: Result) -> Any:
        return np.zeros(3), *result[1:]


class OutsideItsSpace(_Altered):
    def alter(self, result: Result) -> Any:
        return np.array([0.0, 11.0]), *result[1:]


class NumberForFlag(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:2], 0.5, *result[3:]


class AllWrong(_Altered):
    """Wrong in all that a step returns, and from step 5 on in another way."""

    def alter(self, result: Result) -> Any:
        observation = np.zeros(3) if self.steps < 5 else np.array([0.0, np.nan])
        return observation, "much", np.array([True, False]), False, {"cost": -0.5}


class OldStep(_Altered):
    def alter(self, result: Result) -> Any:
        return *result[:3], result[4]


class Raises(_Altered):
    def alter(self, result: Result) -> Any:
        raise RuntimeError("the gripper\nis stuck")


class Leaves(_Altered):
    def alter(self, result: Result) -> Any:
        raise SystemExit("the viewer was closed")


class Exits(_Altered):
    def alter(self, result: Result) -> Any:
        os._exit(3)


class Crashes(_Altered):
    def alter(self, result: Result) -> Any:
        ctypes.string_at(0)


class Hangs(_Altered):
    def alter(self, result: Result) -> Any:
        while True:
            time.sleep(1)


class SlowAtFirst(Drift):
    """Takes a second for the first step of all."""

    def step(self, action: NDArray[np.float64]) -> Any:
        if not self.warm:
            time.sleep(1)
        self.warm = True
        return super().step(action)

    warm = False


class Slow(Drift):
    def step(self, action: NDArray[np.float64]) -> Any:
        time.sleep(0.02)
        return super().step(action)


class Heavy(Drift):
    """Its state does not fit into a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.ballast = np.random.default_rng(0).bytes(1_000_000)


class _Late(Drift):
    """Drift that goes wrong in its hundredth step, unless there is a file `mended` in the current directory."""

    taken = 0

    def step(self, action: NDArray[np.float64]) -> Any:
        self.taken += 1
        result = super().step(action)
        return self.fail(result) if self.taken == 100 and not Path("mended").exists() else result

    def fail(self, result: Result) -> Any:
        raise NotImplementedError


class LateRaise(_Late):
    def fail(self, result: Result) -> Any:
        raise RuntimeError("the gripper is stuck")


class LateNan(_Late):
    def fail(self, result: Result) -> Any:
        return np.array([np.nan, 0.0]), *result[1:]


class LateShape(_Late):
    def fail(self, result: Result) -> Any:
        return np.zeros(3), *result[1:]


class LateDeath(_Late):
    def fail(self, result: Result) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class LateHang(_Late):
    def fail(self, result: Result) -> Any:
        time.sleep(1_000)


class LateInterrupts(_Late):
    """As if somebody pressed Ctrl-C twice."""

    def fail(self, result: Result) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return result


class CutShort(Drift):
    """Has a time limit of which only its steps tell."""

    def step(self, action: NDArray[np.float64]) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self.steps == 7, info


class OldReset(Drift):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class RaisesAtReset(Drift):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise RuntimeError("no reset")


class Unseeded(Drift):
    noise = itertools.count()

    def step(self, action: NDArray[np.float64]) -> Any:
        observation, *rest = super().step(action)
        return observation + 1e-6 * next(self.noise), *rest


class Unpicklable(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class ForgetsItsState(Drift):
    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"x": np.zeros(2)}


class Unthawable(Drift):
    def __setstate__(self, state: dict[str, Any]) -> None:
        raise RuntimeError("made by another version")


class RaisesAtItsEnd(Raises):
    """Raises in a step, and when it is closed."""

    def close(self) -> None:
        raise OSError("the port is gone")


class NeverCloses(Drift):
    def close(self) -> None:
        raise OSError("the port is gone")


class Versioned(Drift):
    """Reads only what its own version wrote."""

    version = 1

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"written_by": self.version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["written_by"] != self.version:
            raise RuntimeError(f"made by version {state['written_by']}")
        vars(self).update(state)


class Handle(Drift):
    """Drift whose point is in a simulator beside it, known by a number; `close` ends that, and a second one raises."""

    numbers = itertools.count()
    points: dict[int, NDArray[np.float64]] = {}  # noqa: RUF012  # of all simulators of this process

    def __init__(self) -> None:
        self.number = next(self.numbers)
        super().__init__()

    @property
    def x(self) -> NDArray[np.float64]:
        return self.points[self.number]

    @x.setter
    def x(self, value: NDArray[np.float64]) -> None:
        self.points[self.number] = value

    def close(self) -> None:
        del self.points[self.number]


class KeptHandle(Handle):
    """Handle whose simulator outlives it."""

    def close(self) -> None:
        pass


class OneInAProcess(Drift):
    """Drift of which a process may have one at a time, as of a simulator that listens at a port."""

    taken = False

    def __init__(self) -> None:
        if OneInAProcess.taken:
            raise RuntimeError("the port is taken")
        OneInAProcess.taken = True
        super().__init__()

    def close(self) -> None:
        OneInAProcess.taken = False


class Forwards(Drift):
    """Has what it has not itself from another, as wrappers do; when it is unpickled, it has no other yet."""

    def __init__(self) -> None:
        super().__init__()
        self.other = Drift()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.other, name)


class FreeOfCost(Drift):
    def step(self, action: NDArray[np.float64]) -> Any:
        return *super().step(action)[:4], {"cost": 0}


class UnboundedActions(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-np.inf, np.inf, (2,), np.float64)


class DiscreteActions(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Discrete(3)


class DictObservation(Drift):
    """Observes {"b": x[0], "a": [[x0, x1]]}, which Gymnasium flattens in the order of the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Dict(a=Box(-10.0, 10.0, (1, 2)), b=Box(-10.0, 10.0, (1,)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observed(super().reset(seed=seed)[0]), {}

    def step(self, action: NDArray[np.float64]) -> Any:
        observation, *rest = super().step(action)
        return self.observed(observation), *rest

    def observed(self, x: NDArray[np.float64]) -> dict[str, Any]:
        return {"b": x[:1].astype(np.float32), "a": x[None].astype(np.float32)}


class ForgetsAKey(DictObservation):
    def observed(self, x: NDArray[np.float64]) -> dict[str, Any]:
        return {"b": x[:1]}


class DictOfDoubles(DictObservation):
    def observed(self, x: NDArray[np.float64]) -> dict[str, Any]:
        return {"b": x[:1], "a": x[None]}


class PartOfAnotherShape(DictObservation):
    def observed(self, x: NDArray[np.float64]) -> dict[str, Any]:
        return {"b": x[:1], "a": x}


class LargeObservation(Drift):
    """Observes a picture of the place: gray, but for the pixel that it is at."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0.0, 1.0, (32, 32, 3))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.seen(super().reset(seed=seed)[0]), {}

    def step(self, action: NDArray[np.float64]) -> Any:
        observation, *rest = super().step(action)
        return self.seen(observation), *rest

    def seen(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        picture = np.full((32, 32, 3), 0.5)
        picture[(*np.clip(x[:2] + 16, 0, 31).astype(int),)] = 1.0
        return picture


class SequenceObservation(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Sequence(Box(-1.0, 1.0, (2,)))


class FailsToStart(Drift):
    def __init__(self) -> None:
        raise OSError("no camera at /dev/video0")


class LeavesAtTheStart(Drift):
    def __init__(self) -> None:
        raise SystemExit


def not_an_environment() -> dict[str, int]:
    return {}


number = 3
gymnasium.register("ToyDrift-v0", entry_point="tests.envs.toys:Drift", max_episode_steps=30)
