"""What an operator sees of the sessions as Prometheus metrics, and what each session has done."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve.control_values import StepAnswer
from serve.server.session import Session

# From a small network in a warm cache to what a slow control loop bears.
_PHASE_BUCKETS = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5)


class SessionMetrics:
    """The metrics of all sessions of a server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open = Gauge("cvpo_serve_open_sessions", "Sessions that are open.", registry=registry)
        self.begun = Counter(
            "cvpo_serve_sessions",
            "Sessions that were opened, by policy: new ones, and those that went on from a state.",
            ["policy", "goes_on"],
            registry=registry,
        )
        self.steps = Counter(
            "cvpo_serve_steps",
            "Steps by policy and outcome: OK, or the code of a step error.",
            ["policy", "code"],
            registry=registry,
        )
        self.fallback = Counter(
            "cvpo_serve_fallback_steps",
            "Steps answered by a fallback, by reason and kind.",
            ["policy", "reason", "kind"],
            registry=registry,
        )
        self.exhausted = Counter(
            "cvpo_serve_budgets_exhausted",
            "Times that a session came to have nothing left, by constraint.",
            ["policy", "constraint"],
            registry=registry,
        )
        self.seconds = Histogram(
            "cvpo_serve_step_seconds",
            "Time of answered steps in the server, by phase.",
            ["phase"],
            buckets=_PHASE_BUCKETS,
            registry=registry,
        )
        self.refused_states = Counter(
            "cvpo_serve_refused_states", "Sessions that asked to go on from a state that is refused.", registry=registry
        )


class SessionRecord:
    """What one session has done on this server."""

    def __init__(self, metrics: SessionMetrics, session: Session, fallback: str) -> None:
        """Begin; `fallback` is the kind of the session's."""
        self.steps = 0
        self.fallback_steps = 0
        self._metrics = metrics
        self._policy = session.policy.served.name
        self._fallback = fallback
        self._exhausted = session.account().exhausted
        self._ok = metrics.steps.labels(self._policy, "OK")
        self._phases = [metrics.seconds.labels(phase) for phase in ("queued", "checked", "computed")]

    def answered(self, result: StepAnswer) -> None:
        """Count an answer."""
        timing = result.timing
        seconds = timing.queued_seconds, timing.checked_seconds, timing.computed_seconds
        self.steps += 1
        self._ok.inc()
        for phase, value in zip(self._phases, seconds, strict=True):
            phase.observe(value)
        if result.fallback is not None:
            self.fallback_steps += 1
            self._metrics.fallback.labels(self._policy, result.fallback.reason.name, self._fallback).inc()
        for name, now, then in zip(result.constraints, result.account.exhausted, self._exhausted, strict=True):
            if now and not then:
                self._metrics.exhausted.labels(self._policy, name).inc()
        self._exhausted = result.account.exhausted

    def failed(self, code: str) -> None:
        """Count a step without an answer."""
        self.steps += 1
        self._metrics.steps.labels(self._policy, code).inc()
