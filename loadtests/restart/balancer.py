"""A TCP load balancer: new connections go in turn to the processes that it considers alive."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

HOST = "127.0.0.1"
_CHUNK = 65536


class Balancer:
    """Forwards connections to ports of the loopback interface.

    Attributes:
        ports: where new connections go, in turn. Those that are made stay where they are, as long
            as both sides keep them.
        port: where it listens; 0 before it is entered.
        connections: how many clients have made.
    """

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.port = 0
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of asyncio's own, which it would complain of if it were cancelled.
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writers = [writer]
        try:
            behind = await self._connect()
            if behind is None:
                return
            writers.append(behind[1])
            ways = [
                asyncio.create_task(_pump(reader, behind[1])),
                asyncio.create_task(_pump(behind[0], writer)),
            ]
            try:
                # What one side has sent before it closed has been passed on by then.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
        finally:
            for each in writers:
                each.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        self.ports.append(self.ports.pop(0))
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(HOST, self.ports[-1])
        return None  # as if there were none between: it is for the client to try again


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
