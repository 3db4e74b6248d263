"""Server processes: started, waited for until they answer, and ended with all that they started."""

import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestant import ROOT
from benchmarks.errors import BenchmarkError

READY_SECONDS = 120.0
_END_SECONDS = 10.0
_LAST_LINES = 20


@dataclass(frozen=True)
class Holdings:
    """What a process holds at one moment."""

    memory_mib: float  # its own or of files, in memory
    open_files: int
    threads: int


class ServerProcess:
    """One server and its children. Close it, or use it in an ExitStack with `closing`."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"},
            start_new_session=True,  # so that its children can be ended with it
        )

    def ready(self) -> dict[str, Any]:
        """Wait for the line of JSON in which the server says that it answers.

        Raises:
            BenchmarkError: it ended, or took too long; with the end of its log.
        """
        stdout = self._process.stdout
        assert stdout
        end = time.monotonic() + READY_SECONDS
        while select.select([stdout], [], [], max(end - time.monotonic(), 0))[0]:
            line = stdout.readline()
            if not line:
                raise self.failure(f"ended with exit code {self._process.wait()}")
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                threading.Thread(target=stdout.read, daemon=True).start()  # a full pipe would stop it
                return answer
        raise self.failure(f"was not ready within {READY_SECONDS:g} s")

    def holdings(self) -> Holdings:
        """What it holds now."""
        of = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":", 1) for line in (of / "status").read_text().splitlines())
        memory_kib = int(status["VmRSS"].removesuffix("kB"))
        return Holdings(round(memory_kib / 1024, 1), len(list((of / "fd").iterdir())), int(status["Threads"]))

    def core_seconds(self) -> float:
        """What it has used of the processor."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = 11, 12  # after its name and the parenthesis
        return (int(fields[user]) + int(fields[system])) / os.sysconf("SC_CLK_TCK")

    def failure(self, what: str) -> BenchmarkError:
        """The error that says what is wrong, with the end of the log."""
        self._log.seek(0)
        said = "".join(self._log.readlines()[-_LAST_LINES:]).strip()
        return BenchmarkError(f"{self.name} {what}. The end of its log:\n{said or '(nothing)'}")

    def close(self) -> None:
        """End it and its children."""
        for number, patience in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, _END_SECONDS)):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(patience)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._log.close()


def python_server(name: str, python: str | Path, module: str, *arguments: str) -> ServerProcess:
    """`python -m module arguments`."""
    return ServerProcess(name, [str(python), "-m", module, *arguments])
