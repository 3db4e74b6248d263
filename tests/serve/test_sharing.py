"""Robots that ask at the same time share a run of the network: who waits for whom, and that no answer shows it."""

import asyncio
import gc
import time
import urllib.request
import weakref
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from cvpo.bundle import read_bundle
from serve.client import PolicyClient
from serve.errors import DeadlineExceededError, InternalError
from serve.local import LocalPolicy
from serve.server.graph import SHARED_ROWS
from serve.server.runtime import Asked, PolicyRuntime, load
from serve.server.settings import Settings
from serve.server.sharing import SharedRuns
from serve.values import ActLists, Deterministic, Mode, Sampled, Shielded, Situations
from tests.serve import bundles
from tests.serve.running import ServerThread

PATIENCE_SECONDS = 30.0
OVERFLOWS = [1e20, 0.0, 0.0]  # of which the network makes what is no number


def situation(*observation: float) -> Situations:
    return Situations([list(observation)], [10], [[2.0, 4.0]])


SITUATIONS = [situation(1 + i / 8, 2 - i / 4, -1.0) for i in range(200)]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> PolicyRuntime:
    return load(read_bundle(bundles.write(tmp_path_factory.mktemp("bundles") / "bundle")))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many robots each run was for."""
    made: list[int] = []
    act, act_each = PolicyRuntime.act, PolicyRuntime.act_each

    def one(self: PolicyRuntime, situations: Situations, mode: Mode) -> ActLists:
        made.append(1)
        return act(self, situations, mode)

    def several(self: PolicyRuntime, asked: Sequence[tuple[Situations, Mode]]) -> list[ActLists]:
        made.append(len(asked))
        return act_each(self, asked)

    monkeypatch.setattr(PolicyRuntime, "act", one)
    monkeypatch.setattr(PolicyRuntime, "act_each", several)
    return made


def shared_runs() -> tuple[SharedRuns, CollectorRegistry]:
    registry = CollectorRegistry()
    return SharedRuns(registry), registry


def without_time(answer: ActLists | BaseException) -> object:
    return answer._replace(compute_seconds=0.0) if isinstance(answer, ActLists) else answer


def same(answers: Sequence[ActLists | BaseException], expected: Sequence[ActLists]) -> bool:
    return list(map(without_time, answers)) == list(map(without_time, expected))


async def together(
    shared: SharedRuns, policy: PolicyRuntime, asked: Sequence[Situations]
) -> list[ActLists | BaseException]:
    calls = (shared.answer(Asked(policy, situations, Deterministic())) for situations in asked)
    return await asyncio.gather(*calls, return_exceptions=True)


async def turns(count: int) -> None:
    """Let the event loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


def at_once(call: Coroutine[Any, Any, ActLists]) -> ActLists | None:
    """What is answered without waiting."""
    try:
        call.send(None)
    except StopIteration as answered:
        answer: ActLists = answered.value
        return answer
    call.close()
    return None


def test_who_comes_together_is_answered_by_one_run_as_each_alone(runtime: PolicyRuntime, runs: list[int]) -> None:
    expected = [runtime.act(situations, Deterministic()) for situations in SITUATIONS]
    shared, registry = shared_runs()

    async def ask() -> None:
        runs.clear()
        assert same(await together(shared, runtime, SITUATIONS), expected)
        assert runs == [SHARED_ROWS] * 12 + [8]  # the first waits, and finds the others

    asyncio.run(ask())
    assert registry.get_sample_value("cvpo_serve_shared_requests_total") == 200


def test_who_comes_a_little_later_is_waited_for(runtime: PolicyRuntime, runs: list[int]) -> None:
    shared, _ = shared_runs()

    async def late(count: int) -> ActLists:
        await turns(count)
        return await shared.answer(Asked(runtime, SITUATIONS[count], Deterministic()))

    async def ask() -> None:
        await together(shared, runtime, SITUATIONS[:40])
        runs.clear()
        await asyncio.gather(*map(late, range(0, 15, 3)))

    asyncio.run(ask())
    assert runs == [5]


