"""What an operator sees of a running server: Prometheus metrics and one JSON object per log event."""

import functools
import json
import logging
import sys
import time
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve.values import PredictionLists, ServedPolicy

M = TypeVar("M", Counter, Histogram)

# From a cached forward pass to a full batch on a busy machine.
_LATENCY_BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)


class ByVersion(Generic[M]):
    """A metric by policy, version and perhaps more, whose series end with their version."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._series: dict[tuple[str | int, ...], M] = {}  # labels() takes as long as four counts

    def of(self, policy: str, version: int, *more: str) -> M:
        labels: tuple[str | int, ...] = (policy, version, *more)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self._metric.labels(*labels)
        return series

    def forget(self, policy: str, version: int) -> None:
        for labels in list(self._series):
            if labels[:2] == (policy, version):
                del self._series[labels]
                self._metric.remove(*labels)


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._versioned: list[ByVersion[Any]] = []
        self._requests = Counter(
            "cvpo_serve_requests",
            "Requests by method and gRPC status code.",
            ["method", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cvpo_serve_request_seconds",
            "Time from decoding a request to its answer, of those that were not refused before their turn.",
            ["method"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._answers = self.by_version(
            Counter(
                "cvpo_serve_answers",
                "Predictions sent, by policy, version and calibration status.",
                ["policy", "version", "calibration_status"],
                registry=self.registry,
            )
        )
        self._flags = self.by_version(
            Counter(
                "cvpo_serve_flags",
                "Predictions sent with a raised violation flag, by constraint.",
                ["policy", "version", "constraint"],
                registry=self.registry,
            )
        )
        self._paced = self.by_version(
            Counter(
                "cvpo_serve_paced_answers",
                "Answers of policies whose manifest has a control period, and steps that were too late for one.",
                ["policy", "version"],
                registry=self.registry,
            )
        )
        self._late = self.by_version(
            Counter(
                "cvpo_serve_late_answers",
                "Those of them that took longer in the server than the control period, or have no answer.",
                ["policy", "version"],
                registry=self.registry,
            )
        )
        self._last_look = Gauge(
            "cvpo_serve_last_look_timestamp_seconds",
            "When the repository was last looked at, in seconds since 1970; a look that fails or hangs does not count.",
            registry=self.registry,
        )

    def by_version(self, metric: M) -> ByVersion[M]:
        """Take a metric by policy, version and perhaps more into what is forgotten with a version."""
        versioned = ByVersion(metric)
        self._versioned.append(versioned)
        return versioned

    def forget(self, policy: str, version: int) -> None:
        """End the series of a version that nobody uses any more: with a new version every day they would pile up."""
        for metric in self._versioned:
            metric.forget(policy, version)

    def looked(self) -> None:
        """Note that the repository was looked at now."""
        self._last_look.set_to_current_time()

    def count_request(self, method: str, code: str, seconds: float) -> None:
        _of(self._requests, method, code).inc()
        _of(self._seconds, method).observe(seconds)

    def count_untimed(self, method: str, code: str) -> None:
        """Count a call whose time says nothing: a stream, or one that was refused before its turn."""
        _of(self._requests, method, code).inc()

    def count_predictions(self, policy: ServedPolicy, prediction: PredictionLists) -> None:
        """Count what is predicted of N situations, and its flags."""
        statuses = prediction.calibration_status
        for status in set(statuses):
            self._answers.of(policy.name, policy.version, status.name).inc(statuses.count(status))
        for constraint, flags in zip(prediction.constraints, zip(*prediction.violation, strict=True), strict=True):
            if True in flags:
                self._flags.of(policy.name, policy.version, constraint).inc(sum(flags))

    def count_pace(self, policy: str, version: int, *, late: bool) -> None:
        """Count an answer, or a step that was too late for one, of a policy that has a control period."""
        self._paced.of(policy, version).inc()
        if late:
            self._late.of(policy, version).inc()


@functools.cache
def _of(metric: M, *labels: str | int) -> M:
    """The metric of these labels. prometheus_client makes texts of them and takes a lock each time, which costs as much
    as four counts."""
    return metric.labels(*labels)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, and what the event carries."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        document.update(getattr(record, "fields", {}))
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def log(
    logger: logging.Logger, level: int, event: str, *, exception: BaseException | None = None, **fields: object
) -> None:
    """Log an event with the fields that belong to it."""
    logger.log(level, event, exc_info=exception, extra={"fields": fields})


# What gRPC logs, with a traceback, of each client that leaves before its answer, or whose headers are no text.
_CLIENTS_FAULTS = ("ExecuteBatchError raised in core by servicer method", "Invalid encoding on")


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether it says more than that a client is not as it should be; a broken one could fill the log."""
    return not record.getMessage().startswith(_CLIENTS_FAULTS)


def configure_logging(level: str) -> None:
    """Send the log of this process to stderr as JSON lines."""
    if level != "debug":
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
