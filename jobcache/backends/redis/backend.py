"""Cells in Redis 6.2 or newer, or Valkey: one string key each, so that a cluster can hold them.

Gets are an `MGET`, or a `GET` for each key of a cluster; the other operations are the scripts in
`scripts/`, one each, all of one key. `server` decides what is sent together, and `topology` which
server a key belongs to: the one there is, the master that sentinels name, or the owner of the key's
slot in a cluster. A slot that has moved, or is on its way, is no failure: the command follows it. A
lost reply may be followed by a second try, for every operation can be repeated.

Every cell bears the incarnation id of the server that it was written on, made of its `run_id` and
its replication id. A server that was restarted from an old dump, or a replica that was promoted,
has another incarnation id than the cells that it brings along, and they count as empty:

    W commits v2, publishes it; Redis dies, and comes back with a dump that holds v1
    every connection has died with it; each new one learns the incarnation id before it is used

So a cell that a slot's move has carried to another node counts as empty there, too.

The incarnation id also tells the namespace: a prefix adds its hash. Keys alone cannot, for
`app2:job:1` may be a key of the prefix `app2:`, or one of `app` itself.

Rejected: to remember the `run_id` and empty the namespace when it has changed. That takes as long
as there are keys, takes the other processes' fences along, and a process that was started together
with Redis has nothing to compare with.

Deadlines, breaker and recovery are not here but in `jobcache.resilience.guarded_backend`, which
wraps any such backend.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import suppress
from functools import partial
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from redis.exceptions import (
    AskError,
    ClusterError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobcache.backends._closing import end_all
from jobcache.backends.redis.cache_errors import as_cache_error, translated
from jobcache.backends.redis.factory import topology_of
from jobcache.backends.redis.namespace_owner import Source
from jobcache.backends.redis.refused_commands import (
    CommandRefused,
    cluster_node,
    is_unknown,
    named,
)
from jobcache.backends.redis.script_calls import Call
from jobcache.backends.redis.server import Cells, ScriptReply, Server
from jobcache.backends.redis.tracking.connection import Endpoint
from jobcache.backends.redis.tracking.feed import TrackingFeed
from jobcache.backends.redis.url import read_url
from jobcache.errors import (
    CacheError,
    CacheUnavailable,
    NamespaceConflict,
    SettingsError,
    UnreadableCell,
    redacted,
)
from jobcache.protocol.backend import Entry, LeaseResult, PublishResult
from jobcache.protocol.cell import Fence
from jobcache.protocol.codec import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection

    from jobcache.backends.redis.pipelined_connection import Command
    from jobcache.settings import CacheSettings

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
logger = logging.getLogger("jobcache")

_WITHDRAWN = -1
_NO_INCARNATION = "none"
_REFERRALS = 4
_EVICTED_TOGETHER = 100  # keys to a script
_BETWEEN_REPORTS = 5.0  # seconds
_TROUBLE = (RedisConnectionError, RedisTimeoutError, ClusterError, ReadOnlyError, OSError)
"""What tells that a server is not what it was taken for, or not where."""


class _Operate(Protocol[T_co]):
    """An operation on the server that has a key."""

    async def __call__(self, server: Server, *, asking: bool) -> T_co:
        """Operate; `asking`: the key's slot is on its way to that server."""


