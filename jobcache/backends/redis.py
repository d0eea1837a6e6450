"""Cells in Redis 6.2 or newer, or Valkey: one string key each, so that a cluster can hold them.

All gets of one turn of the loop are one `MGET`, a single one is a `GET`. The other operations are
the scripts beside this file, one each, all of one key; those of one turn travel in one pipeline. A
lost reply may be followed by a second try, for every one of them can be repeated. The pool is small
and makes callers wait a moment rather than fail: a burst of polls is not an outage.

Every cell bears the stamp of the server that it was written on, made of its `run_id` and its
replication id. A server that was restarted from an old dump, or a replica that was promoted, has
another stamp than the cells that it brings along, and they count as empty:

    W commits v2, offers it; Redis dies, and comes back with a dump that holds v1
    every connection has died with it; each new one learns the stamp before it is used

Rejected: to remember the `run_id` and empty the namespace when it has changed. That takes as long
as there are keys, takes the other processes' fences along, and a process that was started together
with Redis has nothing to compare with.

Deadlines, breaker and recovery are not here but in `jobcache.guard`, which wraps any such backend.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from contextlib import contextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from jobcache.codec import Fence, decode, encode_entry
from jobcache.errors import CacheError, CacheUnavailable, SettingsError, UnreadableCell, redacted
from jobcache.protocol import Entry, Offered, Standing
from jobcache.together import Together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from redis.asyncio.connection import AbstractConnection

    from jobcache.settings import CacheSettings

P = ParamSpec("P")
logger = logging.getLogger("jobcache")

_WITHDRAWN = -1
_BATCH = 500  # keys to a command
_CALLS = 50  # scripts to a pipeline; the loop waits while redis-py packs them
_NO_STAMP = "none"
_CLOSED = "handler is closed"
_BETWEEN_WONDERS = 1.0  # seconds


class _Call(NamedTuple):
    script: str
    name: str | bytes
    arguments: tuple[str | int | bytes, ...]


class RedisBackend:
    """Cells in Redis.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, with user, password, database number and,
            as query, any option of redis-py's connection; `protocol=2` for servers and proxies
            that refuse `HELLO`.
        prefix: put before every key; a namespace on a server shared with others.
        lease: seconds until a lease is lost.
        fence: seconds until a fence is lost; longer than any transaction takes.
        connections: the most connections held.
        pool_wait: seconds to wait for a free one.
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
        lease: float = 5.0,
        fence: float = 30.0,
        connections: int = 10,
        pool_wait: float = 0.5,
        socket_limit: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefix = prefix
        self._lease_ms = round(lease * 1000)
        self._fence_ms = round(fence * 1000)
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=pool_wait,
            socket_connect_timeout=socket_limit,
            socket_timeout=socket_limit,
            # One more try, at once: for a pooled connection that the server has closed meanwhile.
            # Not after a time-out, which would double it.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            # Two round trips less on every connection.
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            redis_connect_func=self._greet,
        )
        # Connections are made lazily; an option that none can be made with is found out now.
        # (redis-py has not typed this method.)
        if pool.make_connection().encoder.decode_responses:  # type: ignore[no-untyped-call]
            raise ValueError("decode_responses cannot be used: cells are bytes")
        self._client: Redis = Redis.from_pool(pool)
        self._stamp: str | None = None
        self._clock = clock
        self._wonder_from = -math.inf
        self._wondering: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(pool.max_connections)
        self._scripts = {name: self._client.register_script(_lua(name)) for name in _SCRIPTS}
        self._gets: Together[str, bytes | None] = Together(self._get_all, _BATCH)
        self._calls: Together[_Call, Any] = Together(self._call_all, _CALLS)

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`. All that are asked for in one turn of the loop travel together."""
        return self._entry(await self._gets.ask(self._prefix + key))

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """See `CacheBackend`."""
        if not keys:
            return {}
        cells = await self._ask(self._client.mget, [self._prefix + key for key in keys])
        found = {}
        for key, cell in zip(keys, cells, strict=True):
            try:
                entry = self._entry(cell)
            except UnreadableCell:
                continue
            if entry is not None:
                found[key] = entry
        return found

    async def lease(self, key: str, ticket: str) -> Entry | Standing:
        """See `CacheBackend`."""
        cell, stamp = await self._run("lease", key, ticket, self._lease_ms)
        if cell is None:
            return Standing.NOTHING
        found = decode(cell, stamp)
        if isinstance(found, Entry):
            return found
        return Standing.FENCE if isinstance(found, Fence) else Standing.LEASE

    async def fence(self, key: str, ticket: str) -> None:
        """See `CacheBackend`."""
        await self._run("fence", key, ticket, self._fence_ms)

    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        """See `CacheBackend`."""
        if entry is None:
            word, _ = await self._run("offer", key, ticket, _WITHDRAWN, 0, b"")
        else:
            cell = encode_entry(entry, await self._life())
            word, _ = await self._run("offer", key, ticket, entry.version, entry.keep_ms, cell)
        return Offered(word.decode())

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`."""
        return await self._drop([self._prefix + key for key in keys], "purge")

    async def purge_all(self) -> int:
        """See `PurgeAll`. Of keys that others keep in the same database, none is touched."""
        dropped, cursor = 0, 0
        while True:
            cursor, names = await self._ask(
                self._client.scan,
                cursor,
                match=f"{_literal(self._prefix)}*",
                count=_BATCH,
                _type="string",
            )
            dropped += await self._drop(names, "evict")
            if cursor == 0:
                return dropped

    async def _drop(self, names: Sequence[str | bytes], script: str) -> int:
        stamp = await self._life()
        calls = (self._calls.ask(_Call(script, name, (stamp,))) for name in names)
        return sum(await asyncio.gather(*calls))

    async def ping(self) -> None:
        """See `Ping`. A write, for a server that is full or read-only answers a PING.

        On a connection of its own: those of the pool may be stuck, or have a queue before them.
        """
        # (redis-py has not typed this method.)
        connection = self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        key = f"{self._prefix}jobcache:ping"
        with _translated():
            try:
                await connection.connect()  # which learns the server's life, too
                await connection.send_command("SET", key, "1", "PX", "1000")
                await connection.read_response()
            finally:
                await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connections. Whoever still waits is cancelled."""
        await self._gets.aclose()
        await self._calls.aclose()
        if self._wondering is not None:
            self._wondering.cancel()
            await asyncio.wait({self._wondering})
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    # --- cells ---

    def _entry(self, cell: bytes | None) -> Entry | None:
        if cell is None or self._stamp is None:
            return None
        found = decode(cell, self._stamp)
        if found is None:
            self._wonder()
        return found if isinstance(found, Entry) else None

    async def _run(self, script: str, key: str, *arguments: str | int | bytes) -> tuple[Any, str]:
        """Run a script on a cell. Returns its reply, and the stamp it has worked with."""
        stamp = await self._life()
        call = _Call(script, self._prefix + key, (stamp, *arguments))
        reply = await self._calls.ask(call)
        if stamp != self._stamp:
            # Tried again on a new connection, it may have written what nobody will read.
            raise CacheUnavailable("the server is not the one it was")
        return reply, stamp

    async def _get_all(self, names: Sequence[str]) -> list[bytes | None]:
        distinct = list(dict.fromkeys(names))
        if len(distinct) == 1:
            cells = [await self._ask(self._client.get, distinct[0])]
        else:
            cells = await self._ask(self._client.mget, distinct)
        found = dict(zip(distinct, cells, strict=True))
        return [found[name] for name in names]

    async def _call_all(self, calls: Sequence[_Call]) -> list[Any]:
        replies = await self._evaluate(calls)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # the server has been started, or told to forget them
            for script in self._scripts.values():
                await self._ask(self._client.script_load, script.script)
            again = await self._evaluate([calls[n] for n in unknown])
            for n, reply in zip(unknown, again, strict=True):
                replies[n] = reply
        return [_as_ours(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _evaluate(self, calls: Sequence[_Call]) -> list[Any]:
        async def send() -> list[Any]:
            try:
                return await self._send(calls)
            except RedisConnectionError:
                # redis-py tries a pipeline again that was lost, but not if its connection was lost
                # while it was made. This may be a fence, without which others serve what is old.
                return await self._send(calls)

        return list(await self._ask(send))

    async def _send(self, calls: Sequence[_Call]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for script, name, arguments in calls:
                pipeline.evalsha(self._scripts[script].sha, 1, name, *arguments)
            return list(await pipeline.execute(raise_on_error=False))

    # --- the server's life ---

    async def _life(self) -> str:
        if self._stamp is None:
            await self._ask(self._client.ping)  # on a connection, which learns it
        if self._stamp is None:
            raise CacheUnavailable("the server has not been reached yet")
        return self._stamp

    async def _greet(self, connection: AbstractConnection) -> None:
        """Make a new connection ready, and learn whose life it leads into."""
        await connection.on_connect()
        await self._learn_life(connection)

    async def _learn_life(self, connection: AbstractConnection) -> None:
        try:
            self._stamp = await _stamp_on(connection)
        except ResponseError as error:
            if self._stamp != _NO_STAMP:
                logger.warning(
                    "Redis does not tell its run_id (%s): one that comes back with old data may"
                    " have it served until it expires",
                    error,
                )
            self._stamp = _NO_STAMP

    def _wonder(self) -> None:
        """A cell is of another life: find out whether it is ours that has ended.

        Connections outlive it where a server is demoted and promoted again, or forgets its
        replicas; and another process may have learned so before this one.
        """
        if self._clock() >= self._wonder_from:
            self._wonder_from = self._clock() + _BETWEEN_WONDERS
            self._wondering = asyncio.create_task(self._find_out())

    async def _find_out(self) -> None:
        with suppress(CacheUnavailable):
            await self.ping()

    async def _ask(
        self, command: Callable[P, Awaitable[Any]], *arguments: P.args, **options: P.kwargs
    ) -> Any:  # noqa: ANN401 - redis-py's replies have no type
        with _translated():
            # First come, first served. The pool's own queue is not: whoever has just given a
            # connection back can take it again before those who wait, for as long as it likes.
            async with self._turns:
                try:
                    return await command(*arguments, **options)
                except RuntimeError as error:
                    if _CLOSED not in str(error):
                        raise
                # redis-py, which does not know uvloop's word for a connection that the other side
                # has closed, has closed its own, but not tried again.
                return await command(*arguments, **options)


_SCRIPTS = ("lease", "fence", "offer", "purge", "evict")


def _lua(name: str) -> str:
    return files("jobcache.backends").joinpath(f"{name}.lua").read_text("utf-8")


@contextmanager
def _translated() -> Iterator[None]:
    """What redis-py raises, as what the contract allows."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise _as_ours(error) from error
    except RuntimeError as error:
        if _CLOSED not in str(error):
            raise
        raise _as_ours(error) from error


def _as_ours(error: Exception) -> CacheError:
    if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
        return UnreadableCell(str(error))
    return CacheUnavailable(f"{type(error).__name__}: {error}")


async def _stamp_on(connection: AbstractConnection) -> str:
    """What tells the life of the server at the other end from any other.

    Of both ids, as much as makes chance hopeless. The replication id changes whenever a replica is
    promoted, also one that was the master before.
    """
    parts = []
    for section, field in (("server", b"run_id"), ("replication", b"master_replid")):
        await connection.send_command("INFO", section)
        reply = await connection.read_response()
        found = re.search(rb"^%b:(\w{8})" % field, reply, re.MULTILINE)
        if found is None:
            raise ResponseError(f"INFO {section} has no {field.decode()}")
        parts.append(found[1].decode())
    return "".join(parts)


def _literal(text: str) -> str:
    """`text` with what a glob pattern would read as a wildcard escaped."""
    return "".join(f"\\{char}" if char in "*?[]\\^" else char for char in text)


def from_settings(settings: CacheSettings) -> RedisBackend:
    """The factory behind the name "redis".

    Raises:
        SettingsError: the URL cannot be used.
    """
    try:
        return RedisBackend(settings.redis_url, prefix=settings.prefix)
    except (ValueError, TypeError) as error:
        # Without the error's own words: they quote what may be a password.
        allowed = "a redis://, rediss:// or unix:// URL, with options redis-py knows, is needed"
        raise SettingsError("REDIS_URL", redacted(settings.redis_url), allowed) from error
