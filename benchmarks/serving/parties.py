"""Who takes part: our server in several arrangements, the yardsticks, and the peers; each a process that answers."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestant import ROOT
from benchmarks.errors import BenchmarkError
from benchmarks.peers import peer_python
from benchmarks.serving.messages import ACT, act_bytes, ask_ours, observation
from benchmarks.serving.processes import READY_SECONDS, ServerProcess, python_server

STREAM_SECONDS = 3600.0  # that a stream may last, or be idle
OURS, TWO, UNIX, RUN, ECHO = "ours", "ours two processes", "ours unix", "bare run", "echo"

# Name, environment in benchmarks/peers, and arguments of its serving.py.
_PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mlserver": ("mlserver", ("--workers=0",)),
    "mlserver-default": ("mlserver", ("--workers=1",)),
    "kserve": ("kserve", ()),
    "ray": ("ray", ()),
}
PEERS = tuple(_PEERS)


@dataclass(frozen=True)
class Endpoint:
    """Where a party is asked for one action, and how."""

    address: str
    method: str
    request: bytes
    answer_bytes: int  # of the message


class Parties:
    """All that could be started; the others are in `missing`, with the reason."""

    def __init__(self, stack: ExitStack, folder: Path, bundle: Path) -> None:
        """Start ours.

        Raises:
            BenchmarkError: it does not answer as it should.
        """
        self.endpoints: dict[str, Endpoint] = {}
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._stack, self._folder, self._bundle = stack, folder, bundle
        address = self._ours("127.0.0.1:0")
        self.answers = ask_ours(address)
        self._answers = folder / "answers.json"
        self.answers.write(self._answers)
        self._add(OURS, address)

    def start_others_of_ours(self) -> None:
        """Start our other arrangements and the yardsticks."""
        self._try(UNIX, lambda: self._ours(f"unix:{self._folder / 'ours.sock'}"))
        self._try(TWO, self._two_processes)
        self._try(RUN, lambda: self._yardstick(RUN, "--bundle", str(self._bundle)))
        self._try(ECHO, lambda: self._yardstick(ECHO))

    def start_peers(self, names: Sequence[str]) -> None:
        """Start peers, each in its environment, and check with a client of its own that it answers as it should."""
        for name in names:
            try:
                self.endpoints[name] = self._peer(name)
            except BenchmarkError as error:
                self.missing[name] = str(error)

    def _try(self, name: str, start: Callable[[], str]) -> None:
        try:
            self._add(name, start())
        except BenchmarkError as error:
            self.missing[name] = str(error)

    def _add(self, name: str, address: str) -> None:
        self.endpoints[name] = Endpoint(address, ACT, act_bytes(), self.answers.sizes()["act_response"])

    def _start(self, server: ServerProcess) -> str:
        address = self._stack.enter_context(closing(server)).ready()["address"]
        assert isinstance(address, str)
        return address

    def _ours(self, address: str, *arguments: str) -> str:
        always = (
            "--metrics-address=127.0.0.1:0",  # as in production
            f"--session-idle-seconds={STREAM_SECONDS:g}",  # its streams wait while the others play
        )
        return self._start(
            python_server(OURS, sys.executable, "serve", str(self._bundle), "--address", address, *always, *arguments)
        )

    def _two_processes(self) -> str:
        address = self._ours("127.0.0.1:0", "--share-port")
        self._ours(address, "--share-port")
        return address

    def _yardstick(self, name: str, *arguments: str) -> str:
        answers = ("--answers", str(self._answers))
        return self._start(python_server(name, sys.executable, "benchmarks.serving.yardstick", *answers, *arguments))

    def _peer(self, name: str) -> Endpoint:
        environment, arguments = _PEERS[name]
        python, module = peer_python(environment), f"benchmarks.peers.{environment}.serving"
        server = python_server(name, python, module, "serve", "--bundle", str(self._bundle), *arguments)
        ready = self._stack.enter_context(closing(server)).ready()
        self.versions.update(ready["versions"])
        # It says where it will answer, not that it does: ask until it does.
        command = [str(python), "-m", module, "ask", "--bundle", str(self._bundle), "--address", ready["address"]]
        end = time.monotonic() + READY_SECONDS
        while True:
            done = subprocess.run(
                command, input=json.dumps(observation()), capture_output=True, text=True, cwd=ROOT, check=False
            )
            if not done.returncode:
                break
            if time.monotonic() > end:
                raise server.failure(f"does not answer as it should: {done.stderr}")
        said = json.loads(done.stdout.splitlines()[-1])
        request = base64.b64decode(said["request"])
        return Endpoint(ready["address"], said["method"], request, said["answer_bytes"])
