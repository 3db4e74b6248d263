"""Which version a request gets under a plan, and what is told where the plan cannot be followed."""

import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cvpo.bundle import read_bundle
from serve.errors import FingerprintError, NotFoundError, UnavailableError
from serve.server.plan import Canary, ServingPlan
from serve.server.repository import PolicyVersions, Repository, RepositoryCollector, Snapshot, follow
from serve.server.runtime import PolicyRuntime, load
from tests.serve import bundles

OTHER_NAMES = ("heat", "tear")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[int, PolicyRuntime]:
    """Versions 1 to 6; 4 has other constraints, 5 a shorter horizon, 6 another control period."""
    root = tmp_path_factory.mktemp("versions")
    made = {version: bundles.manifest(version=version) for version in (1, 2, 3)}
    made[4] = bundles.manifest(version=4, constraint_names=OTHER_NAMES)
    made[5] = bundles.manifest(version=5, horizon_steps=99)
    made[6] = bundles.manifest(version=6, control_period_ms=40.0)
    return {
        version: load(read_bundle(bundles.write(root / str(version), manifest))) for version, manifest in made.items()
    }


def only(versions: dict[int, PolicyRuntime], *numbers: int) -> dict[int, PolicyRuntime]:
    return {number: versions[number] for number in numbers}


def repository(**policies: PolicyVersions) -> Repository:
    return Repository(Snapshot(policies, {}))


def numbers(policy: PolicyVersions) -> tuple[int | None, ...]:
    """Versions served, on canary and in the shadow."""
    return tuple(
        None if runtime is None else runtime.served.version for runtime in (policy.served, policy.canary, policy.shadow)
    )


def test_without_a_plan_the_highest_version_is_served_and_others_by_number(versions: dict[int, PolicyRuntime]) -> None:
    policy = follow(only(versions, 1, 2, 3), ServingPlan(), None)
    assert numbers(policy) == (3, None, None)
    assert not policy.problem
    goal = repository(goal=policy)
    assert goal.select("goal", None, "").served.version == 3
    assert goal.select("goal", 1, "").served.version == 1


def test_a_pinned_version_is_served_and_higher_ones_by_number(versions: dict[int, PolicyRuntime]) -> None:
    policy = follow(only(versions, 1, 2, 3), ServingPlan(pinned=2), versions[3])
    assert numbers(policy) == (2, None, None)
    assert repository(goal=policy).select("goal", 3, "").served.version == 3


def test_a_version_on_trial_is_not_served_as_the_highest(versions: dict[int, PolicyRuntime]) -> None:
    plan = ServingPlan(canary=Canary(version=3, share=0.5), shadow=2)
    policy = follow(only(versions, 1, 2, 3), plan, None)
    assert numbers(policy) == (1, 3, 2)
    assert not policy.problem
    alone = follow(only(versions, 3), plan, None)
    assert alone.served is None
    assert "on trial" in alone.problem


def test_a_pinned_version_that_is_not_there_leaves_the_one_before_in_place(versions: dict[int, PolicyRuntime]) -> None:
    policy = follow(only(versions, 1, 3), ServingPlan(pinned=2), versions[1])
    assert numbers(policy) == (1, None, None)
    assert policy.problem == "Version 2, pinned, is not loaded: version 1 goes on."


def test_a_pinned_version_that_is_not_there_at_first_is_not_guessed(versions: dict[int, PolicyRuntime]) -> None:
    policy = follow(only(versions, 1, 3), ServingPlan(pinned=2), None)
    assert numbers(policy) == (None, None, None)
    goal = repository(goal=policy)
    assert not goal.snapshot.ready
    assert repository(goal=policy, reach=follow(only(versions, 1), ServingPlan(), None)).snapshot.ready
    with pytest.raises(UnavailableError, match="Version 2, pinned, is not loaded: nothing is served"):
        goal.select("goal", None, "")
    assert goal.select("goal", 3, "").served.version == 3  # whoever names a version knows what they ask


def test_what_is_served_goes_on_from_memory_when_no_other_may_take_its_place(
    versions: dict[int, PolicyRuntime],
) -> None:
    for plan, loaded in ((ServingPlan(), {}), (ServingPlan(pinned=2), only(versions, 1, 3))):
        policy = follow(loaded, plan, versions[2])
        assert numbers(policy) == (2, None, None)
        assert 2 in policy.loaded
        assert list(policy.loaded) == sorted(policy.loaded)
        assert "version 2 goes on from memory, for its bundle is gone" in policy.problem
    assert numbers(follow(only(versions, 1), ServingPlan(), versions[2])) == (1, None, None)


@pytest.mark.parametrize("role", ["canary", "shadow"])
@pytest.mark.parametrize(
    ("version", "says"),
    [
        (9, "is not loaded"),
        (2, "is served to all"),
        (4, "other spaces or constraints"),
        (5, "shorter horizon"),
        (6, "another control period"),
    ],
)
def test_a_trial_that_cannot_be_is_told_and_the_rest_of_the_plan_is_followed(
    versions: dict[int, PolicyRuntime], role: str, version: int, says: str
) -> None:
    plan = ServingPlan(pinned=2, shadow=1, canary=Canary(version=3, share=0.5))
    trial: dict[str, object] = {"canary": Canary(version=version, share=0.5), "shadow": version}
    policy = follow(versions, plan.model_copy(update={role: trial[role]}), None)
    assert numbers(policy) == ((2, None, 1) if role == "canary" else (2, 3, None))
    assert f"Version {version}" in policy.problem
    assert says in policy.problem
    assert role in policy.problem


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_canary_gets_its_share_of_the_keys(versions: dict[int, PolicyRuntime], share: float) -> None:
    plan = ServingPlan(pinned=1, canary=Canary(version=3, share=share))
    goal = repository(goal=follow(only(versions, 1, 3), plan, None))
    count = 20_000
    got = sum(goal.select("goal", None, "", f"session-{key}").served.version == 3 for key in range(count))
    # Five standard deviations of a binomial: the keys are fixed, so this holds always or never.
    assert abs(got / count - share) <= 5 * (share * (1 - share) / count) ** 0.5