def test_nobody_waits_long_for_others(runtime: PolicyRuntime) -> None:
    shared, registry = shared_runs()

    async def ask() -> None:
        await together(shared, runtime, SITUATIONS[:40])
        call = asyncio.ensure_future(shared.answer(Asked(runtime, SITUATIONS[0], Deterministic())))
        await turns(10)
        assert call.done()

    asyncio.run(ask())
    assert registry.get_sample_value("cvpo_serve_shared_requests_total") == 40  # and it shared with nobody


def test_a_full_run_waits_for_nobody(runtime: PolicyRuntime, runs: list[int]) -> None:
    shared, _ = shared_runs()

    async def ask() -> None:
        await together(shared, runtime, SITUATIONS[:40])
        runs.clear()
        calls = []
        for situations in SITUATIONS[: 3 * SHARED_ROWS]:  # one comes in each turn, without end
            calls.append(asyncio.ensure_future(shared.answer(Asked(runtime, situations, Deterministic()))))
            await asyncio.sleep(0)
        assert runs == [SHARED_ROWS] * 2
        await asyncio.gather(*calls)

    asyncio.run(ask())


def test_who_is_alone_waits_less_and_less_often_until_others_come(runtime: PolicyRuntime, runs: list[int]) -> None:
    shared, _ = shared_runs()

    async def alone(count: int) -> list[int]:
        """How many requests did not wait before each of those that did, and after the last."""
        found = [0]
        for number in range(count):
            answer = at_once(shared.answer(Asked(runtime, SITUATIONS[number], Deterministic())))
            if answer is None:
                found.append(0)
                await turns(10)  # until it is found that nobody is there
            else:
                found[-1] += 1
                assert same([answer], [runtime.act(SITUATIONS[number], Deterministic())])
        return found

    async def ask() -> None:
        # One in 1, 2, 4, 8, 16, 32, 32 waits, the last of them: 95 in all.
        assert await alone(95 + 10) == [0, 1, 3, 7, 15, 31, 31, 10]
        runs.clear()
        await together(shared, runtime, SITUATIONS[:30])
        assert runs == [1] * 21 + [9]  # the next that waits finds the others
        assert await alone(1 + 2 + 4 + 5) == [0, 1, 3, 5]  # and from then on it pays to wait

    asyncio.run(ask())


