"""The two load generators that are not Python: a C++ client, made here from our protos, and h2load.

Both come with Debian: `apt-get install nghttp2-client g++ libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc`.
"""

import hashlib
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.contestant import ROOT
from benchmarks.errors import BenchmarkError
from benchmarks.serving.messages import act_bytes, session
from cvpo.commands.latency import Latency

SOURCE = Path(__file__).parent / "cpp" / "client.cc"
BUILD = ROOT / "benchmarks" / ".peers" / "cpp"  # ignored by git, as the peers' environments are
PACKAGES = "nghttp2-client g++ libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc"
_PROTOS = ("cvpo/v1/policy.proto", "cvpo/v1/control.proto", "google/rpc/status.proto")
_FULL = 0.95  # an answer tells the time that it took, in a few bytes more or less
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


class MissingToolError(BenchmarkError):
    """A program that the benchmark starts is not installed."""


def cpp_client() -> Path:
    """Make the C++ client, unless it is there and of today's source; its path.

    Raises:
        MissingToolError: the compiler, protoc or gRPC's headers are not installed.
        BenchmarkError: it does not compile.
    """
    for tool in ("g++", "protoc", "grpc_cpp_plugin"):
        _find(tool)
    protos = [next(root / name for root in _roots() if (root / name).is_file()) for name in _PROTOS]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in (SOURCE, *protos))).hexdigest()
    client, stamp = BUILD / "client", BUILD / "made-from"
    if stamp.is_file() and stamp.read_text() == digest:
        return client
    print(f"compiling {SOURCE.relative_to(ROOT)}", file=sys.stderr)
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    include = [f"-I{root}" for root in _roots()]
    plugin = f"--plugin=protoc-gen-grpc={_find('grpc_cpp_plugin')}"
    _run(["protoc", *include, f"--cpp_out={BUILD}", f"--grpc_out={BUILD}", plugin, *_PROTOS])
    sources = [str(path) for path in sorted(BUILD.rglob("*.cc"))]
    _run(
        [
            "g++",
            "-std=c++17",
            "-O2",
            f"-I{BUILD}",
            str(SOURCE),
            *sources,
            "-o",
            str(client),
            "-Wl,--copy-dt-needed-entries",
            "-lgrpc++",
            "-lprotobuf",
        ]
    )
    stamp.write_text(digest)
    return client


def write_cpp_requests(path: Path) -> None:
    """Write what the C++ client asks."""
    opening, step = session()
    messages = (act_bytes(), opening.SerializeToString(), step.SerializeToString())
    path.write_bytes(b"".join(b"%d\n%s" % (len(message), message) for message in messages))


def cpp_waits(client: Path, address: str, way: str, seconds: float, requests: Path) -> Latency:
    """One turn of the C++ client."""
    done = _run([str(client), address, way, str(seconds), str(requests)])
    return Latency(np.array(done.split(), np.float64) * 1e-6)


@dataclass(frozen=True)
class Throughput:
    """What h2load says of one turn."""

    requests_per_second: float
    mean_us: float
    max_us: float
    bytes_per_answer: float  # what an error lacks: its status is 200, too

    @classmethod
    def parse(cls, said: str) -> "Throughput":
        """Read h2load's report.

        Raises:
            BenchmarkError: a request failed, or it is no such report.
        """
        rate = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", said)
        requests = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", said)
        data = re.search(r"\((\d+)\) data", said)
        times = re.search(r"time for request:\s+\S+\s+([\d.]+)(us|ms|s)\s+([\d.]+)(us|ms|s)", said)
        if not (rate and requests and data and times):
            raise BenchmarkError(f"h2load said something else:\n{said}")
        if int(requests[3]) or not int(requests[2]):
            raise BenchmarkError(f"{requests[3]} of {requests[1]} of h2load's requests failed:\n{said}")
        longest, mean = (float(times[i]) * _UNITS[times[i + 1]] for i in (1, 3))
        return cls(float(rate[1]), mean, longest, int(data[1]) / int(requests[2]))

    def check(self, answer_bytes: int) -> None:
        """Refuse a turn in which answers of that size were missing; errors have none.

        Raises:
            BenchmarkError: there were.
        """
        if self.bytes_per_answer < _FULL * answer_bytes:
            raise BenchmarkError(
                f"h2load got {self.bytes_per_answer:.0f} bytes an answer, not {answer_bytes}: some were errors."
            )


def find_h2load() -> str:
    """Its path.

    Raises:
        MissingToolError: it is not installed.
    """
    return _find("h2load")


def h2load(address: str, clients: int, seconds: float, body: Path, method: str) -> Throughput:
    """One turn of h2load: so many connections, each with one request open at a time.

    Raises:
        MissingToolError: it is not installed. BenchmarkError: a request failed.
    """
    headers = ("content-type: application/grpc", "te: trailers")
    # A duration of h2load is whole seconds, after its warm-up.
    return Throughput.parse(
        _run(
            [
                find_h2load(),
                f"--clients={clients}",
                "--max-concurrent-streams=1",
                f"--duration={round(seconds)}",
                "--warm-up-time=200ms",
                f"--data={body}",
                *(f"--header={header}" for header in headers),
                f"http://{address}{method}",
            ]
        )
    )


def write_h2load_body(path: Path, request: bytes) -> None:
    """Write a request as gRPC frames it: not compressed, and its length."""
    path.write_bytes(struct.pack(">BI", 0, len(request)) + request)


def _roots() -> tuple[Path, ...]:
    return ROOT / "protos", ROOT / "protos" / "third_party"


def _find(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        raise MissingToolError(f"{tool} is not installed; on Debian: apt-get install {PACKAGES}")
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise BenchmarkError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{said}")
    return done.stdout
