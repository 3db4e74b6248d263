"""The commands with which the documents copy a bundle to a server: whole, and never into one that is there."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cvpo.bundle import read_bundle
from tests.deploy.files import ROOT
from tests.serve import bundles


def loader_command(folder: Path) -> str:
    """What docs/deploy.md has the loader do, without kubectl, in a folder of ours."""
    (command,) = re.findall(r"^(tar -C BUNDLE .*?\n)kubectl", (ROOT / "docs/deploy.md").read_text(), re.S | re.M)
    command = command.replace("kubectl exec -i cvpo-loader -- ", "").replace("/bundles/", f"{folder}/bundles/")
    return str(command.replace("BUNDLE", f"{folder}/new").replace("NAME/VERSION", "goal/7").replace("NAME", "goal"))


def copy_command(folder: Path) -> str:
    """The command of docs/versions.md, in a folder of ours."""
    (command,) = re.findall(r"^cp .*", (ROOT / "docs/versions.md").read_text(), re.M)
    return f"cd {folder} && {command.replace('runs/goal/bundle', 'new')}"


@pytest.mark.parametrize("command", [loader_command, copy_command], ids=["loader", "cp"])
def test_copying_a_bundle_twice_fails_and_leaves_the_first_whole(
    tmp_path: Path, command: Callable[[Path], str]
) -> None:
    bundles.write(tmp_path / "new")
    (tmp_path / "bundles" / "goal").mkdir(parents=True)
    for succeeds in (True, False, False):
        done = subprocess.run(["sh", "-c", command(tmp_path)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is succeeds, done.stderr
        assert read_bundle(tmp_path / "bundles" / "goal" / "7").manifest == read_bundle(tmp_path / "new").manifest
