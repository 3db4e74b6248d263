import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import learner, rounds
from benchmarks.ours.learner import Ours
from benchmarks.workload import Workload, transitions
from cvpo.envs.make import make_env

# Updates in a second of the core, by round. The clock's second is twice as long: others had half of the core.
RATES = {"FSRL": [50.0, 100.0], "float32": [150.0, 400.0], "bfloat16": [250.0, 600.0], "2": [100.0, 200.0]}


class StandIn:
    """A contestant that plays known rounds."""

    versions = {"python": "3"}  # noqa: RUF012 - as of a Contestant

    def __init__(self, rates: list[float]) -> None:
        self.rates = cycle(rates)

    def play(self) -> dict[str, float]:
        return {"updates": next(self.rates), "core_seconds": 1.0, "seconds": 2.0}


def test_the_last_line_has_the_ratio_of_each_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def contestant(name: str, python: str, module: str, settings: list[str], cores: Any) -> Iterator[StandIn]:
        kind = "FSRL" if name == "FSRL" else settings[-1] if len(settings) > 2 else "float32"
        yield StandIn(RATES[kind])

    monkeypatch.setattr(learner, "_contestant", contestant)
    monkeypatch.setattr(learner, "peer_python", lambda name: Path(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(rounds, "RESULTS", tmp_path)
    learner.compare([0], 2, 1.0)
    # 150/50 = 3 and 400/100 = 4; 250/50 = 5 and 600/100 = 6.
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "benchmark": "learner",
        "updates_per_second_ratio": 3.5,
        "spread": [3.0, 4.0],
        "updates_per_second_ratio_bfloat16": 5.5,
        "rounds": 2,
        "gpu": None,
    }
    written = json.loads((tmp_path / "learner.json").read_text())
    assert written["ratios"]["default"]["per_round"] == [2.0, 2.0]
    assert written["core_share"]["fsrl"] == [0.5, 0.5]
    assert written["milliseconds_per_update"]["fsrl"] == [20.0, 10.0]


def test_the_workload_has_the_sizes_of_point_circle() -> None:
    env = make_env("SafetyPointCircle1-v0")
    workload = Workload()
    assert workload.observation_size == env.spec.observation_size
    assert workload.action_size == len(env.spec.action_low)
    assert workload.episode_steps == env.spec.max_episode_steps
    env.close()


def test_our_contestant_learns_with_the_sizes_of_the_workload() -> None:
    ours = Ours(Workload(batch_size=32, samples=8, hidden=16, costs=2, cost_heads=3), stored=200)
    critics = ours.state.model.critics
    assert (critics.reward_heads, critics.cost_heads, critics.num_costs) == (1, 3, 2)
    assert (ours.config.replay.batch_size, ours.config.estep.samples) == (32, 8)
    done = ours.updates(0.01)
    assert done["updates"] == ours.state.updates > 0
    assert done["core_seconds"] > 0
    assert done["seconds"] >= 0.01
    assert ours.updates(0.0)["updates"] == 1  # however busy the machine is


def test_both_learners_are_fed_the_same_data() -> None:
    one, other = transitions(Workload(), 50), transitions(Workload(), 50)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert 0 < one.cost.mean() < 1
