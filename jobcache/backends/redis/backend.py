"""The operations on cells in Redis 6.2 or newer, or Valkey.

Each cell is one string key, so that a cluster can hold them. A get is an `MGET`, or a `GET` for
each key of a cluster. Every other operation is a script in `scripts/`, on one key. `server` sends
the commands, and repeats them after a lost connection. `topology` knows which server a key belongs
to: a single server, the master that sentinels name, or the owner of the key's slot in a cluster. If
a slot has moved or is migrating, the command follows it. `namespace` checks each connection.

Deadlines, circuit breaker and recovery are in `jobcache.resilience.guarded_backend`, which wraps
any remote backend.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from redis.exceptions import (
    AskError,
    ClusterError,
    MovedError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobcache.backends._closing import end_all
from jobcache.backends.redis.cache_errors import as_cache_error, translated
from jobcache.backends.redis.namespace import Namespace
from jobcache.backends.redis.refused_commands import named
from jobcache.backends.redis.script_calls import Call
from jobcache.backends.redis.sweep import Sweep
from jobcache.backends.redis.tracking.connection import Endpoint
from jobcache.backends.redis.tracking.feed import TrackingFeed
from jobcache.backends.redis.url import read_url
from jobcache.errors import (
    CacheError,
    CacheUnavailable,
    SettingsError,
    UnreadableCell,
    redacted,
)
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.cell import Fence
from jobcache.protocol.codec import Decoder
from jobcache.protocol.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.backends.redis.script_runner import ScriptReply
    from jobcache.backends.redis.server import Cells, Server
    from jobcache.settings import CacheSettings

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_WITHDRAWN = -2
_REDIRECTIONS = 4
_TROUBLE = (RedisConnectionError, RedisTimeoutError, ClusterError, ReadOnlyError, OSError)
"""Errors after which the topology may have changed."""


_ServerReply: TypeAlias = "tuple[Any, str, Server]"
"""A script's reply, the incarnation id of its server, and the server."""


class _Operate(Protocol[T_co]):
    """An operation on the server that owns a key."""

    async def __call__(self, server: Server, *, asking: bool) -> T_co:
        """Run the operation; `asking` is True if the key's slot is migrating to the server."""


