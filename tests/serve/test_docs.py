"""The Python of docs/service.md runs as it stands."""

import re
from pathlib import Path

import pytest

from tests.serve.running import ServerThread

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "service.md"


def test_the_example_of_the_document_runs(server: ServerThread, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert '"127.0.0.1:50051"' in example
    example = example.replace('"127.0.0.1:50051"', f'"{server.address}", "goal"').replace("=0.5)", "=30)")
    names: dict[str, object] = {}
    exec(example, names)
    assert {"answer", "judged"} <= names.keys()
    assert capsys.readouterr().out.startswith("heat ")
