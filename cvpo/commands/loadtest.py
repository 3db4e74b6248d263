"""`cvpo loadtest`: how long a policy service makes its robots wait, measured on the user's own server."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cvpo.commands.latency import bins, histogram, milliseconds, percentile
from cvpo.commands.load import Asker, Load, StreamAsker, UnaryAsker, act_request, control_messages, on_schedule
from cvpo.errors import ConfigError, ServiceError
from serve.client import PolicyClient
from serve.client.channel import Tls
from serve.errors import PolicyServiceError
from serve.values import PolicyDescription

Way = Literal["unary", "stream"]
DEFAULT_RATE_HZ = 50.0  # where the policy does not know its control period
_MOST_QUESTIONS = 10**8  # whose waits a machine holds in memory
_TOLD = {"50": 0.5, "99": 0.99, "99.9": 0.999}
CROWDED_SECONDS = 1e-3  # a client that wakes up later than this once in a hundred times measures itself, too


@dataclass(frozen=True)
class LoadTest:
    """What to do to a server.

    Attributes:
        address: HOST:PORT or unix:PATH.
        policy: name of the policy; may be empty where the server has only one.
        way: one call per question, or one control stream per client.
        clients: how many robots.
        rate_hz: of each. None: one over the policy's control period, 50 where it is unknown.
        seconds: how long.
        observation: what the robots see. None: zeros, or the nearest to them within the bounds.
        timeout_seconds: for an answer, after which there is none.
        tls: None: in plaintext.
    """

    address: str
    policy: str = ""
    way: Way = "unary"
    clients: int = 1
    rate_hz: float | None = None
    seconds: float = 10.0
    observation: Sequence[float] | None = None
    timeout_seconds: float = 1.0
    tls: Tls | None = None


@dataclass(frozen=True)
class LoadReport:
    """What a server did under load."""

    test: LoadTest
    policy: PolicyDescription
    rate_hz: float
    load: Load

    def document(self) -> dict[str, Any]:
        """For machines."""
        load, served = self.load, self.policy.policy
        return {
            "address": self.test.address,
            "policy": served.name,
            "version": served.version,
            "way": self.test.way,
            "clients": self.test.clients,
            "rate_hz": self.rate_hz,
            "seconds": self.test.seconds,
            "control_period_seconds": self.policy.control_period_seconds,
            **load.latency.document(self.policy.control_period_seconds),
            "errors": dict(load.errors),
            "answers_per_second": round(len(load.waits) / load.seconds, 1),
            "client_late_p99_us": round(1e6 * self._client_late(), 1),
        }

    def text(self) -> str:
        """For people."""
        load, latency, period = self.load, self.load.latency, self.policy.control_period_seconds
        percentiles = [f"p{name} {milliseconds(percentile(load.waits, share))}" for name, share in _TOLD.items()]
        late = "the policy does not know its control period"
        if period is not None:
            late = f"{latency.late(period):.3%} had no answer within the control period of {milliseconds(period)}"
        lines = [
            f"{self.test.address}: {self.policy.policy.name} version {self.policy.policy.version}, {self.test.way}, "
            f"{self.test.clients} client{'s' * (self.test.clients > 1)} at {self.rate_hz:g} Hz each "
            f"for {self.test.seconds:g} s",
            f"answers   {len(load.waits):,} of {len(load.waits) + latency.unanswered:,} due, "
            f"{len(load.waits) / load.seconds:,.0f} a second",
            f"waits     {'   '.join(percentiles)}   max {milliseconds(float(load.waits.max()))}",
            f"late      {late}",
            f"errors    {', '.join(f'{count:,} {code}' for code, count in load.errors.items()) or 'none'}",
        ]
        if self._client_late() > CROWDED_SECONDS:
            lines.append(
                f"beware    this client itself asked up to {milliseconds(self._client_late())} late (p99): it has too "
                "little processor time. Take fewer clients, a lower rate, or several machines."
            )
        return "\n".join([*lines, histogram(load.waits)])

    def draw(self, out: Path) -> Path:
        """Write the histogram as a picture; the format is that of the file's name.

        Raises:
            ConfigError: it cannot be written.
        """
        import matplotlib.pyplot as plt

        from cvpo.commands.figure import save

        counts, edges = bins(self.load.waits, 60)
        figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
        axis.stairs(counts, edges * 1e3, fill=True)
        axis.set(xscale="log", yscale="log", xlabel="wait, ms", ylabel="answers", title=self.text().splitlines()[0])
        for name, share in _TOLD.items():
            axis.axvline(percentile(self.load.waits, share) * 1e3, color="0.4", lw=0.8)
            axis.text(percentile(self.load.waits, share) * 1e3, counts.max(), f" p{name}", va="top", fontsize="small")
        if self.policy.control_period_seconds is not None:
            axis.axvline(self.policy.control_period_seconds * 1e3, color="tab:red", label="control period")
            axis.legend()
        axis.spines[["top", "right"]].set_visible(False)
        return save(figure, out)

    def _client_late(self) -> float:
        return percentile(self.load.overslept, 0.99) if len(self.load.overslept) else 0.0


def run_load_test(test: LoadTest) -> LoadReport:
    """Put a server under load and see how long it takes to answer.

    Raises:
        ConfigError: nothing is to be asked, or more than can be counted.
        ServiceError: there is no answer to the first question, or to none of the others.
    """
    policy = _describe(test)
    rate_hz = test.rate_hz or 1 / (policy.control_period_seconds or 1 / DEFAULT_RATE_HZ)
    _check_schedule(rate_hz, test.seconds, test.clients)
    observation = np.zeros(len(policy.observation.names)) if test.observation is None else np.array(test.observation)
    if test.observation is None:
        observation = np.clip(observation, policy.observation.low, policy.observation.high)
    with ExitStack() as stack:
        askers = [stack.enter_context(closing(_asker(test, policy, observation.tolist()))) for _ in range(test.clients)]
        for asker in askers:
            code = asker.ask()
            if code != "OK":
                raise ServiceError(
                    f"{test.address} has no answer to the first question ({code}). "
                    f"`cvpo query {test.address} --observation ...` says more."
                )
        load = on_schedule(askers, rate_hz, test.seconds, test.timeout_seconds)
    if not len(load.waits):
        raise ServiceError(f"{test.address} answered nothing within {test.timeout_seconds:g} s: {dict(load.errors)}.")
    return LoadReport(test, policy, rate_hz, load)


def _check_schedule(rate_hz: float, seconds: float, clients: int) -> None:
    questions = rate_hz * seconds * clients
    if not questions <= _MOST_QUESTIONS:  # True for NaN
        raise ConfigError(
            f"--rate {rate_hz:g} for --seconds {seconds:g} with --clients {clients} makes {questions:g} questions; "
            f"{_MOST_QUESTIONS:,} can be counted."
        )
    if round(rate_hz * seconds) == 0:
        raise ConfigError(
            f"Nothing falls due at --rate {rate_hz:g} within --seconds {seconds:g}. Raise one of them: "
            f"a question is asked every {1 / rate_hz:g} s."
        )


def _describe(test: LoadTest) -> PolicyDescription:
    try:
        timeout_seconds = max(test.timeout_seconds, 2.0)
        with PolicyClient(test.address, test.policy, timeout_seconds=timeout_seconds, tls=test.tls) as client:
            return client.get_policy()
    except PolicyServiceError as error:
        raise ServiceError(str(error)) from error


def _asker(test: LoadTest, policy: PolicyDescription, observation: list[float]) -> Asker:
    name = policy.policy.name
    if test.way == "unary":
        request = act_request(name, observation)
        return UnaryAsker(test.address, "/cvpo.v1.PolicyService/Act", request, test.timeout_seconds, test.tls)
    opening, step = control_messages(name, observation, policy.window_steps, len(policy.constraints))
    return StreamAsker(test.address, opening, step, test.timeout_seconds, test.tls)
