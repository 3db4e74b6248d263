"""Tell a user what is wrong with an environment, all of it at once, before a run finds it piece by piece."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from cvpo.envs import snapshot
from cvpo.envs.base import LARGEST, as_number, describe, flatten, missing_cost, place
from cvpo.envs.make import (
    DEFAULT_COST_NAMES,
    action_bounds,
    closeness,
    horizon,
    make_env,
    make_gymnasium_env,
    observation_size,
)
from cvpo.errors import EnvError

REPEATED_STEPS = 300  # how much of the rollout is repeated with the same seed
LARGE_OBSERVATION = 2000  # values; a picture has more, and what is measured about a robot and its lidars has fewer

T = TypeVar("T")
Row = NDArray[np.float64]  # one step: observation, reward, costs


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in a sentence. With an error training refuses; with a warning it runs."""

    severity: Literal["error", "warning"]
    text: str


def check_env(
    env_id: str,
    *,
    cost_names: tuple[str, ...] = (),
    max_episode_steps: int | None = None,
    steps: int = 1000,
    seed: int = 0,
) -> list[Finding]:
    """Try an environment with random actions and say what is wrong with it; an empty list if nothing is.

    Args:
        env_id, cost_names, max_episode_steps: as for `make_env`.
        steps: how many to take; episodes start again when they end.
        seed: of the actions, and of the first episode.
    """
    names = cost_names or DEFAULT_COST_NAMES
    report = _Report()
    try:
        env = make_gymnasium_env(env_id, max_episode_steps=max_episode_steps, render=False)
    except EnvError as error:
        return [Finding("error", str(error))]
    with _closed(env, report):
        bounds = report.errors_of(lambda: action_bounds(env_id, env.action_space))
        size = report.errors_of(lambda: observation_size(env_id, env.observation_space))
        named = () if size is None else report.errors_of(lambda: closeness(env_id, env, size)) or ()
        length = report.errors_of(lambda: max_episode_steps or horizon(env_id, env)) or steps
        if size is not None and size > LARGE_OBSERVATION:
            report.warning(
                "size",
                f"The observation has {size:,} values, which dense networks see as one row: they learn little from "
                f"pictures, and a million steps take {size * 8e-3:,.0f} GB of memory. Give what matters alone.",
            )
        if bounds is None:
            return report.findings  # random actions would be none that a policy takes
        rows = _rollout(env, names, steps, length, seed, report)
        if report.has_errors:
            return report.findings  # what follows presumes an environment that works
        repeated = _rollout(env, names, min(steps, REPEATED_STEPS), length, seed, report)
    if not np.array_equal(np.stack(repeated), np.stack(rows[: len(repeated)])):
        report.error("seed", f"The same seed ({seed}) does not give the same episode; draw from self.np_random only.")
        return report.findings
    _check_closeness(np.stack(rows)[:, named], named, report)
    costs = np.stack(rows)[:, -len(names) :]
    for name, column in zip(names, costs.T, strict=True):
        if not column.any():
            report.warning(
                name,
                f'info["{name}"] is 0 at each of {steps} random steps; see that better actions can cost something.',
            )
    spare = make_env(env_id, cost_names=names, max_episode_steps=max_episode_steps)
    if flaw := report.errors_of(lambda: snapshot.flaw(spare, seed)):
        report.warning("pickle", f"{flaw}; a resumed run starts its episodes anew.")
    return report.findings


