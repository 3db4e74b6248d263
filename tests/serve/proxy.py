"""A way to a server on which all falls silent without an end, as where the other machine loses power."""

import asyncio

from tests.serve.running import LoopThread

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Forwards connections to an address."""

    def __init__(self, target: str) -> None:
        self._host, self._port = target.split(":")
        self._connections: list[Streams] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._forwards = True
        self._thread = LoopThread()
        self._server = self._thread.run(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def fall_silent(self, *, for_good: bool = False) -> None:
        """Carry nothing more on the connections that there are; on new ones neither, if for good."""
        self._thread.run(self._fall_silent(forwards=not for_good))

    def close(self) -> None:
        self._thread.run(self._close())
        self._thread.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append((reader, writer))
        if self._forwards:
            there = await asyncio.open_connection(self._host, self._port)
            self._connections.append(there)
            self._pumps += [asyncio.create_task(_pump(reader, there[1])), asyncio.create_task(_pump(there[0], writer))]

    async def _fall_silent(self, *, forwards: bool) -> None:
        self._forwards = forwards
        for pump in self._pumps:
            pump.cancel()

    async def _close(self) -> None:
        await self._fall_silent(forwards=False)
        self._server.close()
        for _, writer in self._connections:
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