class RedisBackend:
    """Cells in Redis.

    Args:
        url: the URL of Redis. The query may contain any option of redis-py's connections, such as
            `protocol=2` for servers and proxies that refuse `HELLO`. `rediss` means TLS.

            - `redis://user:password@host:port/database`, `rediss://…`, `unix://…`: one server;
            - `redis+sentinel://user:password@host:port,host:port/service/database`, `rediss+…`:
              the master that these sentinels name; `sentinel_username` and `sentinel_password`
              are for the sentinels themselves;
            - `redis+cluster://user:password@host:port,host:port`, `rediss+…`: a cluster; the hosts
              are some of its nodes.

        prefix: put before every key, so that several services can share a server.
        source_id: the identity of the database that the documents come from, as for `Source`.
        lease: seconds until a lease expires.
        fence: seconds until a fence expires; longer than any transaction takes.
        connections: the largest number of connections to each server without hiredis; with it
            there are two.
        pool_wait: seconds to wait for a free one of these connections.
        socket_limit: seconds to connect, and to wait for a reply.
        clock: monotonic time in seconds.

    Raises:
        ValueError: the URL is wrong.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "",
        source_id: str = "",
        lease: float = 5.0,
        fence: float = 30.0,
        connections: int = 10,
        pool_wait: float = 0.5,
        socket_limit: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        location = read_url(url)
        self._prefix = prefix
        self._namespace = Namespace(
            location,
            prefix=prefix,
            source_id=source_id,
            connections=connections,
            pool_wait=pool_wait,
            socket_limit=socket_limit,
            clock=clock,
        )
        self._topology = self._namespace.topology
        self._cells = Decoder(len(prefix))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._clock = clock
        self._lease_ms = round(lease * 1000)
        self._fence_ms = round(fence * 1000)
        # None in a cluster, where the server depends on the key.
        self._server = None if self._topology.is_sharded else self._topology.servers()[0]
        self._feed = TrackingFeed(self.primaries, generation=lambda: self.generation, prefix=prefix)

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None."""
        name = self._prefix + key
        if self._server is None:
            return await self._on_owner(name, partial(self._get_from, name))
        return await self._server.read([name], partial(self._entry, self._server, name))

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`, read with one command if there is one server."""
        return await self.get_many_future(keys)

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """Return a future of the entries at `keys`. Needs no task if there is one server."""
        server = self._server
        if server is None or not keys:
            reading = asyncio.create_task(self._get_many_sharded(keys))
            self._tasks.add(reading)
            reading.add_done_callback(self._tasks.discard)
            return reading
        names = list(map(self._prefix.__add__, keys)) if self._prefix else keys
        return server.read(names, partial(self._entries, server, keys, names))

    def _entry(self, server: Server, name: str, cells: Cells, incarnation_id: str) -> Entry | None:
        """Return the entry in the one cell of `cells`."""
        (cell,) = cells
        if isinstance(cell, Exception):
            raise named("GET", cell)
        found = None if cell is None else self._cells.decode(name, cell, incarnation_id)
        if isinstance(found, Entry):
            return found if server.tracked else found.past_its_freshness()
        if found is None and cell is not None:
            self._namespace.on_foreign_cell(server, cell, incarnation_id)
        return None

    def _entries(
        self,
        server: Server,
        keys: Sequence[str],
        names: Sequence[str],
        cells: Cells,
        incarnation_id: str,
    ) -> Mapping[str, Entry]:
        """Return the entries that can be read, by key."""
        decode, found = self._cells.decode, {}
        for key, name, cell in zip(keys, names, cells, strict=True):
            if not isinstance(cell, bytes):
                continue
            try:
                entry = decode(name, cell, incarnation_id)
            except UnreadableCell:
                continue
            if isinstance(entry, Entry):
                found[key] = entry
            elif entry is None:
                self._namespace.on_foreign_cell(server, cell, incarnation_id)
        return found

    # --- reading from a cluster ---

    async def _get_many_sharded(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Read the keys of each server together, then one by one the keys that have moved."""
        names: dict[Server | None, list[str]] = {}
        for key in keys:
            name = self._prefix + key
            names.setdefault(self._topology.owner(name), []).append(name)
        again = names.pop(None, [])
        servers = [server for server in names if server is not None]
        reads = [
            server.read(names[server], partial(self._outcomes, server, names[server]))
            for server in servers
        ]
        found: dict[str, Entry] = {}
        for server, outcomes in zip(
            servers, await asyncio.gather(*reads, return_exceptions=True), strict=True
        ):
            if isinstance(outcomes, BaseException):
                self._report_trouble(outcomes)
                raise outcomes
            for name, outcome in zip(names[server], outcomes, strict=True):
                if isinstance(outcome, Entry):
                    found[name[len(self._prefix) :]] = outcome
                elif isinstance(outcome, Exception):
                    again.append(name)
        for name in again:
            with suppress(UnreadableCell):
                entry = await self._on_owner(name, partial(self._get_from, name))
                if entry is not None:
                    found[name[len(self._prefix) :]] = entry
        return found

    async def _get_from(self, name: str, server: Server, *, asking: bool) -> Entry | None:
        decode = partial(self._outcomes, server, [name])
        if asking:
            (outcome,) = await server.read_asking(name, decode)
        else:
            (outcome,) = await server.read([name], decode)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _outcomes(
        self, server: Server, names: Sequence[str], cells: Cells, incarnation_id: str
    ) -> list[Entry | Exception | None]:
        """Return what each cell holds, or the error of reading it."""
        outcomes: list[Entry | Exception | None] = []
        for name, cell in zip(names, cells, strict=True):
            try:
                outcomes.append(self._entry(server, name, [cell], incarnation_id))
            except (RedisError, CacheError) as error:
                outcomes.append(error)
        return outcomes

    # --- changing cells ---

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take a lease, by one script."""
        call = Call("lease", self._prefix + key, (token, self._lease_ms))
        reply, incarnation_id, server = await self._call(call)
        if reply is None:
            return LeaseResult.ACQUIRED
        found = self._cells.decode(self._prefix + key, reply, incarnation_id)
        if isinstance(found, Entry):
            return found if server.tracked else found.past_its_freshness()
        return LeaseResult.FENCED if isinstance(found, Fence) else LeaseResult.HELD

    def set_body_check(self, check: Callable[[str, bytes], object]) -> None:
        """Have the body of each new entry checked."""
        self._cells.check = check

    def set_lease_time(self, seconds: float) -> None:
        """Have leases last for `seconds` at least."""
        self._lease_ms = max(self._lease_ms, round(seconds * 1000))

    async def fence(self, key: str, token: str) -> None:
        """Fence `key`, by one script."""
        await self.fence_future(key, token)

    def fence_future(self, key: str, token: str) -> asyncio.Future[None]:
        """Return a future of the fence. Needs no task if there is one server."""
        call = Call("fence", self._prefix + key, (token, self._fence_ms))
        return self._call_future(call, _ignore)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish, by one script."""
        return await self.publish_future(key, token, entry)

    def publish_future(
        self, key: str, token: str, entry: Entry | None
    ) -> asyncio.Future[PublishResult]:
        """Return a future of the result of a publish. Needs no task if there is one server."""
        arguments = (
            (token, _WITHDRAWN, 0, b"", b"")
            if entry is None
            else (token, entry.version, entry.keep_ms, entry, entry.token)
        )
        call = Call("publish", self._prefix + key, arguments)
        return self._call_future(call, _publish_result)

    async def purge(self, keys: Sequence[str]) -> int:
        """Purge, by one script for each key."""
        calls = [Call("purge", self._prefix + key) for key in keys]
        replies = await asyncio.gather(*map(self._call, calls))
        return sum(dropped for dropped, *_ in replies)

    async def purge_all(self) -> int:
        """Empty the namespace. Keys of others in the same database are not touched."""
        return await Sweep(self._topology, self._call, self._prefix, self._clock).run()

    async def ping(self) -> None:
        """Ping every server that keys belong to."""
        with translated():
            await self._topology.refresh()
            pings = (
                server.ping(self._namespace.key_on(server, "ping"))
                for server in self._topology.servers()
            )
            for error in await asyncio.gather(*pings, return_exceptions=True):
                if error is not None:
                    raise error

    def identify(self, source_id: str) -> None:
        """Refuse a namespace that belongs to another source, from now on."""
        self._namespace.source.source_id = source_id

    @property
    def generation(self) -> int:
        """A number that changes whenever the result of `primaries` does."""
        return self._topology.generation

    async def primaries(self) -> Sequence[Endpoint]:
        """Return every server on which cells are written now.

        Raises:
            CacheUnavailable: no server could be asked.
        """
        with translated():
            await self._topology.refresh()
        return [
            Endpoint(
                self._topology.name_of(server),
                server.connection,
                partial(self._heartbeat_key, server),
                partial(_heartbeat, server),
                server.identity.mark_suspect,
            )
            for server in self._topology.servers()
        ]

    def _heartbeat_key(self, server: Server, word: str) -> str:
        return self._namespace.key_on(server, f"beat:{word}")

    def feed(self) -> TrackingFeed:
        """Return the feed of changes of this namespace."""
        return self._feed

    async def aclose(self) -> None:
        """Close the connections. Pending operations fail, or are cancelled."""
        await self._feed.aclose()
        await self._topology.aclose()
        await end_all(list(self._tasks))

    # --- calls of scripts ---

    async def _call(self, call: Call) -> _ServerReply:
        """Call a script on the server that owns its key."""
        if self._server is None:
            return await self._on_owner(call.key, partial(_call_on, call))
        convert = partial(_from_server, self._server)
        return await self._server.scripts.call(call, convert, as_cache_error)

    def _call_future(self, call: Call, convert: Callable[[ScriptReply], T]) -> asyncio.Future[T]:
        """Return a future of a script's reply, converted."""
        if self._server is not None:
            return self._server.scripts.call(call, convert, as_cache_error)
        task = asyncio.create_task(self._call_sharded(call, convert))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _call_sharded(self, call: Call, convert: Callable[[ScriptReply], T]) -> T:
        reply, incarnation_id, _ = await self._call(call)
        return convert((reply, incarnation_id))

    async def _on_owner(self, name: str | bytes, operate: _Operate[T]) -> T:
        """Run an operation on the node of a cluster that owns `name`; follow redirections."""
        asking = False
        try:
            server = self._topology.owner(name)
            if server is None:
                await self._topology.refresh()
                server = self._topology.owner(name)
            for _ in range(_REDIRECTIONS):
                if server is None:
                    break
                try:
                    return await operate(server, asking=asking)
                except AskError as error:
                    server = self._topology.redirected(error, server)
                    asking = not isinstance(error, MovedError)
        except (CacheError, RedisError, OSError) as error:
            self._report_trouble(error)
            raise as_cache_error(error) from error
        raise CacheUnavailable("no server has the key's slot")

    def _report_trouble(self, error: BaseException) -> None:
        """Have the topology learned again if the error may mean that it has changed."""
        if isinstance(error, _TROUBLE) or isinstance(error.__cause__, _TROUBLE):
            self._topology.refresh_soon()


def _ignore(_: ScriptReply) -> None:
    pass


def _from_server(server: Server, reply: ScriptReply) -> _ServerReply:
    return (*reply, server)


def _as_it_is(error: BaseException) -> BaseException:
    return error


def _publish_result(reply: ScriptReply) -> PublishResult:
    return PublishResult(reply[0].decode())


async def _call_on(call: Call, server: Server, *, asking: bool) -> _ServerReply:
    if asking:
        return _from_server(server, await server.scripts.call_asking(call))
    return await server.scripts.call(call, partial(_from_server, server), _as_it_is)


async def _heartbeat(server: Server, reads: str, scripted: str) -> None:
    with translated():
        await server.heartbeat(reads, scripted)


def from_settings(settings: CacheSettings) -> RedisBackend:
    """Return the backend named "redis".

    Raises:
        SettingsError: the URL cannot be used.
    """
    try:
        return RedisBackend(
            settings.redis_url, prefix=settings.prefix, source_id=settings.source_id
        )
    except (ValueError, TypeError) as error:
        # Without the message of the error, which may contain a password.
        raise SettingsError(
            "REDIS_URL", redacted(settings.redis_url), _allowed(settings)
        ) from error


def _allowed(settings: CacheSettings) -> str:
    scheme = settings.redis_url.partition("://")[0]
    if scheme.endswith("+sentinel"):
        form = f"{scheme}://host:port,host:port/service, or …/service/database"
    elif scheme.endswith("+cluster"):
        form = f"{scheme}://host:port,host:port, and no database"
    else:
        form = (
            "a redis://host:port/database, rediss:// or unix:// URL, the database a number,"
            " a # written as %23"
        )
    return f"{form}, with options redis-py knows, is needed"