def test_a_key_keeps_its_version_and_a_larger_share_moves_no_one_back(versions: dict[int, PolicyRuntime]) -> None:
    def on_canary(share: float) -> set[int]:
        plan = ServingPlan(pinned=1, canary=Canary(version=3, share=share))
        goal = repository(goal=follow(only(versions, 1, 3), plan, None))
        return {key for key in range(500) if goal.select("goal", None, "", str(key)).served.version == 3}

    assert on_canary(0.3) == on_canary(0.3)
    assert on_canary(0.3) < on_canary(0.6)


def test_other_keys_try_another_version_or_policy(versions: dict[int, PolicyRuntime]) -> None:
    def on_canary(name: str, version: int) -> set[int]:
        plan = ServingPlan(pinned=1, canary=Canary(version=version, share=0.5))
        policies = repository(**{name: follow(only(versions, 1, 2, 3), plan, None)})
        return {key for key in range(400) if policies.select(name, None, "", str(key)).served.version == version}

    # Of 200 a half by chance: four standard deviations. The same ones would bear the risk of every trial.
    first = on_canary("goal", 2)
    for others in (on_canary("goal", 3), on_canary("reach", 2)):
        assert 72 < len(first & others) < 128


def test_processes_agree_who_gets_the_canary() -> None:
    code = "from serve.server.repository import _share_of; print([_share_of(str(key)) for key in range(9)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_caller_without_a_key_or_with_a_version_is_never_on_trial(versions: dict[int, PolicyRuntime]) -> None:
    plan = ServingPlan(pinned=1, canary=Canary(version=3, share=1.0))
    goal = repository(goal=follow(only(versions, 1, 2, 3), plan, None))
    assert goal.select("goal", None, "").served.version == 1
    assert goal.select("goal", 2, "", "session").served.version == 2
    assert goal.select("goal", None, "", "session").served.version == 3


def test_an_unknown_policy_or_version_lists_what_there_is(versions: dict[int, PolicyRuntime]) -> None:
    policy = follow(only(versions, 1, 2), ServingPlan(), None)
    two = repository(goal=policy, other=policy)
    with pytest.raises(NotFoundError, match="goal, other"):
        two.select("gaol", None, "")
    with pytest.raises(NotFoundError, match="1, 2"):
        two.select("goal", 3, "")
    with pytest.raises(NotFoundError, match=r"names no policy.*goal, other"):
        two.select("", None, "")


def test_the_name_may_be_left_out_where_there_is_one_policy(versions: dict[int, PolicyRuntime]) -> None:
    assert repository(goal=follow(versions, ServingPlan(), None)).select("", None, "").served.name == "goal"


def test_as_long_as_nothing_is_loaded_callers_are_told_to_ask_again() -> None:
    with pytest.raises(UnavailableError) as caught:
        repository().select("goal", None, "")
    assert caught.value.retry_after_seconds


def test_another_fingerprint_is_refused(versions: dict[int, PolicyRuntime]) -> None:
    goal = repository(goal=follow(only(versions, 1, 2), ServingPlan(), None))
    fingerprint = versions[2].served.fingerprint
    assert goal.select("goal", None, fingerprint).served.fingerprint == fingerprint
    with pytest.raises(FingerprintError, match=fingerprint):
        goal.select("goal", None, "0" * 16)
    with pytest.raises(FingerprintError, match="version 1 has the fingerprint"):
        goal.select("goal", 1, "0" * 16)


def test_metrics_tell_what_is_served_as_it_is_when_they_are_read(versions: dict[int, PolicyRuntime]) -> None:
    goal = repository(goal=follow(only(versions, 1, 2), ServingPlan(pinned=9), versions[1]))
    registry = CollectorRegistry()
    registry.register(RepositoryCollector(goal))
    text = generate_latest(registry).decode()
    assert 'cvpo_serve_bundle_loaded{policy="goal",version="2"} 1.0' in text
    assert 'cvpo_serve_bundle_served{policy="goal",version="1"} 1.0' in text
    assert 'cvpo_serve_plan_problem{policy="goal"} 1.0' in text
    goal.snapshot = Snapshot({"goal": follow(only(versions, 2), ServingPlan(), None)}, {"goal/3": "why"})
    text = generate_latest(registry).decode()
    assert 'cvpo_serve_bundle_loaded{policy="goal",version="1"}' not in text
    assert 'cvpo_serve_bundle_served{policy="goal",version="2"} 1.0' in text
    assert 'cvpo_serve_plan_problem{policy="goal"} 0.0' in text
    assert 'cvpo_serve_bundle_refused{path="goal/3"} 1.0' in text
