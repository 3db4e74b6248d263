"""LocalPolicy: PolicyClient's twin in the same process, for evaluation and for robots that need no server.

Requests go through the same messages and the same code as the service's, so the answers are equal to the bit. Needs
the extra `serve`.
"""

from pathlib import Path

from serve.calls import Call, R
from serve.client import PolicyCaller
from serve.codec import Limits
from serve.service import PolicyServicer
from serve.telemetry import Metrics
from serve.watch import load_repository


class LocalPolicy(PolicyCaller):
    """A policy of a bundle or a folder of bundles, without a server."""

    def __init__(self, servicer: PolicyServicer, policy: str, version: int | None, fingerprint: str) -> None:
        super().__init__(policy, version, fingerprint)
        self._servicer = servicer

    @classmethod
    def load(
        cls,
        repository: Path,
        policy: str = "",
        *,
        version: int | None = None,
        fingerprint: str = "",
        allow_uncalibrated: bool = False,
    ) -> "LocalPolicy":
        """Verify and load a bundle or a folder of bundles.

        Raises:
            StartupError: there is nothing that may be served.
        """
        loaded = load_repository(repository, allow_uncalibrated=allow_uncalibrated)
        return cls(PolicyServicer(loaded, Limits(), Metrics()), policy, version, fingerprint)

    def _ask(self, call: Call[R]) -> R:
        return call.decode(getattr(self._servicer, call.method)(call.request, None))
