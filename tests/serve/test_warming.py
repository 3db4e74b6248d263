"""When a network is run for nobody: shortly before a step is expected, and for no more than a share of the time."""

import asyncio
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

import serve.server.graph
import serve.server.warming
from cvpo.bundle import POLICY_GRAPH
from serve.errors import InternalError
from serve.server.warming import Expectation, Warming
from tests.serve.test_graph import graph, inputs

INTERVAL = 0.2
LEAD_SECONDS = 0.15  # of which a busy machine may be late
EARLY = 1e-3  # how much sooner than it was told to a loop may call back, and clocks differ


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.server.warming, "_LEAD_SECONDS", LEAD_SECONDS)
    monkeypatch.setattr(serve.server.graph, "_LONG_SECONDS", 10.0)


class Network:
    """Notes when it is run for nobody."""

    def __init__(self, seconds: float) -> None:
        self.runs: list[float] = []
        self._seconds = seconds

    def keep_warm(self, since: float) -> float:
        assert since <= time.perf_counter()
        self.runs.append(time.perf_counter())
        return self._seconds


def expect(
    hold: Callable[[Expectation, Network, float], None], seconds: float = 1e-6
) -> tuple[list[float], float, float]:
    """Let a stream hold its expectation, and return the runs until well after, the metric, and when it began."""

    async def run() -> tuple[list[float], float, float]:
        registry, network, now = CollectorRegistry(), Network(seconds), time.perf_counter()
        hold(Expectation(Warming(registry)), network, now)
        await asyncio.sleep(4 * INTERVAL)
        runs = list(network.runs)
        await asyncio.sleep(INTERVAL)
        assert network.runs == runs  # it has ended: the robot does not come
        return runs, registry.get_sample_value("cvpo_serve_warming_runs_total") or 0.0, now

    return asyncio.run(run())


def two_steps(expectation: Expectation, network: Network, now: float) -> None:
    expectation.begin(network, now - INTERVAL)
    expectation.begin(network, now)


def test_a_network_is_run_shortly_before_a_step_is_expected_and_no_longer_when_it_does_not_come() -> None:
    runs, counted, began = expect(two_steps)
    assert runs
    assert counted == len(runs)
    assert began + INTERVAL - LEAD_SECONDS - EARLY <= runs[0]


def test_the_first_step_says_nothing_of_the_second() -> None:
    runs, counted, _ = expect(lambda expectation, network, now: expectation.begin(network, now))
    assert not runs
    assert not counted


def test_no_network_is_run_when_the_step_is_here() -> None:
    def hold(expectation: Expectation, network: Network, now: float) -> None:
        two_steps(expectation, network, now)
        expectation.end()

    runs, _, _ = expect(hold)
    assert not runs


def test_no_network_is_run_by_a_loop_that_is_late() -> None:
    def hold(expectation: Expectation, network: Network, now: float) -> None:
        two_steps(expectation, network, now)
        time.sleep(INTERVAL)

    runs, _, _ = expect(hold)
    assert not runs


def test_a_network_is_run_once_where_steps_come_faster_than_it_could_be_prepared_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hold(expectation: Expectation, network: Network, now: float) -> None:
        expectation.begin(network, now - 1e-3)
        expectation.begin(network, now)

    monkeypatch.setattr(serve.server.warming, "_AGAIN_SECONDS", 10.0)  # in which it is still at once
    runs, _, _ = expect(hold)
    assert len(runs) == 1


def test_one_that_takes_long_is_run_once_for_what_was_saved_up() -> None:
    runs, counted, _ = expect(two_steps, seconds=10.0)
    assert len(runs) == counted == 1


def test_all_streams_share_the_time() -> None:
    def hold(expectation: Expectation, network: Network, now: float) -> None:
        two_steps(expectation, network, now)
        two_steps(Expectation(expectation._warming), network, now)

    runs, _, _ = expect(hold, seconds=10.0)
    assert len(runs) == 1


def test_a_graph_is_run_for_nobody_unless_others_keep_it_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.server.graph, "_WARM_SECONDS", 1e6)
    network, situation = graph(POLICY_GRAPH), inputs(POLICY_GRAPH, [1.0, 2.0, -1.0], 1)
    answer = network.run(situation)
    answered = time.perf_counter()
    assert network.keep_warm(answered) > 0  # it was run for this stream itself
    assert network.keep_warm(answered) == 0  # and now for another one
    monkeypatch.setattr(serve.server.graph, "_WARM_SECONDS", 0.0)
    assert network.keep_warm(answered) > 0  # but that is long ago
    assert network.run(situation) == answer


def test_a_graph_that_takes_long_is_not_run_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.server.graph, "_LONG_SECONDS", 0.0)
    network = graph(POLICY_GRAPH)
    network.run(inputs(POLICY_GRAPH, [1.0, 2.0, -1.0], 1))
    assert network.keep_warm(time.perf_counter()) == 0


def test_a_graph_is_not_run_for_nobody_on_what_it_failed_at() -> None:
    network = graph(
        POLICY_GRAPH,
        ("index = Unsqueeze(chosen, middle)", "far_k = Cast <to = 7> (shift_score)  index = Unsqueeze(far_k, middle)"),
    )
    network.run(inputs(POLICY_GRAPH, [1.0, 2.0, -1.0], 1))
    with pytest.raises(InternalError, match="index"):
        network.run(inputs(POLICY_GRAPH, [9.0, 0.0, 0.0], 1))  # six standard deviations: the seventh candidate of one
    assert network.keep_warm(time.perf_counter()) == 0
    network.run(inputs(POLICY_GRAPH, [1.0, 2.0, -1.0], 1))
    assert network.keep_warm(time.perf_counter()) > 0


def test_a_graph_that_is_in_use_is_not_waited_for() -> None:
    network = graph(POLICY_GRAPH)
    with network._rows[0]._lock:
        assert network.keep_warm(time.perf_counter()) == 0
