"""Which runs the results are made of: tasks with their targets, groups, seeds, and the command of each run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from benchmarks.errors import BenchmarkError
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.training.presets import WITHOUT_PRESET, preset_of

Variant = Literal["cvpo", "paper", "fsrl"]
NAMES: dict[Variant, str] = {"cvpo": "cvpo", "paper": "cvpo, the paper's constraint", "fsrl": "FSRL's CVPO"}
Group = Literal["1", "2", "limits", "paper", "fsrl"]
GROUPS: tuple[Group, ...] = get_args(Group)
REPORTED_SEEDS = tuple(range(10, 20))  # nothing is chosen by these; settings are tuned on seeds 0 to 9
DEFAULT_SEEDS = REPORTED_SEEDS[:3]
ONE_CORE: dict[str, object] = {  # the learner simulates, too
    "environment.workers": 0,
    "schedule.evaluation_workers": 0,
    "compute.device": "cpu",
}
VARIANT_SETTINGS: dict[Variant, dict[str, object]] = {"cvpo": {}, "paper": {"estep.constraint": "critic"}}


@dataclass(frozen=True)
class Task:
    """A task, and what is wanted of it."""

    env_id: str
    group: Group
    cost_limit: float
    steps: int
    must: float  # mean return, at a mean cost at or under the limit
    aim: str
    published: str  # return / cost

    @property
    def name(self) -> str:
        """For people."""
        return self.env_id.removeprefix("Safety").rpartition("-")[0]


TASKS = {
    task.env_id: task
    for task in (
        Task(
            "SafetyBallCircle-v0",
            "1",
            10,
            100_000,
            720,
            "780",
            "FSRL CVPO 695 / 9.5, DDPG-Lag 778 / 5.5 at 0.8 M",
        ),
        Task(
            "SafetyHalfCheetahVelocity-v1",
            "1",
            25,
            200_000,
            2500,
            "2830",
            "FSRL CVPO 1800 / 23 at 5 M, OmniSafe SAC-Lag 2834 / 0 at 1 M",
        ),
        Task("SafetyCarCircle-v0", "1", 10, 300_000, 400, "435", "FSRL CVPO 435 / 8 at 1.5 M"),
        Task("SafetyPointCircle1-v0", "1", 25, 300_000, 50, "84", "OmniSafe SAC-Lag 83.7 / 12.8 at 3 M"),
        Task(
            "SafetyPointGoal1-v0",
            "2",
            25,
            500_000,
            19,
            "24 at cost 20, under 32 % of episodes over",
            "FSRL CVPO 20.6 / 27.1 at 5 M",
        ),
        Task(
            "SafetyHopperVelocity-v1",
            "2",
            25,
            500_000,
            1100,
            "1700",
            "FSRL CVPO 1130 / 17 at 5 M, OmniSafe CUP 1716 / 7 at 10 M",
        ),
        Task("SafetyCarRun-v0", "2", 10, 100_000, 550, "in half the steps", "FSRL CVPO 550 / 5 at 0.3 M"),
        Task("SafetyBallRun-v0", "2", 10, 100_000, 455, "in half the steps", "FSRL CVPO 455 / 3 at 0.5 M"),
    )
}
LIMITS_TASK = "SafetyPointCircle1-v0"
LIMITS = (5.0, 25.0, 60.0)
COMPARED_TASKS = ("SafetyBallCircle-v0", "SafetyHalfCheetahVelocity-v1")  # of the paper's form, and of FSRL


@dataclass(frozen=True)
class Job:
    """One run."""

    variant: Variant
    env_id: str
    cost_limit: float
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and of its result."""
        return f"{self.variant}-{self.env_id}-limit{self.cost_limit:g}-{self.steps}steps-s{self.seed}"

    @property
    def reported(self) -> bool:
        """Whether its result counts: another seed or length is a trial."""
        return self.seed in REPORTED_SEEDS and self.steps == TASKS[self.env_id].steps

    @property
    def settings(self) -> dict[str, object]:
        """What is set beside the task's preset; for ours."""
        return ONE_CORE | VARIANT_SETTINGS[self.variant]

    def config(self) -> TrainConfig:
        """What `command` trains with, by today's preset; for ours."""
        preset = preset_of(self.env_id) or WITHOUT_PRESET
        chosen = replace(
            preset,
            cost_limits=(self.cost_limit,),
            steps=self.steps,
            settings={**preset.settings, **self.settings},
        )
        return parse_config({**chosen.document(self.env_id), "seed": self.seed})

    def command(self, run: Path) -> list[str]:
        """The `cvpo train` that begins it; for ours."""
        command = [sys.executable, "-m", "cvpo", "train", self.env_id, "--steps", str(self.steps)]
        command += ["--cost-limit", f"{self.cost_limit:g}", "--seed", str(self.seed)]
        for name, value in self.settings.items():
            command += ["--set", f"{name}={value}"]
        return [*command, "--out", str(run)]


def plan(
    groups: Sequence[Group] = GROUPS,
    env_ids: Sequence[str] = (),
    seeds: Sequence[int] = DEFAULT_SEEDS,
    steps: int | None = None,
) -> list[Job]:
    """The runs, most important first: by group, then by seed, so that each task has one before any has two.

    Args:
        groups: which.
        env_ids: only these tasks; all where empty.
        seeds: of each task.
        steps: of each run, for a trial; None: the task's.

    Raises:
        BenchmarkError: nothing is left.
    """
    jobs = [
        Job(variant, env_id, cost_limit, steps or TASKS[env_id].steps, seed)
        for group in groups
        for seed in seeds
        for variant, env_id, cost_limit in _members(group)
        if not env_ids or env_id in env_ids
    ]
    if not jobs:
        raise BenchmarkError(f"Group {', '.join(groups)} has no run of {', '.join(env_ids)}; leave out one of the two.")
    return list(dict.fromkeys(jobs))  # the middle one of the three limits is in group 1, too


def _members(group: Group) -> list[tuple[Variant, str, float]]:
    match group:
        case "limits":
            return [("cvpo", LIMITS_TASK, limit) for limit in LIMITS]
        case "paper" | "fsrl":
            return [(group, env_id, TASKS[env_id].cost_limit) for env_id in COMPARED_TASKS]
        case "1" | "2":
            return [("cvpo", task.env_id, task.cost_limit) for task in TASKS.values() if task.group == group]
