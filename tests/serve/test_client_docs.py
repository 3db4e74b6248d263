"""The Python of docs/client.md runs as it stands, one block after the other."""

import asyncio
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.serve.conftest import ServerProcess

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "client.md"


class Robot:
    """Runs for three steps, of which one may have no observation."""

    def __init__(self, blind_at: int | None = None) -> None:
        self.blind_at = blind_at
        self.actions: list[Any] = []
        self.warnings: list[str] = []

    def runs(self) -> bool:
        return len(self.actions) < 3

    def observation(self) -> Any:
        return np.array([1.0, np.nan if len(self.actions) == self.blind_at else 2.0, -1.0])

    def cost(self) -> list[float]:
        return [0.0, 0.5]

    def apply(self, action: Any) -> None:
        self.actions.append(action)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Stalled(Robot):
    """Stands still for a while at its second step, and runs for eight more."""

    stalled_until = math.inf

    def runs(self) -> bool:
        return len(self.actions) < 10

    def observation(self) -> Any:
        self.observed = time.monotonic()
        return super().observation()

    def apply(self, action: Any) -> None:
        super().apply(action)
        if len(self.actions) == 2:
            time.sleep(0.3)
            self.stalled_until = time.monotonic()


class Env:
    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        self.left = 3
        return np.zeros(3), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.zeros(3), 1.0, False, self.left == 0, {"cost": [0.0, 0.5]}


def test_the_examples_of_the_document_run(repository: Path, serve_process: Callable[..., ServerProcess]) -> None:
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0")
    robot, other = Robot(blind_at=1), Robot()
    names: dict[str, Any] = {
        "robot": robot,
        "env": Env(),
        "bundle": repository / "goal" / "1",
        "observation": [0, 0, 0],
        "cost": [0, 0],
    }
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) == 8
    for index, block in enumerate(blocks):
        blocks[index] = block.replace('("127.0.0.1:50051")', f'("{server.address}", timeout_seconds=30)')
        exec(blocks[index].replace("timeout_seconds=0.2)", "timeout_seconds=30)"), names)
    assert len(robot.actions) == 3
    assert "step.observation[1]: is nan; it must be finite" in robot.warnings
    assert names["result"].steps == 3
    assert names["result"].cost.tolist() == [0.0, 1.5]
    asyncio.run(names["drive"](other))
    assert len(other.actions) == 3

    stalled, other_stalled = Stalled(), Stalled()
    exec(blocks[1], {**names, "robot": stalled})
    asyncio.run(names["drive"](other_stalled))
    for late in (stalled, other_stalled):  # seven periods of 0.01 s, at least: no burst that catches up
        assert late.observed - late.stalled_until > 0.065
