"""What a policy service bears: `python -m benchmarks.faults`.

Sends ten thousand requests that no client of ours sends, half as protobuf messages with wrong contents, half as wrong
bytes on connections of their own; then looks at what the server answered, whether it still answers as before, and what
memory and how many open files it holds.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import errors
from benchmarks.errors import BenchmarkError
from benchmarks.faults.malformed import (
    BLAMELESS,
    PATIENCE_SECONDS,
    Connections,
    Messages,
    send_bytes,
    send_messages,
)
from benchmarks.rounds import finish
from benchmarks.serving.messages import NAME, OBSERVATIONS
from benchmarks.serving.processes import Holdings, ServerProcess, python_server
from benchmarks.serving.workload import write_workload
from serve.client import PolicyClient

THREADS = 8
PARTS = 10  # memory and open files are looked at after each
CONNECTION = "connection"  # of wrong bytes: nobody says what the answer should be, only that the server lives


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, help="in all [default: 10000]")
    parser.add_argument("--seed", type=int, default=0, help="of what is sent [default: 0]")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_workload(Path(folder))
        server = python_server("the server", sys.executable, "serve", str(bundle), "--address", "127.0.0.1:0")
        with closing(server):
            headline = bear(server, arguments.requests, arguments.seed)
    finish("faults", headline, {"seed": arguments.seed, "threads": THREADS}, save=not arguments.no_save)


def bear(server: ServerProcess, requests: int, seed: int) -> dict[str, Any]:
    """Send them all, and return what was answered and kept.

    Raises:
        BenchmarkError: an answer blames the server, or the server does not answer as before.
    """
    address = str(server.ready()["address"])
    began = time.monotonic()
    with PolicyClient(address, NAME, timeout_seconds=PATIENCE_SECONDS) as client:
        right = client.act(np.zeros(OBSERVATIONS)).action
    seeds = random.Random(seed)
    codes: Counter[str] = Counter()
    kept: list[Holdings] = []
    share = requests // PARTS // THREADS
    for part in range(PARTS):
        rngs = [random.Random(seeds.random()) for _ in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            for counted in pool.map(_send, [address] * THREADS, rngs, [share] * THREADS):
                codes.update(counted)
        kept.append(server.holdings())
        print(f"{(part + 1) * share * THREADS} sent, {kept[-1]}", file=sys.stderr, flush=True)
    with PolicyClient(address, NAME, timeout_seconds=PATIENCE_SECONDS) as client:
        if not np.array_equal(client.act(np.zeros(OBSERVATIONS)).action, right):
            raise BenchmarkError("The server answers otherwise than before.")
    if not codes.keys() <= BLAMELESS | {CONNECTION}:
        raise BenchmarkError(f"Some answers blame the server: {dict(codes)}.")
    return {
        "requests": codes.total(),
        "answers": dict(codes.most_common()),
        "memory_mib": [part.memory_mib for part in kept],
        "open_files": [part.open_files for part in kept],
        "seconds": round(time.monotonic() - began, 1),
    }


def _send(address: str, rng: random.Random, count: int) -> Counter[str]:
    """Send half of it as messages and half as bytes."""
    host, port = address.split(":")
    with grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        codes = send_messages(channel, Messages(rng, NAME, OBSERVATIONS), count // 2)
    connections = Connections(rng)
    codes[CONNECTION] += send_bytes(host, int(port), (connections.bytes() for _ in range(count - count // 2)))
    return codes


if __name__ == "__main__":
    errors.run(main)
