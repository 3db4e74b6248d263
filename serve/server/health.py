"""grpc.health.v1: whether the server, and each of its services, may be asked.

The servicer of grpcio-health-checking 1.85 lets any number watch, tells the others nothing more once one of them has
left, and has whoever watches hold up the stop of the server.
"""

import asyncio

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from serve.errors import NotFoundError, ResourceExhaustedError
from serve.server.interceptors import RETRY_WHEN_FULL_SECONDS, Context, name_request, refuse


class HealthServicer:
    """Tells those who ask, and up to a bound those who watch. For one event loop."""

    def __init__(self, max_watchers: int) -> None:
        """Begin with a process that lives, whatever it serves: the service without a name."""
        self._statuses: dict[str, int] = {"": HealthCheckResponse.SERVING}
        self._max_watchers = max_watchers
        self._watchers: set[asyncio.Event] = set()  # each set when something has changed
        self._stopping = self._ended = False

    def tell(self, service: str, *, serving: bool) -> None:
        """Say whether a service may be asked; a stopping server's may not."""
        serving = serving and not self._stopping
        self._statuses[service] = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        self._wake()

    def stop(self) -> None:
        """Say of all that they may not be asked any more."""
        self._stopping = True
        for service in self._statuses:
            self.tell(service, serving=False)

    def end(self) -> None:
        """End the streams of those who watch."""
        self._ended = True
        self._wake()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:  # noqa: N802
        name_request(context)
        status = self._statuses.get(request.service)
        if status is None:
            await refuse(context, NotFoundError(f"There is no service {request.service!r}.", "service"))
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        name_request(context)
        if len(self._watchers) >= self._max_watchers:
            full = (
                f"The server lets {self._max_watchers} watch its health, and has them. Ask again, or ask another one."
            )
            await refuse(context, ResourceExhaustedError(full, RETRY_WHEN_FULL_SECONDS))
        changed, told = asyncio.Event(), None
        self._watchers.add(changed)
        try:
            while not self._ended:
                changed.clear()
                status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
                if status != told:
                    await context.write(HealthCheckResponse(status=status))
                    told = status
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()
