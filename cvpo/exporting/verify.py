"""Whether a bundle is what it says it is: the very checks of a server, that it makes before it serves one."""

import platform
import statistics
import time
from pathlib import Path

from cvpo.bundle import POLICY_GRAPH, Bundle, TrustedKeys, read_bundle
from cvpo.errors import BundleError
from cvpo.exporting.runtime import open_graph

CALLS, UNTIMED = 300, 30


def verify_bundle(path: Path, trusted: TrustedKeys | None) -> Bundle:
    """Read a bundle, verify all of it, load it, and ask its golden request.

    Raises:
        BundleError: a server would refuse it; says why.
    """
    from serve.errors import RefusedBundleError
    from serve.server.runtime import load

    bundle = read_bundle(path, trusted)
    try:
        load(bundle)
    except RefusedBundleError as error:
        raise BundleError(f"{path}: {error}") from error
    return bundle


def call_microseconds(bundle: Bundle) -> float:
    """Median time of one call of a verified bundle's policy here: one situation of its golden request, one candidate.

    In a loop of calls, with all of it in the processor's caches; in a server, where other things are done in between, a
    call takes longer.
    """
    session = open_graph(bundle.policy_graph)
    inputs = {
        name: value if name == "alarm_level" else value[:1]
        for name, value in bundle.golden.inputs[POLICY_GRAPH].items()
    }
    inputs["noise"] = inputs["noise"][:, :1]
    seconds = []
    for _ in range(UNTIMED + CALLS):
        began = time.perf_counter()
        session.run(None, inputs)
        seconds.append(time.perf_counter() - began)
    return 1e6 * statistics.median(seconds[UNTIMED:])


def processor() -> str:
    """What the processor of this machine calls itself."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
