"""A TCP proxy that simulates faults of a network."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    import random
    from pathlib import Path

HOST = "127.0.0.1"
_REPORTS = (b"TRACKING", b"__redis__:invalidate")  # sent by a change feed
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: drop unsent data, and reset the connection


class Proxy:
    """Forwards connections to a port of the loopback interface, or to a Unix socket.

    While it holds data back, it loses nothing: it delivers late, as TCP does when a network
    recovers. So a command that a process has given up on may still arrive.

    Args:
        target: the port or the socket that connections are forwarded to; those made from now on, if
            it is set.

    Attributes:
        port: where it listens; 0 before `start`.
        flowing: set unless it is black-holed.
    """

    def __init__(self, target: int | Path) -> None:
        self.target = target
        self.port = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._mode: Literal["forward", "refuse", "hold", "hold feed", "no hello"] = "forward"
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop listening, and reset all connections."""
        if self._server is not None:
            self._server.close()
        self.cut()
        tasks = [link.connecting for link in self._links]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def connections(self) -> int:
        """Return the number of open connections."""
        return len(self._links)

    def cut(self) -> None:
        """Reset all connections; data in transit is lost."""
        for link in list(self._links):
            link.reset()

    def cut_one(self, rng: random.Random) -> bool:
        """Reset any one connection; return False if there is none."""
        links = sorted(self._links, key=lambda link: link.number)
        if not links:
            return False
        rng.choice(links).reset()
        return True

    def refuse(self) -> None:
        """Reset all connections, and every new one."""
        self._mode = "refuse"
        self.flowing.set()
        self.cut()

    def hold(self) -> None:
        """Deliver nothing in either direction; new connections are accepted but silent."""
        self._mode = "hold"
        self.flowing.clear()

    def hold_feed(self) -> None:
        """Deliver nothing on connections of a change feed; serve the others."""
        self._mode = "hold feed"

    def refuse_hello(self) -> None:
        """Make the server refuse `HELLO`, like an old server or a proxy."""
        self._mode = "no hello"

    def heal(self) -> None:
        """Forward again, beginning with the data held back."""
        self._mode = "forward"
        self.flowing.set()
        for link in list(self._links):
            link.release()

    @property
    def refuses(self) -> bool:
        """Return whether new connections are reset."""
        return self._mode == "refuse"

    @property
    def refuses_hello(self) -> bool:
        """Return whether `HELLO` is refused."""
        return self._mode == "no hello"

    @property
    def holds_feed(self) -> bool:
        """Return whether reports of changes are held back."""
        return self._mode == "hold feed"

    def add(self, link: _Link) -> None:
        """Add an accepted connection."""
        self._links.add(link)

    def drop(self, link: _Link) -> None:
        """Remove a connection that has ended on both sides."""
        self._links.discard(link)


class _Link:
    """A client's connection and the one to the target; `None` while it is not there."""

    _numbers = 0

    def __init__(self, proxy: Proxy, client: asyncio.Transport) -> None:
        _Link._numbers += 1
        self.number = _Link._numbers
        self.proxy = proxy
        self.client: asyncio.Transport | None = client
        self.server: asyncio.Transport | None = None
        self._to_server: list[bytes] = []
        self._to_client: list[bytes] = []
        self._carries_reports = False
        self._ended = False  # one side has closed, and the other will be, once all is delivered
        self.connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await self.proxy.flowing.wait()
        target = self.proxy.target
        try:
            if isinstance(target, int):
                await loop.create_connection(lambda: _Server(self), HOST, target)
            else:
                await loop.create_unix_connection(lambda: _Server(self), str(target))
        except OSError:
            self.reset()

    @property
    def _held(self) -> bool:
        held = self._carries_reports and self.proxy.holds_feed
        return held or not self.proxy.flowing.is_set()

    def connected(self, server: asyncio.Transport) -> None:
        self.server = server
        if not self._held:
            self.release()

    def from_client(self, data: bytes) -> None:
        if self.proxy.refuses_hello:
            data = data.replace(b"HELLO", b"HELL0")
        if any(word in data for word in _REPORTS):
            self._carries_reports = True
        if self.server is None or self._held:
            self._to_server.append(data)
        else:
            self.server.write(data)

    def from_server(self, data: bytes) -> None:
        if self.client is None:
            return
        if self._held:
            self._to_client.append(data)
        else:
            self.client.write(data)

    def client_left(self) -> None:
        self.client = None
        self._one_side_left()

    def server_left(self) -> None:
        self.server = None
        self._one_side_left()

    def _one_side_left(self) -> None:
        self._ended = True
        if self.client is None and self.server is None and self.connecting.done():
            self.proxy.drop(self)
        elif not self._held:
            self.release()

    def release(self) -> None:
        """Deliver the data held back, then close the other side if one has closed."""
        if self.server is not None:
            if self._to_server:
                self.server.write(b"".join(self._to_server))
                self._to_server.clear()
        elif not self.connecting.done():
            return  # comes back here once it is connected
        if self.client is not None and self._to_client:
            self.client.write(b"".join(self._to_client))
            self._to_client.clear()
        if self._ended:
            for side in (self.client, self.server):
                if side is not None:
                    side.close()

    def reset(self) -> None:
        self.connecting.cancel()
        for side in (self.client, self.server):
            if side is not None:
                _reset(side)
        self.proxy.drop(self)


class _Client(asyncio.Protocol):
    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._link: _Link | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        client = cast("asyncio.Transport", transport)
        if self._proxy.refuses:
            _reset(client)
            return
        self._link = _Link(self._proxy, client)
        self._proxy.add(self._link)

    def data_received(self, data: bytes) -> None:
        if self._link is not None:
            self._link.from_client(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self._link is not None:
            self._link.client_left()


class _Server(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link.connected(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._link.from_server(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._link.server_left()


def _reset(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
