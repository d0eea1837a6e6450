r"""Cells in memcached, each operation carried out with `gets` and `cas`.

pymemcache's client blocks, so every command runs in a thread of the backend's own, which holds one
connection. A `GuardedBackend` collects the gets of one turn of the event loop into one command.

Rejected: the asyncio clients. aiomcache leaves the answer of a cancelled caller to the next one,
and spins on a connection that was cut; emcache returns wrong bytes for values that hold `END\r\n`.

A restarted server is empty, so it serves nothing old. But it counts its tokens anew:

    A reads a lease, token 57; the server restarts; W writes a fence, which happens to be token 57
    A writes its entry "if the token is still 57"

So a token names the server's process, too, and each connection knows to which process it leads.

memcached has no command that deletes only a certain token. A `cas` with a time to live in the past
does it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

try:
    from pymemcache.client.base import Client
    from pymemcache.exceptions import MemcacheError, MemcacheServerError
except ImportError as error:
    raise ImportError(
        "jobcache.backends.memcached needs pymemcache; pip install 'jobcache[memcached]'"
    ) from error

from jobcache.backends.compare_and_set import CellTooLarge, CompareAndSetBackend, wall_clock_ms
from jobcache.errors import CacheUnavailable, SettingsError, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.settings import CacheSettings

T = TypeVar("T")

_PORT = 11211
_LONGEST_NAME = 250  # bytes, of memcached
_PLAIN = re.compile(r"[!-}][!-~]*")  # does not begin as the names do that are made by hashing
_LONGEST_TTL = 30 * 24 * 3600  # seconds; memcached takes more for a date
_EXPIRED = -1
# What a peer's nonsense leads to in pymemcache: it parses replies without checking them.
_FAILURES = (OSError, MemcacheError, ValueError, KeyError, AssertionError)


class MemcachedToken(NamedTuple):
    """Identifies an item as it was read: the server's process, and its number of the item."""

    incarnation: tuple[int, int]
    number: bytes


@dataclass(slots=True, eq=False)
class _Connection:
    """The connection of one thread.

    Attributes:
        client: not shared with other threads.
        opened_in: the era of the backend in which it was opened.
        incarnation: the process that it leads to: its id, and when it was started.
    """

    client: Client
    opened_in: int
    incarnation: tuple[int, int]


