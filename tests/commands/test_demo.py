"""What the demo says and refuses. That it learns takes minutes and is seen by running it: `cvpo demo`."""

import json
import re
from pathlib import Path

import pytest

from cvpo.bundle import Evaluation, Interval
from cvpo.commands.demo import COST_LIMIT, TASK, DemoResult
from tests.command import cvpo
from tests.test_readme import check_command


def evaluation(gain: float, cost: float) -> Evaluation:
    return Evaluation(
        mode="deterministic",
        episodes=30,
        episode_return=Interval(mean=gain, low=gain - 1, high=gain + 2),
        episode_cost=(Interval(mean=cost, low=cost - 3, high=cost + 4),),
        cost_cvar90=(cost + 9,),
        over_limit_share=(0.25,),
    )


RESULT = DemoResult(
    random=evaluation(0.5, 151.2),
    trained=evaluation(31.4, 14.3),
    served=evaluation(32.6, 16.5),
    predicted_cost_mean=17.8,
    realized_cost_mean=16.5,
    flagged_share=0.123,
    latency_ms={"p50": 0.61, "p99": 1.72, "max": 9.43},
    seconds=283.0,
    run=Path("runs/demo/run"),
    bundle=Path("runs/demo/bundles/circle/1"),
    pictures=(Path("runs/demo/learning.png"), Path("runs/demo/paths.png")),
)


def test_the_json_has_everything_that_machines_were_promised() -> None:
    document = json.loads(RESULT.as_json())
    assert document["task"] == TASK
    for name, gain, cost in (("random", 0.5, 151.2), ("trained", 31.4, 14.3), ("served", 32.6, 16.5)):
        group = document[name]
        assert group["return_mean"] == gain
        assert group["return_ci95"] == [gain - 1, gain + 2]
        assert group["cost_mean"] == cost
    assert document["cost_limit"] == COST_LIMIT
    assert document["predicted_cost_mean"] == 17.8
    assert document["realized_cost_mean"] == 16.5
    assert document["flagged_share"] == 0.123
    assert document["latency_ms"] == {"p50": 0.61, "p99": 1.72, "max": 9.43}
    assert document["run"] == "runs/demo/run"
    assert document["bundle"] == "runs/demo/bundles/circle/1"
    assert document["pictures"] == ["runs/demo/learning.png", "runs/demo/paths.png"]


def test_the_table_says_the_same_to_people() -> None:
    text = RESULT.as_table()
    (title,) = (line for line in text.splitlines() if TASK in line)
    assert "30 episodes" in title
    for name, figures in {
        "random actions": "0.5 -0.5 2.5 151.2 148.2 155.2 OVER the limit of 25",
        "trained, in simulator": "31.4 30.4 33.4 14.3 11.3 18.3 under the limit of 25",
        "the same, over gRPC": "32.6 31.6 34.6 16.5 13.5 20.5 under the limit of 25",
    }.items():
        (row,) = (line for line in text.splitlines() if line.startswith(name))
        assert re.sub(r"[\[\],\s]+", " ", row.removeprefix(name)).strip() == figures
    for fact in ("17.8", "16.5", "12.3%", "p50 0.61 ms", "p99 1.72 ms", "max 9.43 ms", "283 s"):
        assert fact in text
    for path in (RESULT.run, RESULT.bundle, *RESULT.pictures):
        assert str(path) in text


def test_the_table_ends_with_three_commands_that_can_be_typed() -> None:
    *_, first, second, third = RESULT.as_table().splitlines()
    for line in (first.removeprefix("next"), second, third):
        assert line.strip().startswith("cvpo ")
        check_command(line.strip())


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_folder_in_use_is_refused(as_json: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    outcome = cvpo("demo", "--out", tmp_path, *as_json)
    assert outcome.sentence == f"cvpo: {tmp_path} is not empty. Choose another --out, or remove it."
    assert outcome.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