def test_one_that_cannot_be_answered_is_nobody_elses_failure(runtime: PolicyRuntime, runs: list[int]) -> None:
    shared, registry = shared_runs()
    asked = [(each, Sampled(seed)) for seed, each in enumerate(SITUATIONS[:40])]
    asked[38] = situation(*OVERFLOWS), Sampled(38)

    async def ask() -> list[ActLists | BaseException]:
        return await asyncio.gather(*(shared.answer(Asked(runtime, *each)) for each in asked), return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(answers.pop(38), InternalError)
    assert same(answers, [runtime.act(*each) for each in [*asked[:38], asked[39]]])
    assert registry.get_sample_value("cvpo_serve_shared_requests_total") == 2 * SHARED_ROWS  # and nobody of its run


def test_what_is_no_error_of_ours_reaches_every_caller_and_the_log(
    runtime: PolicyRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    shared, _ = shared_runs()
    monkeypatch.setattr(PolicyRuntime, "act", fail)
    monkeypatch.setattr(PolicyRuntime, "act_each", fail)

    async def ask() -> list[ActLists | BaseException]:
        return await asyncio.wait_for(together(shared, runtime, SITUATIONS[:40]), PATIENCE_SECONDS)

    assert [str(answer) for answer in asyncio.run(ask())] == ["a defect"] * 40
    assert [record.getMessage() for record in caplog.records if record.name.startswith("serve.")] == [
        "shared run failed"
    ] * 3  # of 16, 16 and 8


def test_nothing_holds_a_policy_that_failed_when_it_is_retired(tmp_path: Path) -> None:
    policy = load(read_bundle(bundles.write(tmp_path / "bundle")))
    retired = weakref.ref(policy)
    shared, _ = shared_runs()

    async def fail(policy: PolicyRuntime) -> None:
        with suppress(InternalError):
            await shared.answer(Asked(policy, situation(*OVERFLOWS), Deterministic()))

    async def ask(policy: PolicyRuntime) -> None:
        await asyncio.gather(*(fail(policy) for _ in range(40)))

    gc.disable()  # it would come at some time, and until then the version is in memory, and among the metrics
    try:
        asyncio.run(ask(policy))
        del policy
        assert retired() is None
    finally:
        gc.enable()


def test_for_a_caller_that_has_left_nothing_is_computed(runtime: PolicyRuntime, runs: list[int]) -> None:
    shared, _ = shared_runs()

    async def ask() -> None:
        await together(shared, runtime, SITUATIONS[:40])
        runs.clear()
        calls = [asyncio.ensure_future(shared.answer(Asked(runtime, SITUATIONS[i], Deterministic()))) for i in range(4)]
        await asyncio.sleep(0)
        calls[1].cancel()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE_SECONDS)
        assert isinstance(answers.pop(1), asyncio.CancelledError)
        assert same(answers, [runtime.act(SITUATIONS[i], Deterministic()) for i in (0, 2, 3)])

    asyncio.run(ask())
    assert runs[0] == 3


def test_for_one_that_grew_too_old_while_it_waited_nothing_is_computed(runtime: PolicyRuntime, runs: list[int]) -> None:
    shared, _ = shared_runs()

    async def ask() -> None:
        await together(shared, runtime, SITUATIONS[:40])
        runs.clear()
        untils = [time.perf_counter() + seconds for seconds in (PATIENCE_SECONDS, 0.01, PATIENCE_SECONDS)]
        calls = [
            asyncio.ensure_future(shared.answer(Asked(runtime, SITUATIONS[i], Deterministic()), until))
            for i, until in enumerate(untils)
        ]
        await asyncio.sleep(0)  # they wait
        time.sleep(0.02)  # and something holds up the loop
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers.pop(1), DeadlineExceededError)
        assert runs == [2]
        assert same(answers, [runtime.act(SITUATIONS[i], Deterministic()) for i in (0, 2)])
        runs.clear()
        late = asyncio.ensure_future(shared.answer(Asked(runtime, SITUATIONS[0], Deterministic()), untils[1]))
        with pytest.raises(DeadlineExceededError, match="nothing was computed"):  # nor where it was alone
            await late
        assert runs == []

    asyncio.run(ask())


def test_each_is_answered_by_the_policy_and_in_the_mode_that_it_asked_for(
    runtime: PolicyRuntime, tmp_path: Path
) -> None:
    other = load(read_bundle(bundles.write(tmp_path / "other", bundles.manifest(version=2, calibration=None))))
    modes: list[Mode] = [Deterministic(), Sampled(7), Sampled(8)]
    asked = [(policy, SITUATIONS[i], mode) for i in range(20) for policy in (runtime, other) for mode in modes]
    expected = [policy.act(situations, mode) for policy, situations, mode in asked]
    shared, registry = shared_runs()

    async def ask() -> list[ActLists]:
        return await asyncio.gather(*(shared.answer(Asked(*each)) for each in asked))

    assert same(asyncio.run(ask()), expected)
    assert registry.get_sample_value("cvpo_serve_shared_requests_total") == len(asked)
    assert len({str(answer.action) for answer in expected[:6]}) == 3
    assert len({answer.policy.version for answer in expected}) == 2


def test_who_asks_for_several_actions_or_candidates_shares_no_run(runtime: PolicyRuntime) -> None:
    first, second = SITUATIONS[:2]
    two = Situations(
        [*first.observation, *second.observation],
        [*first.steps_left, *second.steps_left],
        [*first.cost_allowed, *second.cost_allowed],
    )
    asked: list[tuple[Situations, Mode]] = [
        (first, Deterministic()),
        (two, Deterministic()),
        (second, Shielded(4, 7)),
        (second, Sampled(8)),
    ]
    expected = [runtime.act(*each) for each in asked]
    shared, registry = shared_runs()

    async def ask() -> list[ActLists]:
        return await asyncio.gather(*(shared.answer(Asked(runtime, *each)) for each in asked))

    assert same(asyncio.run(ask()), expected)
    assert registry.get_sample_value("cvpo_serve_shared_requests_total") == 2