class MemcachedBackend(CompareAndSetBackend[MemcachedToken]):
    """Cells in one memcached server.

    A proxy between here and the server is not supported: it hides that the server was restarted.
    Bodies of about a megabyte need a server that was started with `-I 2m`; with the default such
    entries are not cached.

    Args:
        url: `memcached://host:port`, or `memcached:///path` of a Unix socket.
        prefix: put before every key.
        source_id: the identity of the source; see `identify`.
        connections: how many commands may be under way at once, each in a thread of its own.
        socket_limit: seconds to wait for a connection, and for each part of a reply.
        lease: seconds until a lease is lost.
        fence: seconds until a fence is lost; longer than any transaction takes.
        clock_ms: wall-clock time in milliseconds since the epoch.

    Raises:
        ValueError: the URL cannot be used.
    """

    name = "memcached"

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "",
        source_id: str = "",
        connections: int = 8,
        socket_limit: float = 0.5,
        lease: float = 5.0,
        fence: float = 30.0,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        super().__init__(lease=lease, fence=fence, clock_ms=clock_ms)
        self._server = _server(url)
        self._prefix = prefix
        self._namespace = prefix
        self._socket_limit = socket_limit
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="jobcache-memcached")
        self._local = threading.local()
        self._opened: list[_Connection] = []
        self._running: set[Future[Any]] = set()
        # Raised by each failure and by the sight of another server process: the older connections
        # may lead to one that is gone.
        self._era = 0
        self._incarnation: tuple[int, int] | None = None
        if source_id:
            self.identify(source_id)

    def identify(self, source_id: str) -> None:
        """Keep apart from services with another source: its identity becomes a part of every key.

        So services that share a prefix by mistake never see each other's cells.
        """
        digest = hashlib.sha256(source_id.encode()).hexdigest()[:12]
        self._namespace = f"{self._prefix}{digest}:"

    # --- the store's own steps ---

    async def read(self, key: str) -> tuple[bytes, MemcachedToken] | None:
        """Return the item and its token; see `CompareAndSetBackend`."""
        return (await self.read_many([key])).get(key)

    async def read_many(self, keys: Sequence[str]) -> Mapping[str, tuple[bytes, MemcachedToken]]:
        """Return the items with one command."""
        names = {self._name(key): key for key in keys}

        def gets(connection: _Connection) -> dict[str, tuple[bytes, MemcachedToken]]:
            return {
                names[name]: (item, MemcachedToken(connection.incarnation, number))
                for name, (item, number) in connection.client.gets_many([*names]).items()
            }

        return await self._call(gets)

    async def compare_and_set(
        self, key: str, cell: bytes, token: MemcachedToken | None, ttl: float
    ) -> bool:
        """Add the item, or replace the one that has the token."""
        name = self._name(key)
        expire = min(math.ceil(ttl), _LONGEST_TTL)

        def store(connection: _Connection) -> bool:
            client = connection.client
            if token is None:
                return client.add(name, cell, expire=expire, noreply=False) is True
            if token.incarnation != connection.incarnation:
                return False
            return client.cas(name, cell, token.number, expire=expire, noreply=False) is True

        return await self._call(store)

    async def delete(self, key: str, token: MemcachedToken) -> bool:
        """Let the item that has the token expire at once."""
        name = self._name(key)

        def expire(connection: _Connection) -> bool:
            if token.incarnation != connection.incarnation:
                return False
            cas = connection.client.cas
            return cas(name, b"", token.number, expire=_EXPIRED, noreply=False) is True

        return await self._call(expire)

    def _name(self, key: str) -> str:
        if _PLAIN.fullmatch(key) and len(self._namespace) + len(key) <= _LONGEST_NAME:
            return self._namespace + key
        return f"{self._namespace}~{hashlib.sha256(key.encode()).hexdigest()}"

    # --- threads and connections ---

    async def _call(self, command: Callable[[_Connection], T]) -> T:
        # A caller that is cancelled leaves its command to run to its end.
        start_by = time.monotonic() + self._socket_limit
        try:
            future = self._threads.submit(self._run, command, start_by)
        except RuntimeError as error:
            raise CacheUnavailable("the backend is closed") from error
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)

    def _run(self, command: Callable[[_Connection], T], start_by: float) -> T:
        if time.monotonic() > start_by:
            # While the server hangs, further commands pile up behind the ones that wait for it.
            raise CacheUnavailable("all connections to memcached are waiting for it")
        era = self._era
        try:
            connection = self._connection(era)
            return command(connection)
        except _FAILURES as error:
            if isinstance(error, MemcacheServerError) and "too large" in str(error):
                raise CellTooLarge(f"memcached refuses an item: {error}") from error
            self._era = era + 1
            reason = str(error) or type(error).__name__
            raise CacheUnavailable(f"memcached: {reason}") from error

    def _connection(self, era: int) -> _Connection:
        held: _Connection | None = getattr(self._local, "connection", None)
        # pymemcache closes a connection after any error, and would open another one unasked.
        if held is not None and held.opened_in == era and held.client.sock is not None:
            return held
        if held is not None:
            held.client.close()
            self._opened.remove(held)
            self._local.connection = None
        client = Client(
            self._server,
            connect_timeout=self._socket_limit,
            timeout=self._socket_limit,
            no_delay=True,
            default_noreply=False,
        )
        try:
            stats = client.stats()
            incarnation = stats[b"pid"], stats[b"time"] - stats[b"uptime"]
        except BaseException:
            client.close()
            raise
        if incarnation != self._incarnation:
            if self._incarnation is not None:
                self._era = era = era + 1
            self._incarnation = incarnation
        connection = self._local.connection = _Connection(client, era, incarnation)
        self._opened.append(connection)
        return connection

    async def aclose(self) -> None:
        """Wait for the commands under way, which takes a second at most, and close connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        running = [asyncio.wrap_future(future) for future in [*self._running]]
        await asyncio.gather(*running, return_exceptions=True)
        for connection in self._opened:
            connection.client.close()
        self._opened.clear()


def _server(url: str) -> tuple[str, int] | str:
    """Return what pymemcache takes for the server at `url`."""
    parts = urlsplit(url)
    if parts.scheme != "memcached" or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("not a memcached URL")
    if parts.hostname is None:
        if len(parts.path) < len("/x"):
            raise ValueError("neither a host nor the path of a socket")
        return unquote(parts.path)
    if parts.path not in {"", "/"}:
        raise ValueError("a path after the host")
    return parts.hostname, _PORT if parts.port is None else parts.port


def from_settings(settings: CacheSettings) -> MemcachedBackend:
    """Make the backend with the name "memcached".

    Raises:
        SettingsError: the URL cannot be used.
    """
    try:
        return MemcachedBackend(
            settings.memcached_url, prefix=settings.prefix, source_id=settings.source_id
        )
    except ValueError as error:
        allowed = "memcached://host:port, or memcached:///path of a Unix socket"
        raise SettingsError("MEMCACHED_URL", redacted(settings.memcached_url), allowed) from error
