"""A shadow is compared with what was answered, and can do no harm to it."""

import gc
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cvpo.bundle import read_bundle
from serve.codec import Limits
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.server.plan import Canary, ServingPlan, write_plan
from serve.server.repository import Repository, Snapshot, follow
from serve.server.runtime import PolicyRuntime, load
from serve.server.service import PolicyServicer
from serve.server.shadow import Shadow
from serve.server.telemetry import Metrics
from serve.server.watch import Watcher
from serve.values import ActLists, Deterministic, Mode, Sampled, Situations
from tests.serve import bundles

PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[int, PolicyRuntime]:
    """Version 2 answers half of what 1 does; 3 is as 1."""
    root = tmp_path_factory.mktemp("versions")
    half = bundles.policy_graph(lambda text: text.replace("1.0, 2.0", "0.5, 1.0"))
    graphs = {1: None, 2: half, 3: None}
    return {
        version: load(read_bundle(bundles.write(root / str(version), bundles.manifest(version=version), policy=graph)))
        for version, graph in graphs.items()
    }


class Compared:
    """A shadow with its own metrics, and what they tell."""

    def __init__(self, versions: dict[int, PolicyRuntime], plan: ServingPlan) -> None:
        metrics = Metrics()
        self.registry = metrics.registry
        repository = Repository(Snapshot({"goal": follow(versions, plan, None)}))
        self.repository = repository
        self.shadow = Shadow(repository, metrics, lambda function, *arguments: function(*arguments))

    def value(self, name: str, **labels: str) -> float:
        labels = {"policy": "goal", "version": "2", **labels}
        return self.registry.get_sample_value(f"cvpo_serve_shadow_{name}", labels) or 0.0

    def wait(self, outcome: str, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.value("comparisons_total", outcome=outcome) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def compared(versions: dict[int, PolicyRuntime]) -> Iterator[Compared]:
    """Version 1 is served, 2 is its shadow, 3 its canary."""
    compared = Compared(versions, ServingPlan(pinned=1, shadow=2, canary=Canary(version=3, share=0.5)))
    yield compared
    compared.shadow.close()


def asked(*observations: tuple[float, float, float], allowed: float = 100.0) -> Situations:
    return Situations(
        observation=[list(each) for each in observations],
        steps_left=[10] * len(observations),
        cost_allowed=[[allowed, allowed]] * len(observations),
    )


def answer(runtime: PolicyRuntime, situations: Situations, mode: Mode = Deterministic()) -> ActLists:  # noqa: B008  # frozen
    return runtime.act(situations, mode)


def test_the_largest_difference_of_an_action_is_told_in_units_of_its_range(
    compared: Compared, versions: dict[int, PolicyRuntime]
) -> None:
    # u = (0.25, -1) and (0.5, 0): actions (0.25, -2) against (0.125, -1), ranges (2, 4): 1/4; then 0.25/2 = 1/8.
    situations = asked((1, 2, -1), (1, 0, 0))
    compared.shadow.compare(situations, Deterministic(), answer(versions[1], situations))
    compared.wait("compared", 1)
    assert compared.value("action_difference_count") == 2
    assert compared.value("action_difference_sum") == pytest.approx(1 / 4 + 1 / 8)


def test_flags_of_the_shadow_are_counted_and_so_are_those_it_sets_otherwise(
    compared: Compared, versions: dict[int, PolicyRuntime]
) -> None:
    # cost_to_go = 10 |u| = (2.5, 10): with 4 allowed the probabilities are (0.38, 0.71), and the level is 0.6.
    situations = asked((1, 2, -1), allowed=4.0)
    given = answer(versions[1], situations)
    assert given.prediction.violation == [[False, True]]
    compared.shadow.compare(situations, Deterministic(), given)
    other = given._replace(prediction=given.prediction._replace(violation=[[True, True]]))
    compared.shadow.compare(situations, Deterministic(), other)
    compared.wait("compared", 2)
    assert compared.value("flags_total", constraint="wear") == 2
    assert compared.value("flags_total", constraint="heat") == 0
    assert compared.value("differing_flags_total", constraint="wear") == 0
    assert compared.value("differing_flags_total", constraint="heat") == 1


def test_it_draws_what_was_drawn(versions: dict[int, PolicyRuntime]) -> None:
    same = {1: versions[1], 2: replace(versions[3], served=versions[2].served)}  # version 2 that answers as 1 does
    compared = Compared(same, ServingPlan(pinned=1, shadow=2))
    situations = asked((1, 2, -1))
    for seed in range(8):
        compared.shadow.compare(situations, Sampled(seed), answer(versions[1], situations, Sampled(seed)))
    compared.wait("compared", 8)
    assert compared.value("action_difference_sum") == 0
    compared.shadow.close()


def test_it_draws_what_was_drawn_for_a_request_without_a_seed(versions: dict[int, PolicyRuntime]) -> None:
    same = {1: versions[1], 2: replace(versions[3], served=versions[2].served)}
    compared = Compared(same, ServingPlan(pinned=1, shadow=2))
    servicer = PolicyServicer(compared.repository, Limits(), Metrics(), compared.shadow)
    for mode in ({"sampled": pb.Sampled()}, {"shielded": pb.Shielded(candidates=64)}):
        request = pb.ActRequest(situations=[pb.Situation(observation=[1, 2, -1])], **mode)
        actions = {tuple(servicer.Act(request, None).results[0].action) for _ in range(4)}
        assert len(actions) > 1  # each request has a draw of its own
    compared.wait("compared", 8)
    assert compared.value("action_difference_sum") == 0
    compared.shadow.close()


@pytest.mark.parametrize(("version", "comparisons"), [(1, 1), (2, 0), (3, 0)])
def test_only_answers_of_the_served_version_are_compared(
    compared: Compared, versions: dict[int, PolicyRuntime], version: int, comparisons: int
) -> None:
    situations = asked((1, 2, -1))
    compared.shadow.compare(situations, Deterministic(), answer(versions[version], situations))
    compared.shadow._pool.shutdown(wait=True)  # until all that waits is compared
    assert compared.value("comparisons_total", outcome="compared") == comparisons
    assert compared.value("action_difference_count") == comparisons


class Stuck(PolicyRuntime):
    """Computes when it is told to."""

    release = threading.Event()

    def act(self, situations: Situations, mode: Mode) -> ActLists:
        self.release.wait(PATIENCE_SECONDS)
        return super().act(situations, mode)


class Failing(PolicyRuntime):
    def act(self, situations: Situations, mode: Mode) -> ActLists:
        raise RuntimeError("of a kind that nobody thought of")


def in_place_of(runtime: PolicyRuntime, kind: type[PolicyRuntime]) -> PolicyRuntime:
    return kind(**vars(runtime))


def test_what_it_cannot_keep_up_with_is_dropped_and_no_one_waits(versions: dict[int, PolicyRuntime]) -> None:
    stuck = {1: versions[1], 2: in_place_of(versions[2], Stuck)}
    compared = Compared(stuck, ServingPlan(pinned=1, shadow=2))
    situations = asked((1, 2, -1))
    given = answer(versions[1], situations)
    for _ in range(100):
        compared.shadow.compare(situations, Deterministic(), given)
    assert compared.value("comparisons_total", outcome="dropped") == 100 - 32
    Stuck.release.set()
    compared.wait("compared", 32)
    compared.shadow.compare(situations, Deterministic(), given)
    compared.wait("compared", 33)
    compared.shadow.close()


def test_its_failures_are_counted_and_logged_once(
    versions: dict[int, PolicyRuntime], caplog: pytest.LogCaptureFixture
) -> None:
    compared = Compared({1: versions[1], 2: in_place_of(versions[2], Failing)}, ServingPlan(pinned=1, shadow=2))
    situations = asked((1, 2, -1))
    for _ in range(5):
        compared.shadow.compare(situations, Deterministic(), answer(versions[1], situations))
    compared.wait("failed", 5)
    assert caplog.messages.count("shadow failed") == 1
    compared.shadow.close()


def test_a_shadow_that_failed_is_let_go_when_it_is_retired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.server.shadow.log", lambda *_, **__: None)  # pytest keeps what is logged, and its frames
    for version in (1, 2):
        bundles.write(tmp_path / "goal" / str(version), bundles.manifest(version=version))
    write_plan(tmp_path, "goal", ServingPlan(pinned=1, shadow=2))
    watcher = Watcher(tmp_path, allow_uncalibrated=False)
    watcher.poll(first=True)
    shadow = Shadow(watcher.repository, Metrics(), lambda function, *arguments: function(*arguments))
    given = answer(watcher.repository.select("goal", 1, ""), asked((1, 2, -1)))
    shadow.compare(asked((1e30, 0, 0)), Deterministic(), given)  # for which the policy by hand has no answer
    shutil.rmtree(tmp_path / "goal" / "2")
    write_plan(tmp_path, "goal", ServingPlan(pinned=1))
    watcher.poll()
    deadline = time.monotonic() + PATIENCE_SECONDS
    gone: list[tuple[str, int]] = []
    while not gone:
        assert time.monotonic() < deadline
        time.sleep(0.005)
        gc.collect()
        gone = watcher.gone()
    assert gone == [("goal", 2)]
    shadow.close()