class _Report:
    """Findings in the order in which they were made; of one kind only the first."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Finding] = {}

    @property
    def findings(self) -> list[Finding]:
        return list(self._by_kind.values())

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self._by_kind.values())

    def error(self, kind: str, text: str) -> None:
        self._by_kind.setdefault(kind, Finding("error", text))

    def warning(self, kind: str, text: str) -> None:
        self._by_kind.setdefault(kind, Finding("warning", text))

    def errors_of(self, check: Callable[[], T]) -> T | None:
        try:
            return check()
        except EnvError as error:
            self.error(str(error), str(error))
            return None


@contextlib.contextmanager
def _closed(env: gymnasium.Env[Any, Any], report: _Report) -> Iterator[None]:
    try:
        yield
    finally:
        try:
            env.close()  # type: ignore[no-untyped-call]  # gymnasium 0.29 leaves it unannotated
        except Exception as error:
            report.warning("close", f"close() raises {describe(error)}; what it was to free may stay until a run ends.")


def _rollout(
    env: gymnasium.Env[Any, Any], names: tuple[str, ...], steps: int, length: int, seed: int, report: _Report
) -> list[Row]:
    """Take random steps, report what is wrong at each, and return one row per step, but for those that have none.

    Episodes end by themselves or after `length` steps; the first one has the seed `seed`, the next one the next. A step
    that raises, or returns what cannot be taken apart, is the last.
    """
    env.action_space.seed(seed)
    rows: list[Row] = []
    start, episodes, ended = 0, 0, True
    for step in range(1, steps + 1):
        where = raising = f"at step {step}"
        try:
            if ended:
                raising = "at a reset"
                _check_reset(env, env.reset(seed=seed + episodes), report)
                start, episodes, raising = step, episodes + 1, where
            result = env.step(env.action_space.sample())
        except (Exception, SystemExit) as error:
            report.error("raises", f"The environment raised {describe(error)} {raising} ({place(error)}).")
            break
        if not isinstance(result, tuple) or len(result) != 5:
            got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            report.error(
                "step",
                f"step returns {got}; it must return (observation, reward, terminated, truncated, info), with the cost "
                f"in info.",
            )
            break
        observation, reward, terminated, truncated, info = result
        row = _check_observation(env.observation_space, observation, where, report)
        value = as_number(reward)
        if value is None or not abs(value) <= LARGEST:
            report.error("reward", f"The reward is {reward!r} {where}; it must be a number within ±{LARGEST:g}.")
        ended = step - start + 1 >= length
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if isinstance(flag, bool | np.bool_):
                ended |= bool(flag)
            else:
                report.error(name, f"{name} is {flag!r} {where}; it must be True or False.")
        if truncated and step - start + 1 < length:
            report.warning(
                "horizon",
                f"truncated is True {where}, after {step - start + 1} of an episode's {length} steps. If that is a "
                f"time limit, give it as max_episode_steps: a limit on the cost is for as many steps.",
            )
        costs = _check_costs(info, names, where, report)
        if row is not None and value is not None and costs is not None:
            rows.append(np.concatenate([row, [value], costs]))
    return rows


def _check_reset(env: gymnasium.Env[Any, Any], result: object, report: _Report) -> None:
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        report.error(
            "reset", f"reset returns {type(result).__name__}; it must return (observation, info), info a dict."
        )
    else:
        _check_observation(env.observation_space, result[0], "at a reset", report)


def _check_observation(space: gymnasium.Space[Any], raw: Any, where: str, report: _Report) -> Row | None:
    """The observation as a row [O], or None if it has no such form."""
    if not _fits(space, raw, "observation", where, report):
        return None
    row = flatten(space, raw).astype(np.float64)
    broken = np.flatnonzero(~(np.abs(row) <= LARGEST))
    if broken.size:
        report.error(
            "finite", f"observation[{broken[0]}] is {row[broken[0]]} {where}; it must be a number within ±{LARGEST:g}."
        )
    return row


def _fits(space: gymnasium.Space[Any], raw: Any, name: str, where: str, report: _Report) -> bool:
    """Whether an observation, or a part of one, has the form of its space; report how it has not."""
    if isinstance(space, gymnasium.spaces.Dict) and isinstance(raw, Mapping):
        if raw.keys() != space.spaces.keys():
            wanted, given = (", ".join(map(str, keys)) or "none" for keys in (space.spaces, raw))
            report.error("shape", f"The {name} has the keys {given} {where}; its space has {wanted}.")
            return False
        return all(_fits(part, raw[key], f"{name}[{key!r}]", where, report) for key, part in space.spaces.items())
    if not isinstance(space, gymnasium.spaces.Box):
        if not space.contains(raw):
            report.error("shape", f"The {name} does not fit its space {where}; the space is {space}.")
            return False
        return True
    array = np.asarray(raw)
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        report.error("shape", f"The {name} has shape {array.shape} of {array.dtype} {where}; its space is {space}.")
        return False
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        report.warning("dtype", f"The {name} is of {array.dtype} {where}, its space of {space.dtype}.")
    outside = np.flatnonzero((array < space.low) | (array > space.high))
    if outside.size:
        index = outside[0]
        report.warning(
            "outside",
            f"{name}[{index}] is {array.flat[index]} {where}, outside its space "
            f"({space.low.flat[index]} to {space.high.flat[index]}).",
        )
    return True


def _check_costs(info: Any, names: tuple[str, ...], where: str, report: _Report) -> Row | None:
    """The costs [C], or None if one is not there or is no cost."""
    if not isinstance(info, Mapping):
        report.error("info", f"info is {type(info).__name__} {where}; it must be a dict, with the cost in it.")
        return None
    costs = []
    for name in names:
        if name not in info:
            report.error(
                name,
                f"{where.capitalize()}, {missing_cost(name, info)}; put it in at every step, or name another cost.",
            )
            continue
        value = as_number(info[name])
        if value is None or not 0 <= value <= LARGEST:
            report.error(name, f'info["{name}"] is {info[name]!r} {where}; a cost is a number from 0 to {LARGEST:g}.')
            continue
        costs.append(value)
    return np.array(costs) if len(costs) == len(names) else None


def _check_closeness(seen: NDArray[np.float64], named: tuple[int, ...], report: _Report) -> None:
    """Entries [T, N] of the observations that are named as closeness, which the networks see clamped to [0, 1]."""
    for index, column in zip(named, seen.T, strict=True):
        low, high = column.min(), column.max()
        if low < 0 or high > 1:
            report.warning(
                "closeness",
                f'metadata["closeness"] names observation[{index}], which goes from {low:g} to {high:g}; beyond 0 to 1 '
                f"the networks cannot tell how near something is.",
            )
