"""Runs laid side by side: what they learned, what they stored, and every file that people read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cvpo.envs import VectorEnv
from cvpo.training.checkpoint import POLICY, read_config, step_folder
from cvpo.training.metrics import read_evaluations, read_metrics
from cvpo.training.resume import ResumePoint, load_resume_point

TIMINGS = ("steps_per_second", "time/", "checkpoint/")


def saved(run: Path) -> ResumePoint:
    """The newest resume point of a run, which must be intact."""
    point = load_resume_point(run, pytest.fail)
    assert point is not None
    return point


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert left == right, where


def assert_same_run(left: Path, right: Path) -> None:
    """Parameters, optimizers, replay, generators, counters, environments, and every file that people read.

    `right` may have more checkpoints, from where it was stopped.
    """
    points = saved(left), saved(right)
    assert points[0].steps == points[1].steps
    assert_same(points[0].state, points[1].state)
    assert points[0].row_files == points[1].row_files  # with their checksums
    np.testing.assert_array_equal(continued(left, points[0].environments), continued(left, points[1].environments))
    policy = step_folder(Path(), "checkpoints", points[0].steps) / POLICY
    assert (left / policy).read_bytes() == (right / policy).read_bytes()
    assert (left / "residuals.csv").read_text() == (right / "residuals.csv").read_text()
    evaluations = read_evaluations(right)
    assert {steps: evaluations[steps] for steps in read_evaluations(left)} == read_evaluations(left)
    assert rows(left) == rows(right)


def rows(run: Path) -> list[dict[str, float]]:
    """The rows of metrics without what is a timing or of one."""
    if not (run / "metrics.jsonl").exists():
        return []
    return [{k: value for k, value in row.items() if not k.startswith(TIMINGS)} for row in read_metrics(run)]


def continued(run: Path, environments: bytes) -> NDArray[np.float64]:
    """What the saved environments show over the next sixty steps."""
    settings = read_config(run).environment
    with VectorEnv(settings.env_id, num_envs=settings.num_envs, workers=0, seed=0) as env:
        shown = [env.restore(environments)[:, 0].astype(np.float64)]
        for _ in range(60):
            env.step_async(np.full((env.num_envs, env.spec.action_size), 0.5))
            step = env.step_wait()
            shown += [step.observation[:, 0].astype(np.float64), step.truncated.astype(np.float64)]
    return np.array(shown)
