"""grpc.aio's server, mended: a call that nobody knows is refused without a look at its name.

The server of grpcio 1.84 and 1.85 decodes the path of each call that is of no registered method in the very loop that
accepts calls. A path that is not UTF-8 ends that loop, and so the server with everything on it: one stray packet would
stop all robots. Here every method is registered, so that whatever else arrives is unknown, whatever it is called.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # private: test_acceptor.py watches it

Options = Sequence[tuple[str, int]]


def aio_server(options: Options) -> grpc.aio.Server:
    """Return `grpc.aio.server(options=options)`, for services whose generated code registers its methods."""
    server = grpc.aio.server(options=options)
    if not hasattr(cygrpc.AioServer, "_make_request_call_future"):  # before 1.84: nothing to mend, nor to mend it with
        return server
    mended: Any = server
    mended._server = _Acceptor(asyncio.get_running_loop(), None, (), (), tuple(options), None)
    return server


class _Acceptor(cygrpc.AioServer):  # type: ignore[misc]  # untyped
    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[Any]":
        """Return what the next call resolves: of a registered method, or, for None, of no method."""
        if method is not None:
            registered: asyncio.Future[Any] = super()._make_request_call_future(method)
            return registered
        return asyncio.ensure_future(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        """Refuse calls until the server stops, which raises here what the server expects."""
        refusing = set()
        while True:
            task = asyncio.ensure_future(_refuse(await self._request_call()))
            refusing.add(task)  # or the task might be collected before it is done
            task.add_done_callback(refusing.discard)


async def _refuse(call: object) -> None:
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    with contextlib.suppress(cygrpc.AbortError, cygrpc.ExecuteBatchError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "This server has no such method.")
