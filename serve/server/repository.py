"""What is served: of each policy the versions that are loaded, which of them the plan gives to whom, and why not."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serve.errors import RETRY_AFTER_SECONDS, FingerprintError, NotFoundError, PlanError, UnavailableError
from serve.server.plan import ServingPlan
from serve.server.runtime import PolicyRuntime


@dataclass(frozen=True)
class PolicyVersions:
    """One policy: its versions, and who gets which."""

    loaded: Mapping[int, PolicyRuntime]  # ascending
    plan: ServingPlan
    served: PolicyRuntime | None  # where a request names no version; None: nobody can say which
    canary: PolicyRuntime | None = None
    shadow: PolicyRuntime | None = None
    problem: str = ""  # why the plan is not followed; empty: it is

    def choose(self, name: str, key: str | None) -> PolicyRuntime | None:
        """Return the version for a caller who names none: the canary for its share of the keys, else the served one."""
        canary, trial = self.canary, self.plan.canary
        if canary is None or trial is None or key is None:
            return self.served
        return canary if _share_of(f"{name}/{trial.version}/{key}") < trial.share else self.served


def _share_of(text: str) -> float:
    """Return a number in [0, 1) that is the same for the same text in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56


@dataclass(frozen=True)
class Snapshot:
    """What is served at one moment; never changed, only replaced."""

    policies: Mapping[str, PolicyVersions] = field(default_factory=dict)  # by name, in order
    refused: Mapping[str, str] = field(default_factory=dict)  # folder relative to the repository -> why, in order

    @property
    def ready(self) -> bool:
        """Whether any policy answers those who name no version."""
        return any(policy.served is not None for policy in self.policies.values())


class Repository:
    """The present snapshot. Whoever replaces it assigns `snapshot`; whoever reads takes it once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def select(self, name: str, version: int | None, fingerprint: str, key: str | None = None) -> PolicyRuntime:
        """Return the policy that a request means. It goes on answering when it is retired meanwhile.

        Args:
            name: may be empty where there is only one policy.
            version: None for the one that the plan gives to this caller.
            fingerprint: what the caller was built for; empty where it does not say.
            key: what stays the same where the caller must stay with one version: the id of a session, or of a request
                that stands alone. None: never a version on trial.

        Raises:
            NotFoundError: no such policy or version; lists those that exist.
            FingerprintError: the policy has another fingerprint.
            UnavailableError: no version is loaded yet, or none is named and nobody can say which is meant.
        """
        policies = self.snapshot.policies
        if not name and len(policies) == 1:
            (name,) = policies
        policy = policies.get(name)
        if policy is None:
            if not policies:
                raise UnavailableError("No policy is loaded yet. Ask again.", RETRY_AFTER_SECONDS)
            asked = f"There is no policy {name!r}" if name else "The request names no policy"
            raise NotFoundError(f"{asked}; this server has {', '.join(policies)}.", "policy.name")
        if version is None:
            runtime = policy.choose(name, key)
            if runtime is None:
                raise UnavailableError(f"Policy {name!r}: {policy.problem}", RETRY_AFTER_SECONDS)
        else:
            named = policy.loaded.get(version)
            if named is None:
                raise NotFoundError(
                    f"Policy {name!r} has no version {version}; this server has {', '.join(map(str, policy.loaded))}.",
                    "policy.version",
                )
            runtime = named
        if fingerprint and fingerprint != runtime.served.fingerprint:
            raise FingerprintError(
                f"Policy {name!r} version {runtime.served.version} has the fingerprint {runtime.served.fingerprint}, "
                f"not {fingerprint}: its spaces or constraints are not those the caller was built for."
            )
        return runtime


def follow(loaded: Mapping[int, PolicyRuntime], plan: ServingPlan, before: PolicyRuntime | None) -> PolicyVersions:
    """Say who gets which version under a plan. Where the version it asks for cannot be served, the one before goes on.

    Args:
        loaded: versions that can be served, ascending.
        plan: what is asked for.
        before: the version served until now, which need not be among them: its bundle may be gone.
    """
    wanted = max(loaded.keys() - plan.on_trial, default=None) if plan.pinned is None else plan.pinned
    served = None if wanted is None else loaded.get(wanted)
    problems = []
    if served is None:
        served = before
        why = (
            "No version is left that is not on trial" if wanted is None else f"Version {wanted}, pinned, is not loaded"
        )
        then = "nothing is served"
        if before is not None:
            then = f"version {before.served.version} goes on"
            then += "" if before.served.version in loaded else " from memory, for its bundle is gone"
        problems.append(f"{why}: {then}.")
    canary = shadow = None
    if served is not None:
        loaded = dict(sorted({**loaded, served.served.version: served}.items()))
        try:
            canary = None if plan.canary is None else _on_trial(plan.canary.version, "canary", loaded, served)
        except PlanError as error:
            problems.append(str(error))
        try:
            shadow = None if plan.shadow is None else _on_trial(plan.shadow, "shadow", loaded, served)
        except PlanError as error:
            problems.append(str(error))
    return PolicyVersions(loaded, plan, served, canary, shadow, " ".join(problems))


def _on_trial(version: int, role: str, loaded: Mapping[int, PolicyRuntime], served: PolicyRuntime) -> PolicyRuntime:
    """Return the version on trial, which must suit the callers of the served one."""
    runtime = loaded.get(version)
    if runtime is None:
        raise PlanError(f"Version {version}, the {role}, is not loaded.")
    if runtime is served:
        raise PlanError(f"Version {version} is served to all, so it cannot be the {role}.")
    if runtime.served.fingerprint != served.served.fingerprint:
        raise PlanError(
            f"Version {version}, the {role}, has other spaces or constraints than version {served.served.version}, "
            "which is served."
        )
    if not runtime.speaks_of(served.frame.horizon_steps, served.manifest.control_period_ms):
        raise PlanError(
            f"Version {version}, the {role}, has a shorter horizon or another control period than version "
            f"{served.served.version}, which is served."
        )
    return runtime


class RepositoryCollector(Collector):
    """The present snapshot as Prometheus metrics, read when they are asked for."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        snapshot = self._repository.snapshot
        loaded = GaugeMetricFamily(
            "cvpo_serve_bundle_loaded", "1 for each version that is loaded.", labels=["policy", "version"]
        )
        served = GaugeMetricFamily(
            "cvpo_serve_bundle_served",
            "1 for the version served where a request names none.",
            labels=["policy", "version"],
        )
        problem = GaugeMetricFamily(
            "cvpo_serve_plan_problem", "1 where a policy's serving.json is not followed, else 0.", labels=["policy"]
        )
        refused = GaugeMetricFamily(
            "cvpo_serve_bundle_refused",
            "1 for each bundle that is refused, and each folder that cannot be read.",
            labels=["path"],
        )
        for name, policy in snapshot.policies.items():
            for version in policy.loaded:
                loaded.add_metric([name, str(version)], 1)
            if policy.served is not None:
                served.add_metric([name, str(policy.served.served.version)], 1)
            problem.add_metric([name], bool(policy.problem))
        for path in snapshot.refused:
            refused.add_metric([path], 1)
        yield from (loaded, served, problem, refused)
