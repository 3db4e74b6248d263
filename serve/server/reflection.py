"""grpc.reflection.v1alpha as the library's, up to a bound: a stream of it has no end but its client's."""

from collections.abc import AsyncIterator, Iterable

from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from serve.errors import ResourceExhaustedError
from serve.server.interceptors import RETRY_WHEN_FULL_SECONDS, Context, name_request, refuse


class ReflectionServicer(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # untyped
    """Describes services, to so many streams at once."""

    def __init__(self, services: Iterable[str], max_streams: int) -> None:
        super().__init__((*services, reflection.SERVICE_NAME))
        self._max_streams = max_streams
        self._streams = 0

    async def ServerReflectionInfo(self, requests: object, context: Context) -> AsyncIterator[object]:  # noqa: N802
        name_request(context)
        if self._streams >= self._max_streams:
            full = (
                f"The server describes itself to {self._max_streams} at once, and does. Ask again, or ask another one."
            )
            await refuse(context, ResourceExhaustedError(full, RETRY_WHEN_FULL_SECONDS))
        self._streams += 1
        try:
            async for answer in super().ServerReflectionInfo(requests, context):
                yield answer
        finally:
            self._streams -= 1


def add_reflection(server: object, services: Iterable[str], max_streams: int) -> None:
    """Have a server describe these services."""
    servicer = ReflectionServicer(services, max_streams)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
