"""What is measured of whom: a case is a name and one turn."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.serving.messages import observation, session
from benchmarks.serving.network import Network
from benchmarks.serving.parties import ECHO, OURS, PEERS, RUN, TWO, UNIX, Endpoint, Parties
from benchmarks.serving.tools import (
    MissingToolError,
    Throughput,
    cpp_client,
    cpp_waits,
    find_h2load,
    h2load,
    write_cpp_requests,
    write_h2load_body,
)
from cvpo.commands.latency import Latency
from cvpo.commands.load import Asker, Load, StreamAsker, UnaryAsker, on_schedule, one_after_the_other
from serve.local import LocalPolicy

SECONDS = 1.0  # of a turn
PACED_SECONDS = 2.0
PACED_HZ = {1: 100.0, 16: 50.0, 64: 20.0}  # of each client, by their number: below what one process can answer
_TIMEOUT_SECONDS = 5.0

LatencyCases = dict[str, Callable[[], Latency]]
RateCases = dict[str, Callable[[], Throughput]]


class Cases:
    """The turns of all parties; a case that asks over the network has its connections from its first turn on."""

    def __init__(self, stack: ExitStack, folder: Path, parties: Parties, bundle: Path) -> None:
        self._stack, self._folder, self._bundle = stack, folder, bundle
        self._endpoints = parties.endpoints
        self.missing: dict[str, str] = {}

    def closed(self) -> LatencyCases:
        """One client that asks as soon as it has its answer."""
        cases = self.unary((RUN, OURS, ECHO, UNIX, *PEERS))
        for party in (RUN, OURS, ECHO, UNIX):
            cases |= self._served(f"{party} stream", party, "stream", self._hurry)
        cases |= self._in_process(self._hurry)
        try:
            client, requests = cpp_client(), self._folder / "cpp-requests"
        except MissingToolError as error:
            self.missing["c++ client"] = str(error)
            return cases
        write_cpp_requests(requests)
        for party in (RUN, OURS, ECHO):
            if party in self._endpoints:
                address = self._endpoints[party].address
                cases[f"{party} stream c++"] = partial(cpp_waits, client, address, "stream", SECONDS, requests)
        return cases

    def unary(self, parties: Sequence[str]) -> LatencyCases:
        """The same, one call per question, of these parties."""
        cases: LatencyCases = {}
        for party in parties:
            cases |= self._served(f"{party} unary", party, "unary", self._hurry)
        return cases

    def paced(self) -> LatencyCases:
        """Clients that ask on a schedule."""
        cases = self._in_process(partial(self._pace, 1))
        for clients in PACED_HZ:
            for party in (RUN, OURS, UNIX, TWO) if clients > 1 else (RUN, OURS, UNIX, PEERS[0], PEERS[1]):
                for way in ("unary", "stream") if party not in PEERS else ("unary",):
                    cases |= self._served(f"{party} {way} {clients}", party, way, partial(self._pace, clients), clients)
        return cases

    def throughput(self) -> RateCases:
        """As many requests as they answer, of 1, 16 and 64 clients."""
        cases: RateCases = {}
        for clients in PACED_HZ:
            cases |= self.rates((RUN, OURS, TWO, ECHO, *(PEERS if clients == 16 else ())), clients)
        return cases

    def rates(self, parties: Sequence[str], clients: int) -> RateCases:
        """As many requests as these parties answer, of so many clients."""
        try:
            find_h2load()
        except MissingToolError as error:
            self.missing["h2load"] = str(error)
            return {}
        cases: RateCases = {}
        for party in parties:
            if party in self._endpoints:
                endpoint, body = self._endpoints[party], self._folder / f"{party}.body"
                write_h2load_body(body, endpoint.request)
                cases[f"{party} {clients}"] = partial(_rate, endpoint, clients, body)
        return cases

    def _in_process(self, play: "Callable[[list[Asker]], Latency]") -> LatencyCases:
        network, local = Network(self._bundle), LocalPolicy.load(self._bundle)
        inputs, values = network.inputs(observation()), observation()
        return {
            "onnxruntime in process": partial(play, [_InProcess(lambda: network.run(inputs))]),
            "ours in process": partial(play, [_InProcess(lambda: local.act(values))]),
        }

    def _served(
        self, name: str, party: str, way: str, play: Callable[[list[Asker]], Latency], clients: int = 1
    ) -> LatencyCases:
        if party not in self._endpoints:
            return {}
        askers: list[Asker] = []

        def turn() -> Latency:
            while len(askers) < clients:
                askers.append(self._stack.enter_context(closing(_asker(self._endpoints[party], way))))
                code = askers[-1].ask()
                if code != "OK":
                    raise BenchmarkError(f"{name}: the first answer is {code}")
            return play(askers)

        return {name: turn}

    @staticmethod
    def _hurry(askers: list[Asker]) -> Latency:
        return _latency(one_after_the_other(askers, SECONDS))

    @staticmethod
    def _pace(clients: int, askers: list[Asker]) -> Latency:
        return _latency(on_schedule(askers, PACED_HZ[clients], PACED_SECONDS, _TIMEOUT_SECONDS))


class _InProcess:
    """An asker that asks nobody."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def ask(self) -> str:
        self._work()
        return "OK"

    def close(self) -> None:
        """There is nothing to close."""


def _asker(endpoint: Endpoint, way: str) -> Asker:
    if way == "stream":
        return StreamAsker(endpoint.address, *session(), _TIMEOUT_SECONDS)
    return UnaryAsker(endpoint.address, endpoint.method, endpoint.request, _TIMEOUT_SECONDS)


def _rate(endpoint: Endpoint, clients: int, body: Path) -> Throughput:
    done = h2load(endpoint.address, clients, SECONDS, body, endpoint.method)
    done.check(endpoint.answer_bytes)
    return done


def _latency(load: Load) -> Latency:
    if not len(load.waits):
        raise BenchmarkError(f"No answer: {dict(load.errors)}")
    return load.latency
