"""The command itself: quick, light, helpful, and plain about a part that is not installed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from tests.command import ROOT, cvpo, run_process, spawned, train

COMMANDS = (
    *("train", "presets", "evaluate", "plot", "check-env", "demo"),
    *("export", "inspect", "verify", "diff", "keygen", "sign"),
    *("serve", "query", "loadtest"),
)
HEAVY = ("torch", "gymnasium", "scipy", "onnx", "onnxruntime", "matplotlib", "tensorboard", "mujoco", "grpc", "numpy")


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)


def without(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `cvpo ARGUMENTS` where that module cannot be imported."""
    return python(
        f"import sys; sys.modules[{module!r}] = None; sys.argv = {['cvpo', *arguments]}\n"
        "from cvpo.__main__ import main; main()"
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = python(f"import cvpo, sys; print(*[name for name in {HEAVY} if name in sys.modules])")
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == []


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    allowed = ("numpy", "grpc", "onnxruntime") if arguments[0] == "serve" else ()
    loaded = python(
        f"import atexit, sys; sys.argv = {['cvpo', *arguments]}\n"
        f"atexit.register(lambda: print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))\n"
        "from cvpo.__main__ import main; main()"
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.lower().startswith("usage: cvpo")
    assert set(loaded.stderr.split()) <= set(allowed)


def test_help_names_every_command_in_a_whole_sentence() -> None:
    said = cvpo("--help")
    assert said.code == 0
    assert "..." not in said.out.split("Commands:")[1], "a description was cut short"
    for command in COMMANDS:
        assert f"\n  {command} " in said.out
        assert "Example: cvpo" in cvpo(command, "--help").out or command in ("serve", "demo")


def test_help_shows_defaults_that_are_written_in_brackets() -> None:
    text = " ".join(cvpo("train", "--help").out.split())
    assert "Environment steps. [default: the preset's, or 100000]" in text
    assert "inf for none. [default: the preset's, or 25]" in text


def test_the_version_is_printed() -> None:
    import cvpo as package

    assert cvpo("--version").out == f"cvpo {package.__version__}\n"


def test_the_bare_command_shows_help() -> None:
    said = cvpo()
    assert said.code in (0, 2)
    assert (said.out + said.err).startswith("Usage: cvpo")


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("pydantic", "serve", ["evaluate", "x"]),
        ("onnxruntime", "serve", ["evaluate", "127.0.0.1:1"]),
        ("torch", "train", ["train", "SafetyPointCircle2-v0"]),
        ("torch", "train", ["evaluate", "x"]),
        ("torch", "train", ["demo"]),
        ("torch", "train", ["export", "x", "--out", "y"]),
        ("gymnasium", "train", ["check-env", "SafetyPointCircle2-v0"]),
        ("matplotlib", "train", ["plot", "x"]),
    ],
)
def test_a_missing_part_is_named_with_its_extra(module: str, extra: str, arguments: list[str]) -> None:
    outcome = without(module, *arguments)
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    assert outcome.stderr == (
        f"cvpo: this needs {module}, which is not installed. Install the extra it belongs to: "
        f"pip install 'cvpo[{extra}]' (in a checkout: make install).\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "SafetyPointCircle2-v0"]])
def test_the_bare_package_says_that_its_command_line_needs_an_extra(arguments: list[str]) -> None:
    outcome = without("typer", *arguments)
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("cvpo: the command line needs an extra: cvpo[train]")
    assert outcome.stderr.count("\n") == 1


def test_the_server_names_its_own_extra() -> None:
    outcome = without("onnxruntime", "serve", "bundles")
    assert outcome.returncode == 1
    assert outcome.stderr == "The server needs onnxruntime. Install it with: pip install 'cvpo[serve]'\n"


def test_asking_a_service_needs_no_extra_but_the_command_line() -> None:
    for module in ("torch", "onnxruntime", "gymnasium"):
        outcome = without(module, "query", "127.0.0.1:1")
        assert outcome.returncode == 1
        assert outcome.stderr.startswith("cvpo: No server answers at 127.0.0.1:1")


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    outcome = without("json", "query", "127.0.0.1:1")
    assert outcome.returncode == 1
    assert "ModuleNotFoundError" in outcome.stderr


def test_python_m_cvpo_is_the_command(tmp_path: Path) -> None:
    said = run_process("evaluate", tmp_path / "nothing")
    assert said.sentence.startswith("cvpo: ")


def test_a_pipe_that_is_closed_early_is_no_error() -> None:
    closed = subprocess.run(
        f"{sys.executable} -m cvpo --help | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert closed.stdout.startswith("Usage: cvpo")
    assert closed.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["presets", "presets --json", "--help"])
def test_a_full_disk_under_what_is_printed_is_one_sentence(arguments: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        outcome = printing_to(full, arguments, unbuffered)
    assert outcome.returncode == 1
    assert outcome.stderr == (
        "cvpo: No space left on device: what was to be written is incomplete. Free space, or write elsewhere.\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_nobody_reads_is_told_by_the_exit_status_alone(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        outcome = printing_to(pipe, "presets", unbuffered)
    assert (outcome.returncode, outcome.stderr) == (1, "")


def printing_to(file: IO[str], arguments: str, unbuffered: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cvpo", *arguments.split()],
        stdout=file,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=300,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_command_exits_leaves_no_traceback(number: signal.Signals) -> None:
    outcome = python(
        "import atexit, os, signal, sys; sys.argv = ['cvpo', '--version']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
        "from cvpo.__main__ import main; main()"
    )
    assert outcome.returncode == -number
    assert outcome.stderr == ""


def running_in_group(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it is gone
                state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state != "Z":
                    found.append(int(folder.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_evaluation_is_told_and_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    train(tmp_path / "run")
    with spawned("evaluate", tmp_path / "run", "--episodes", "100000") as process:
        assert process.stderr is not None
        assert "rollout" in process.stderr.readline()  # its simulators are made, or being made
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert said == "cvpo: stopped.\n"
    assert process.returncode == 128 + number
    until = time.monotonic() + 30.0
    while running_in_group(process.pid) and time.monotonic() < until:  # Python's own helper takes a moment
        time.sleep(0.05)
    assert not running_in_group(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_export_leaves_no_half_bundle(number: signal.Signals, tmp_path: Path) -> None:
    train(tmp_path / "run")
    many = ("--calibration-episodes", "100000", "--workers", "0")
    with spawned("export", tmp_path / "run", "--out", tmp_path / "bundles" / "1", *many) as process:
        assert process.stderr is not None
        while "100000" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert said.splitlines()[-1] == "cvpo: stopped."
    assert "Traceback" not in said
    assert process.returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
