"""The Dockerfile: linted, and what it says about the user, the variables and the files that reach the image."""

import json
import subprocess
import sysconfig
import tomllib
from pathlib import Path

from serve.server.settings import split_address
from tests.deploy.files import DOCKERFILE, ROOT, arguments, image_environment, instructions


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_stages_have_the_same_base() -> None:
    # A venv points at the interpreter it was made with.
    assert [base.split()[0] for base in arguments("FROM")] == ["${BASE_IMAGE}"] * 2


def test_it_serves_the_bundles_as_a_user_without_a_name() -> None:
    last = dict(instructions())
    assert all(number.isdecimal() and int(number) > 0 for number in last["USER"].split(":"))
    assert json.loads(last["ENTRYPOINT"]) == ["python", "-m", "serve"]
    assert json.loads(last["CMD"]) == ["/bundles"]


def test_telemetry_is_off_before_python_starts() -> None:
    assert image_environment()["ORT_DISABLE_TELEMETRY"] == "1"


def test_it_installs_the_extra_serve_alone_and_by_the_constraints() -> None:
    (install,) = [command for command in arguments("RUN") if "pip" in command and " install " in command]
    assert install.endswith("-c constraints.txt '.[serve]'")


def test_the_exposed_ports_are_those_it_listens_on() -> None:
    environment = image_environment()
    addresses = environment["CVPO_SERVE_ADDRESS"], environment["CVPO_SERVE_METRICS_ADDRESS"]
    assert arguments("EXPOSE") == [" ".join(str(split_address(address)[1]) for address in addresses)]


def test_the_image_alone_does_not_open_the_network() -> None:
    # Who runs it takes that risk, with --allow-plaintext-network.
    assert "CVPO_SERVE_ALLOW_PLAINTEXT_NETWORK" not in image_environment()


def test_what_it_copies_is_there_and_passes_the_dockerignore_and_nothing_else_does() -> None:
    sources = {
        source.removeprefix("./") for copy in arguments("COPY") if "--from" not in copy for source in copy.split()[:-1]
    }
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)


def test_it_copies_what_the_wheel_is_built_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {*packages, project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    copied = {source for copy in arguments("COPY") for source in copy.split()[:-1]}
    assert needed <= copied
