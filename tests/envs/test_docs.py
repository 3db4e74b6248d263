"""The environment that docs/environments.md shows is one that works."""

import re
import sys
from pathlib import Path

import pytest

from cvpo.envs import check_env


def test_the_documented_environment_passes_the_checker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "environments.md"
    environment, check = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "corridor.py").write_text(environment)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(check, {})
    assert capsys.readouterr().out == ""
    assert check_env("corridor:make", cost_names=("cost_speed",))  # the checker does look
