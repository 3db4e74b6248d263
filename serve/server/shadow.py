"""A second version beside the served one: computes on the same inputs, is compared, and is never answered."""

import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from prometheus_client import Counter, Histogram

from serve.server.repository import Repository
from serve.server.runtime import PolicyRuntime
from serve.server.telemetry import Metrics, log
from serve.values import ActLists, Mode, Situations

logger = logging.getLogger(__name__)

# Answers that may wait for their comparison. More would only be compared later, and hold memory until then.
_WAITING = 32

_BUCKETS = (0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Shadow:
    """Compares answers with those of the shadow version, in a thread of its own.

    An answer never waits for it, and what goes wrong in it is counted and logged. What comes faster than it can compute
    is dropped, and that is counted too.
    """

    def __init__(self, repository: Repository, metrics: Metrics, when_answered: Callable[..., object]) -> None:
        """Begin with nothing to compare.

        Args:
            repository: says which version is the shadow.
            metrics: of the server, to which the shadow's are added.
            when_answered: calls a function with arguments once the answer is on its way, as an event loop's
                `call_soon_threadsafe` does.
        """
        self._repository = repository
        self._when_answered = when_answered
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._room = threading.BoundedSemaphore(_WAITING)
        self._told: weakref.ref[PolicyRuntime] | None = None  # whose failure was logged last; it may be retired since
        self._comparisons = metrics.by_version(
            Counter(
                "cvpo_serve_shadow_comparisons",
                "Answers of the served version by what became of their comparison: compared, dropped, failed.",
                ["policy", "version", "outcome"],
                registry=metrics.registry,
            )
        )
        self._difference = metrics.by_version(
            Histogram(
                "cvpo_serve_shadow_action_difference",
                "Largest difference between the shadow's action and the answered one, in units of the action's range.",
                ["policy", "version"],
                buckets=_BUCKETS,
                registry=metrics.registry,
            )
        )
        self._flags = metrics.by_version(
            Counter(
                "cvpo_serve_shadow_flags",
                "Predictions of the shadow with a raised violation flag, by constraint.",
                ["policy", "version", "constraint"],
                registry=metrics.registry,
            )
        )
        self._differing = metrics.by_version(
            Counter(
                "cvpo_serve_shadow_differing_flags",
                "Predictions whose violation flag the shadow sets otherwise, by constraint.",
                ["policy", "version", "constraint"],
                registry=metrics.registry,
            )
        )

    def compare(self, situations: Situations, mode: Mode, answer: ActLists) -> None:
        """Have the shadow answer as well, if there is one and the served version gave the answer; returns at once.

        Args:
            situations: what was asked.
            mode: how the action was chosen, with the seed of what was drawn.
            answer: of the served version.
        """
        policy = self._repository.snapshot.policies.get(answer.policy.name)
        if policy is None or policy.shadow is None or policy.served is None or policy.served.served != answer.policy:
            return
        if not self._room.acquire(blocking=False):
            self._count(policy.shadow, "dropped")
            return
        self._when_answered(self._pool.submit, self._compare, policy.shadow, situations, mode, answer)

    def close(self) -> None:
        """Compare no more; what is being computed ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compare(self, shadow: PolicyRuntime, situations: Situations, mode: Mode, answer: ActLists) -> None:
        try:
            self._record(shadow, shadow.act(situations, mode), answer)
        except Exception as error:
            self._count(shadow, "failed")
            if self._told is None or self._told() is not shadow:
                self._told = weakref.ref(shadow)
                name, version = shadow.served.name, shadow.served.version
                log(logger, logging.ERROR, "shadow failed", exception=error, policy=name, version=version)
        else:
            self._count(shadow, "compared")
        finally:
            self._room.release()

    def _record(self, shadow: PolicyRuntime, own: ActLists, answer: ActLists) -> None:
        name, version = shadow.served.name, shadow.served.version
        action_range = shadow.frame.action_high - shadow.frame.action_low
        scale = np.where(action_range > 0, action_range, 1)  # an action that cannot vary cannot differ
        difference = self._difference.of(name, version)
        for largest in (abs(np.subtract(own.action, answer.action)) / scale).max(axis=1).tolist():
            difference.observe(largest)
        raised = np.sum(own.prediction.violation, axis=0).tolist()
        differing = np.not_equal(own.prediction.violation, answer.prediction.violation).sum(axis=0).tolist()
        for constraint, flags, others in zip(own.prediction.constraints, raised, differing, strict=True):
            self._flags.of(name, version, constraint).inc(flags)
            self._differing.of(name, version, constraint).inc(others)

    def _count(self, shadow: PolicyRuntime, outcome: str) -> None:
        self._comparisons.of(shadow.served.name, shadow.served.version, outcome).inc()