def test_a_robot_of_another_policy_is_no_company(runtime: PolicyRuntime, tmp_path: Path) -> None:
    other = load(read_bundle(bundles.write(tmp_path / "other", bundles.manifest(version=2))))
    shared, _ = shared_runs()

    async def ask() -> None:
        await together(shared, runtime, SITUATIONS[:40])  # in which each waits for others
        await asyncio.gather(
            *(shared.answer(Asked(policy, SITUATIONS[0], Deterministic())) for policy in (runtime, other))
        )
        assert at_once(shared.answer(Asked(runtime, SITUATIONS[0], Deterministic()))) is not None

    asyncio.run(ask())


def test_company_of_one_policy_is_company_though_a_robot_of_another_is_alone(
    runtime: PolicyRuntime, tmp_path: Path
) -> None:
    other = load(read_bundle(bundles.write(tmp_path / "other", bundles.manifest(version=2))))
    shared, _ = shared_runs()

    async def ask() -> None:
        await asyncio.gather(
            *(shared.answer(Asked(policy, SITUATIONS[0], Deterministic())) for policy in (runtime, runtime, other))
        )
        assert at_once(shared.answer(Asked(runtime, SITUATIONS[0], Deterministic()))) is None

    asyncio.run(ask())


def test_a_policy_whose_answers_would_show_it_never_shares(
    runtime: PolicyRuntime, runs: list[int], tmp_path: Path
) -> None:
    assert runtime.shares
    # A reward value with a share of the mean over all robots of the run.
    mean = "rows = Constant <value = int64[1] {0}> ()  all = ReduceMean <keepdims = 1> (total, rows)"
    whole = f"{mean}  own = Add(total, poison_k)  reward_k = Add(own, all)"

    def changed(text: str) -> str:
        assert "reward_k = Add(total, poison_k)" in text
        return text.replace("reward_k = Add(total, poison_k)", whole)

    mixing = load(read_bundle(bundles.write(tmp_path / "mixing", policy=bundles.policy_graph(changed))))
    assert not mixing.shares
    shared, _ = shared_runs()
    runs.clear()

    async def ask() -> list[ActLists | BaseException]:
        await together(shared, runtime, SITUATIONS[:40])
        runs.clear()
        return await together(shared, mixing, SITUATIONS[:5])

    answers = asyncio.run(ask())
    assert runs == [1] * 5
    assert same(answers, [mixing.act(situations, Deterministic()) for situations in SITUATIONS[:5]])


def test_a_policy_that_fails_on_what_it_may_have_seen_never_shares(runtime: PolicyRuntime, tmp_path: Path) -> None:
    seen = runtime.manifest.observation_statistics
    wide = seen.model_copy(update={"standard_deviation": (1e25,) * 3})
    manifest = runtime.manifest.model_copy(update={"observation_statistics": wide})
    path = bundles.write(tmp_path / "wide", manifest, request=bundles.golden())
    assert not load(read_bundle(path)).shares


def test_robots_of_a_server_share_runs_and_are_answered_as_by_a_policy_of_their_own(tmp_path: Path) -> None:
    bundles.write(tmp_path / "goal" / "1")
    settings = Settings(repository=tmp_path, address="127.0.0.1:0", metrics_address="127.0.0.1:0")
    server, robots, steps = ServerThread(settings), 8, 50
    observations = np.random.default_rng(1).normal(0, 1, (robots, steps, 3))
    start = Barrier(robots)

    def drive(robot: int) -> list[list[float]]:
        with PolicyClient(server.address, timeout_seconds=PATIENCE_SECONDS) as client:
            start.wait(PATIENCE_SECONDS)
            return [client.act(observation).action.tolist() for observation in observations[robot]]

    try:
        with ThreadPoolExecutor(robots) as pool:
            answers = list(pool.map(drive, range(robots)))
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=PATIENCE_SECONDS) as page:
            metrics = page.read().decode()
    finally:
        server.stop(drain_seconds=0)
    with LocalPolicy.load(tmp_path) as local:
        assert answers == [[local.act(o).action.tolist() for o in rows] for rows in observations]
    shared = next(line for line in metrics.splitlines() if line.startswith("cvpo_serve_shared_requests_total"))
    assert float(shared.split()[1]) > 0
