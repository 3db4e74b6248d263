"""The result of a run, as it is committed: what it was, how it learned, and a hundred episodes of its last policy."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.learning.jobs import LIMITS, LIMITS_TASK, TASKS, Job, Variant
from benchmarks.rounds import RESULTS
from cvpo.bundle import Interval
from cvpo.evaluate import conditional_value_at_risk, interval

FOLDER = RESULTS / "learning"
TRIALS = FOLDER / "trials"  # of other seeds or lengths: the same format, and never summarized
EvaluatedMode = Literal["deterministic", "sampled"]
MODES: tuple[EvaluatedMode, ...] = get_args(EvaluatedMode)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Statistics(_Record):
    """Fresh episodes of one policy."""

    episode_return: Interval
    cost: Interval
    cost_cvar90: float  # mean of the costliest tenth of episodes
    over_limit_share: float
    cost_level: float | None  # predicted over realized discounted cost in these episodes; None: not known
    discounted_cost: float | None = None  # realized after a step, mean over steps; None: not known
    returns: tuple[float, ...]  # of each episode
    costs: tuple[float, ...]

    @classmethod
    def of(
        cls,
        returns: Sequence[float],
        costs: Sequence[float],
        cost_limit: float,
        cost_level: float | None,
        discounted_cost: float | None,
    ) -> Self:
        """From the return and cost of each episode."""
        return cls(
            episode_return=interval(np.array(returns)),
            cost=interval(np.array(costs)),
            cost_cvar90=conditional_value_at_risk(np.array(costs), 0.9),
            over_limit_share=sum(cost > cost_limit for cost in costs) / len(costs),
            cost_level=cost_level,
            discounted_cost=discounted_cost,
            returns=tuple(returns),
            costs=tuple(costs),
        )


class Curve(_Record):
    """Evaluations in training, of the deterministic policy, and training itself since the one before."""

    steps: tuple[int, ...]
    episode_return: tuple[float, ...]
    cost: tuple[float, ...]
    cost_level: tuple[float | None, ...]
    discounted_cost: tuple[float | None, ...] = ()  # not in results of before it was kept
    train_return: tuple[float | None, ...]
    train_cost: tuple[float | None, ...]
    infeasible_share: tuple[float | None, ...]

    def steps_to(self, must: float, cost_limit: float) -> int | None:
        """Steps of the first evaluation with such a return, at a cost at or under the limit; None: there is none."""
        for steps, episode_return, cost in zip(self.steps, self.episode_return, self.cost, strict=True):
            if episode_return >= must and cost <= cost_limit:
                return steps
        return None


class Result(_Record):
    """One finished run."""

    variant: Variant
    env_id: str
    cost_limit: float
    steps: int
    seed: int
    seconds: float  # of training, its evaluations included
    runs_at_once: int  # each on a core of its own
    date: str
    cvpo: dict[str, str | None]
    machine: dict[str, Any]
    versions: dict[str, str]
    config: dict[str, Any]
    curve: Curve
    deterministic: Statistics
    sampled: Statistics

    @property
    def job(self) -> Job:
        return Job(self.variant, self.env_id, self.cost_limit, self.steps, self.seed)

    @property
    def steps_to_target(self) -> int | None:
        return self.curve.steps_to(TASKS[self.env_id].must, self.cost_limit)

    def text(self) -> str:
        """As it is written: a line for each entry."""
        lines = [f'"{name}": {json.dumps(value)}' for name, value in self.model_dump(mode="json").items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def path(job: Job) -> Path:
    """Where the result of a run is."""
    return (FOLDER if job.reported else TRIALS) / f"{job.name}.json"


def read(path: Path) -> Result:
    return Result.model_validate_json(path.read_text())


def write(result: Result) -> Path:
    """Write a result in place of the one before."""
    out = path(result.job)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".part")
    temporary.write_text(result.text())
    temporary.replace(out)
    return out


def committed() -> list[Result]:
    """All that count, by name."""
    return [read(each) for each in sorted(FOLDER.glob("*.json"))]


def select(results: Iterable[Result], variant: Variant, env_id: str, cost_limit: float) -> list[Result]:
    """Those of one task and limit, by seed."""
    return sorted(
        (r for r in results if (r.variant, r.env_id, r.cost_limit) == (variant, env_id, cost_limit)),
        key=lambda result: result.seed,
    )


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """What was learned, for each task that has a result; figures are means over seeds, of the last policy of each.

    `steps_to_target` is the median over seeds, a seed that did not come to the target counting as infinite; None: half
    of them or more did not. PointCircle1 has `limits`, and the tasks that were compared have what they were compared
    with.
    """
    found: dict[str, Any] = {}
    for task in TASKS.values():
        ours = select(results, "cvpo", task.env_id, task.cost_limit)
        if ours:
            found[task.env_id] = _summary(ours)
        for variant in ("paper", "fsrl"):
            if others := select(results, variant, task.env_id, task.cost_limit):
                found.setdefault(task.env_id, {})[variant] = _summary(others)
    limits = {f"{limit:g}": select(results, "cvpo", LIMITS_TASK, limit) for limit in LIMITS}
    if any(limits.values()):
        found.setdefault(LIMITS_TASK, {})["limits"] = {limit: _figures(each) for limit, each in limits.items() if each}
    return found


def _summary(results: Sequence[Result]) -> dict[str, Any]:
    to_target = statistics.median(
        np.inf if steps is None else steps for steps in (result.steps_to_target for result in results)
    )
    return {**_figures(results), "steps_to_target": round(to_target) if np.isfinite(to_target) else None}


def _figures(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "seeds": [result.seed for result in results],
        "steps": results[0].steps,
        "cost_limit": results[0].cost_limit,
        **_means([result.deterministic for result in results]),
        "sampled": _means([result.sampled for result in results]),
        "seconds": statistics.mean(result.seconds for result in results),
    }


def _means(policies: Sequence[Statistics]) -> dict[str, float]:
    return {
        "return_mean": statistics.mean(each.episode_return.mean for each in policies),
        "cost_mean": statistics.mean(each.cost.mean for each in policies),
        "cost_cvar90": statistics.mean(each.cost_cvar90 for each in policies),
        "over_limit_share": statistics.mean(each.over_limit_share for each in policies),
    }