class RedisBackend:
    """Cells in Redis.

    Args:
        url: where Redis is, with any option of redis-py's connections as query, such as
            `protocol=2` for servers and proxies that refuse `HELLO`; after `rediss` with TLS.

            - `redis://user:password@host:port/database`, `rediss://…`, `unix://…`: one server;
            - `redis+sentinel://user:password@host:port,host:port/service/database`, `rediss+…`:
              the master that these sentinels name; `sentinel_username` and `sentinel_password`
              are for the sentinels themselves;
            - `redis+cluster://user:password@host:port,host:port`, `rediss+…`: a cluster, of which
              these are some nodes.

        prefix: put before every key; a namespace on a server shared with others.
        source_id: the identity of the database whose documents these are; see `Source`.
        lease: seconds until a lease is lost.
        fence: seconds until a fence is lost; longer than any transaction takes.
        connections: the most held to each server where hiredis is missing; with it there are two.
        pool_wait: seconds to wait for a free one of those.
        socket_limit: seconds to connect, and to wait for a reply.
        clock: monotonic time in seconds.

    Raises:
        ValueError: the URL cannot be read.
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
        if location.kind == "cluster" and "{" in prefix:
            raise ValueError("a prefix with a hash tag would put all keys on one server")
        self._prefix = prefix
        # Without a prefix, cells are as they have always been.
        self._namespace = (
            sha1(prefix.encode(), usedforsecurity=False).hexdigest()[:8] if prefix else ""
        )
        self._source = Source(prefix, source_id)
        self._cells = Decoder(len(prefix))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._clock = clock
        self._lease_ms = round(lease * 1000)
        self._fence_ms = round(fence * 1000)
        self._warned = False
        self._asks_sentinels = location.kind == "sentinel"
        scripts = {name: _lua(name) for name in _SCRIPTS}
        self._topology = topology_of(
            location,
            serve=partial(
                Server,
                scripts=scripts,
                learn=self._learn_incarnation,
                proof=self._proof,
                check=self._check,
                clock=clock,
            ),
            connections=connections,
            pool_wait=pool_wait,
            socket_limit=socket_limit,
        )
        # None in a cluster, where every key has a server of its own.
        self._server = None if self._topology.is_sharded else self._topology.servers()[0]
        self._feed = TrackingFeed(self.primaries, generation=lambda: self.generation, prefix=prefix)

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None."""
        name = self._prefix + key
        if self._server is None:
            return await self._on_owner(name, partial(self._get_from, name))
        return await self._server.read([name], partial(self._entry, self._server, name))

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`, read with one command where there is one server."""
        return await self.get_many_future(keys)

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """Return a future of the entries at `keys`; without a task, if there is one server."""
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
            self._verify_identity(server)
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
                self._verify_identity(server)
        return found

    # --- reading from a cluster ---

    async def _get_many_sharded(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Read the keys of each server together, and then those that it does not have any more."""
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
        reply, incarnation_id, server = await self._run("lease", key, token, self._lease_ms)
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
        """Return a future of the fence; without a task, if there is one server."""
        call = Call("fence", self._prefix + key, (token, self._fence_ms))
        return self._call_future(call, _ignore)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish, by one script."""
        return await self.publish_future(key, token, entry)

    def publish_future(
        self, key: str, token: str, entry: Entry | None
    ) -> asyncio.Future[PublishResult]:
        """Return a future of what the publish did; without a task, if there is one server."""
        arguments = (
            (token, _WITHDRAWN, 0, b"")
            if entry is None
            else (token, entry.version, entry.keep_ms, entry)
        )
        call = Call("publish", self._prefix + key, arguments)
        return self._call_future(call, _publish_result)

    async def purge(self, keys: Sequence[str]) -> int:
        """Purge, by one script for each key."""
        return await self._drop([self._prefix + key for key in keys], "purge")

    async def purge_all(self) -> int:
        """Empty the namespace. Keys that others keep in the same database are not touched.

        Every step has the limits of its connection, and the log says every few seconds how far it
        has come.
        """
        pattern = f"{_literal(self._prefix)}*"
        with translated():
            await self._topology.refresh()
        sweep = _Sweep(self._prefix, self._clock)
        for server in self._topology.servers():
            await self._sweep(server, pattern, sweep)
        sweep.end()
        return sweep.dropped

    async def _sweep(self, server: Server, pattern: str, sweep: _Sweep) -> None:
        cursor = 0
        while True:
            with translated():
                cursor, names = await server.scan(cursor, pattern)
            sweep.step(len(names), await self._evict(names))
            if cursor == 0:
                return

    async def _evict(self, names: Sequence[bytes]) -> int:
        """Empty the cells among these keys that are of this namespace."""
        most = 1 if self._topology.is_sharded else _EVICTED_TOGETHER
        starts = range(0, len(names), most)
        calls = [
            Call("evict", names[start], (), tuple(names[start + 1 : start + most]))
            for start in starts
        ]
        return await self._dropped(calls)

    async def _drop(self, names: Sequence[str | bytes], script: str) -> int:
        return await self._dropped([Call(script, name) for name in names])

    async def _dropped(self, calls: Sequence[Call]) -> int:
        replies = await asyncio.gather(*(self._call(call) for call in calls))
        return sum(dropped for dropped, *_ in replies)

    async def ping(self) -> None:
        """Ping every server that keys belong to."""
        with translated():
            await self._topology.refresh()
            pings = (
                server.ping(self._key_on(server, "ping")) for server in self._topology.servers()
            )
            for error in await asyncio.gather(*pings, return_exceptions=True):
                if error is not None:
                    raise error

    def identify(self, source_id: str) -> None:
        """Refuse, from now on, a namespace that belongs to another source."""
        self._source.source_id = source_id

    @property
    def generation(self) -> int:
        """Changes whenever `primaries` does."""
        return self._topology.generation

    async def primaries(self) -> Sequence[Endpoint]:
        """Every server that cells are written on now.

        Raises:
            CacheUnavailable: nobody can tell.
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
        return self._key_on(server, f"beat:{word}")

    def _key_on(self, server: Server, word: str) -> str:
        return f"{self._prefix}jobcache:{word}{self._topology.tag_of(server)}"

    def feed(self) -> TrackingFeed:
        """Return the feed of changes of this namespace."""
        return self._feed

    async def aclose(self) -> None:
        """Close the connections. Whoever still waits is cancelled."""
        await self._feed.aclose()
        await self._topology.aclose()
        await end_all(list(self._tasks))

    # --- cells ---

    def _verify_identity(self, server: Server) -> None:
        """A cell of another incarnation was found: the server may have become another."""
        server.verify_identity(self._key_on(server, "ping"))

    async def _run(
        self, script: str, key: str, *arguments: str | int | bytes | Entry
    ) -> ScriptReply:
        return await self._call(Call(script, self._prefix + key, arguments))

    async def _call(self, call: Call) -> ScriptReply:
        """Call a script on the server that has its key."""
        if self._server is None:
            return await self._on_owner(call.key, partial(_call_on, call))
        with translated():
            return await self._server.call(call)

    def _call_future(self, call: Call, convert: Callable[[ScriptReply], T]) -> asyncio.Future[T]:
        """Return a future of what `convert` makes of a script's reply."""
        calling: asyncio.Future[ScriptReply]
        if self._server is None:
            calling = task = asyncio.create_task(self._call(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            calling = self._server.call(call)
        converted: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        calling.add_done_callback(partial(_convert, converted, convert))
        return converted

    async def _on_owner(self, name: str | bytes, operate: _Operate[T]) -> T:
        """Operate on the server of a cluster that has `name`, wherever its slot has moved."""
        asking = False
        try:
            server = self._topology.owner(name)
            if server is None:
                await self._topology.refresh()
                server = self._topology.owner(name)
            for _ in range(_REFERRALS):
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
        """Have the topology learned anew after an error that says that it may have changed."""
        if isinstance(error, _TROUBLE) or isinstance(error.__cause__, _TROUBLE):
            self._topology.refresh_soon()

    # --- the server's incarnation ---

    async def _learn_incarnation(self, connection: AbstractConnection) -> str:
        """The incarnation id of the server that a new connection leads to.

        Raises:
            NamespaceConflict: the prefix is another source's there.
            RedisError: as redis-py does.
        """
        try:
            incarnation = await _incarnation_on(connection, master=self._asks_sentinels)
        except ResponseError as error:
            await self._without_incarnation(connection, error)
            incarnation = _NO_INCARNATION
        if self._source.source_id:
            await self._source.claim(connection, self._topology.connect)
        return incarnation + self._namespace

    async def _without_incarnation(
        self, connection: AbstractConnection, error: ResponseError
    ) -> None:
        """Go on without INFO, with one warning, but not behind a proxy.

        Behind one a server can be replaced while the connection stays. That neither the incarnation
        id nor a lost connection would tell.
        """
        if is_unknown(error) and await _has_no_scripts(connection):
            raise CommandRefused(
                "Redis refuses INFO and SCRIPT, as proxies do: nothing would tell if the server"
                " behind it came back with old data"
            )
        if not self._warned:
            self._warned = True
            logger.warning(
                "Redis does not tell its run_id (%s): one that comes back with old data may"
                " have it served until it expires",
                error,
            )

    def _proof(self, server: Server) -> list[Command]:
        """Return the commands with which a connection proves that it leads to a primary of ours.

        A node of a cluster that is no primary any more refers to its primary.

        Deleting a key that is not there changes nothing, and only a primary does it.
        """
        commands: list[Command] = []
        if not self._topology.is_sharded:
            commands.append(("DEL", self._key_on(server, "absent")))
        if self._source.source_id and self._topology.owner(self._source.key) is server:
            commands.append(("GET", self._source.key))
        return commands

    def _check(
        self, server: Server, proof: Sequence[Command], replies: Sequence[object]
    ) -> Exception | None:
        """Return the error if the replies do not prove that; see `Server`."""
        for (word, *_), reply in zip(proof, replies, strict=False):
            if isinstance(reply, AskError):
                if not self._topology.is_sharded:
                    return cluster_node(reply)
            elif isinstance(reply, Exception):
                return named(str(word), reply)
            elif word == "GET":
                try:
                    if not self._source.owns(reply):
                        self._verify_identity(server)  # evicted, or flushed: to be claimed anew
                except NamespaceConflict as error:
                    server.identity.invalidate()
                    return error
        return None


def _ignore(_: ScriptReply) -> None:
    pass


def _publish_result(reply: ScriptReply) -> PublishResult:
    return PublishResult(reply[0].decode())


def _convert(
    converted: asyncio.Future[T],
    convert: Callable[[ScriptReply], T],
    calling: asyncio.Future[ScriptReply],
) -> None:
    if converted.done():
        return  # its caller has gone
    if calling.cancelled():
        converted.cancel()
    elif (error := calling.exception()) is not None:
        converted.set_exception(as_cache_error(error))
    else:
        converted.set_result(convert(calling.result()))


async def _call_on(call: Call, server: Server, *, asking: bool) -> ScriptReply:
    if asking:
        return await server.call_asking(call)
    return await server.call(call)


async def _heartbeat(server: Server, reads: str, scripted: str) -> None:
    with translated():
        await server.heartbeat(reads, scripted)


_SCRIPTS = ("lease", "fence", "publish", "purge", "evict")


def _lua(name: str) -> str:
    return files("jobcache.backends.redis").joinpath(f"scripts/{name}.lua").read_text("utf-8")


async def _incarnation_on(connection: AbstractConnection, *, master: bool) -> str:
    """Return the id of the incarnation at the other end of a connection.

    Of both ids, as much as makes chance hopeless. The replication id changes whenever a replica is
    promoted, also one that was the master before.

    Raises:
        RedisConnectionError: it is to be a master, and is none: what it holds may lag.
    """
    parts = []
    for section, field in (("server", b"run_id"), ("replication", b"master_replid")):
        await connection.send_command("INFO", section)
        reply = await connection.read_response()
        found = re.search(rb"^%b:(\w{8})" % field, reply, re.MULTILINE)
        if found is None:
            raise ResponseError(f"INFO {section} has no {field.decode()}")
        if master and b"\nrole:slave" in reply:
            raise RedisConnectionError("the sentinels have named a replica")
        parts.append(found[1].decode())
    return "".join(parts)


async def _has_no_scripts(connection: AbstractConnection) -> bool:
    await connection.send_command("SCRIPT", "EXISTS", "0" * 40)
    try:
        await connection.read_response()
    except ResponseError as error:
        return is_unknown(error)
    return False


class _Sweep:
    """How far the emptying of a namespace has come, for the log.

    Args:
        prefix: of the namespace.
        clock: monotonic time in seconds.

    Attributes:
        dropped: how many cells were.
    """

    def __init__(self, prefix: str, clock: Callable[[], float]) -> None:
        self.dropped = 0
        self._looked_at = 0
        self._prefix = prefix
        self._clock = clock
        self._began = clock()
        self._told_at = self._began

    def step(self, looked_at: int, dropped: int) -> None:
        """Count one step."""
        self._looked_at += looked_at
        self.dropped += dropped
        if self._clock() - self._told_at >= _BETWEEN_REPORTS:
            self._told_at = self._clock()
            self._tell("emptying")

    def end(self) -> None:
        """Say what has come of it, if it was long enough for a report."""
        if self._told_at != self._began:
            self._tell("emptied")

    def _tell(self, verb: str) -> None:
        logger.info(
            "%s the cache under the prefix %r: %d keys looked at, %d entries dropped in %.0f s",
            *(verb, self._prefix, self._looked_at, self.dropped, self._clock() - self._began),
        )


def _literal(text: str) -> str:
    """`text` with what a glob pattern would read as a wildcard escaped."""
    return "".join(f"\\{char}" if char in "*?[]\\^" else char for char in text)


def from_settings(settings: CacheSettings) -> RedisBackend:
    """The factory behind the name "redis".

    Raises:
        SettingsError: the URL cannot be used.
    """
    try:
        return RedisBackend(
            settings.redis_url, prefix=settings.prefix, source_id=settings.source_id
        )
    except (ValueError, TypeError) as error:
        # Without the error's own words: they quote what may be a password.
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
