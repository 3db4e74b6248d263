"""What README and the other pages tell people to type, write and open is there."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

from cvpo.commands.cli import app
from serve.server.settings import Settings, parse
from tests.command import ROOT
from tests.serve import bundles
from tests.serve.running import ServerThread

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links to them are written."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


def shell_lines() -> Iterator[str]:
    """Every command that a page shows, without its prompt and comment."""
    for page in PAGES:
        for language in ("console", "sh", "bash", ""):
            for block in blocks(page, language):
                for line in block.splitlines():
                    if line.startswith("$ ") or language in ("sh", "bash"):
                        yield line.removeprefix("$ ").split(" #")[0].strip()


def check_command(line: str) -> None:
    """Parse `cvpo COMMAND ...` as the program would, without doing it; fails where it would be refused."""
    program, name, *arguments = shlex.split(line)
    assert program == "cvpo"
    if name == "serve":
        parse(arguments, "cvpo serve")
        return
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group has them
    assert name in commands, f"there is no command {name}"
    commands[name].make_context(name, arguments)


SHOWN = sorted({line for line in shell_lines() if line.startswith("cvpo ")})


def test_the_five_steps_are_shown() -> None:
    assert {line.split()[1] for line in SHOWN} >= {"train", "export", "serve", "query", "evaluate"}


@pytest.mark.parametrize("line", SHOWN)
def test_a_shown_command_can_be_typed(line: str) -> None:
    check_command(line)


@pytest.mark.parametrize(
    "line", ["cvpo train Task --step 5", "cvpo fly", "cvpo serve bundles --fast", "cvpo export run"]
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises((Exception, SystemExit)):  # typer's own errors, and argparse's
        check_command(line)


def test_commands_in_the_text_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for page in PAGES:
        for name in re.findall(r"`cvpo ([a-z-]+)", page.read_text()):
            assert name in commands, f"{page.name}: cvpo {name}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|\$ |    )make ([a-z]+)", page.read_text())}
    assert {"demo", "test", "install", "lint"} <= named <= targets


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        name
        for page in PAGES
        for group in re.findall(r"(?:cvpo|'\.)\[([a-z,]+)\]", page.read_text())
        for name in group.split(",")
    }
    assert {"serve", "train"} <= named <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"https?:", link):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_robot_of_the_readme_drives(tmp_path: Path) -> None:
    (example,) = blocks(README, "python")
    bundles.write(tmp_path / "goal", bundles.manifest())
    server = ServerThread(Settings(repository=tmp_path, address="127.0.0.1:0"))
    try:
        address = '"127.0.0.1:50051", timeout_seconds=0.05'
        assert address in example
        applied: list[object] = []
        names: dict[str, object] = {"observation": np.array([1.0, 0.0, 0.0]), "apply": applied.append}
        exec(example.replace(address, f'"{server.address}", timeout_seconds=30'), names)
    finally:
        server.stop(drain_seconds=1)
    np.testing.assert_array_equal(applied, [[0.5, 0.0]])
