"""How fast the service answers: `python -m benchmarks.serving`.

Starts every party itself, and lets them play in turns of a second, all up at once; a ratio is taken within a round and
given as the median over the rounds. Needs Debian's nghttp2-client, g++, libgrpc++-dev, libprotobuf-dev and
protobuf-compiler-grpc; peers come from the package index, each into an environment of its own. What could not be had
is named in the output under "missing".
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import errors
from benchmarks.contestant import versions
from benchmarks.rounds import finish, interleave
from benchmarks.serving.cases import Cases
from benchmarks.serving.figures import (
    TARGETS,
    latency_document,
    latency_table,
    ratio_table,
    ratios,
    throughput_document,
    throughput_table,
)
from benchmarks.serving.parties import OURS, PEERS, Parties
from benchmarks.serving.workload import CONTROL_PERIOD_MS, write_workload

BESIDE = ("kserve", "ray")  # play after the others: Ray is busy even where nobody asks
T = TypeVar("T")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each case [default: 5]")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="which of them [default: all]")
    parser.add_argument("--quick", action="store_true", help="what the ratios need: no load on a schedule")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases that have this text in their name")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with it
    began = time.monotonic()

    def play(what: str, contestants: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        chosen = {name: turn for name, turn in contestants.items() if arguments.only in name}
        print(f"{what}: {len(chosen)} cases, {arguments.rounds} rounds", file=sys.stderr, flush=True)
        return interleave(chosen, arguments.rounds)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = write_workload(folder)
        parties = Parties(stack, folder, bundle)
        parties.start_others_of_ours()
        parties.start_peers([name for name in arguments.peers if name not in BESIDE])
        cases = Cases(stack, folder, parties, bundle)
        closed = play("one question after the other", cases.closed())
        rates = play("as many as it answers", cases.throughput())
        paced = {} if arguments.quick else play("on a schedule", cases.paced())
        late = [name for name in BESIDE if name in arguments.peers]
        parties.start_peers(late)
        closed_beside = play("one after the other, beside others", cases.unary((OURS, *late)) if late else {})
        rates_beside = play("as many as it answers, beside others", cases.rates((OURS, *late), 16) if late else {})

    found = ratios(closed, rates) | ratios(closed_beside, rates_beside)
    period = CONTROL_PERIOD_MS / 1e3
    headline: dict[str, Any] = {
        "ratios": {name: round(ratio.median, 3) for name, ratio in found.items()},
        "spread": {name: ratio.document() for name, ratio in found.items()},
        "closed": latency_document(closed_beside | closed, period),
        "paced": latency_document(paced, period),
        "throughput": throughput_document(rates_beside | rates),
        "missing": parties.missing | cases.missing,
    }
    details = {
        "rounds": arguments.rounds,
        "seconds": round(time.monotonic() - began),
        "control_period_ms": CONTROL_PERIOD_MS,
        "payload_bytes": parties.answers.sizes(),
        "versions": versions(["grpcio", "protobuf", "onnxruntime", "numpy"]) | parties.versions,
    }
    for name in ("closed", "paced"):
        print(f"{name}\n{latency_table(headline[name])}\n")
    print(f"{throughput_table(headline['throughput'])}\n\n{ratio_table(headline['spread'], TARGETS)}\n")
    for name, why in headline["missing"].items():
        print(f"missing   {name}: {why}")
    print(f"took      {details['seconds']} s")
    finish("serving", headline, details, save=not arguments.no_save)


if __name__ == "__main__":
    errors.run(main)
