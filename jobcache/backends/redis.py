"""Cells in Redis 6.2 or newer, or Valkey: one string key each, so that a cluster can hold them.

All gets of one turn of the loop are one `MGET`, a single one is a `GET`. The other operations are
the scripts beside this file, one each, all of one key; a lost reply may be followed by a second
try, for every one of them can be repeated. The pool is small and makes callers wait a moment rather
than fail: a burst of polls is not an outage.

Deadlines, breaker and recovery are not here but in `jobcache.guard`, which wraps any such backend.
"""

from __future__ import annotations

import asyncio
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING, Any, ParamSpec

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from jobcache.codec import Fence, decode, encode_entry
from jobcache.errors import CacheUnavailable, SettingsError, UnreadableCell, redacted
from jobcache.protocol import Entry, Offered, Standing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobcache.settings import CacheSettings

    _Cell = asyncio.Future[bytes | None]

P = ParamSpec("P")

_WITHDRAWN = -1
_BATCH = 500


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
        socket_limit: float = 2.0,
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
        )
        # Connections are made lazily; an option that none can be made with is found out now.
        # (redis-py has not typed this method.)
        if pool.make_connection().encoder.decode_responses:  # type: ignore[no-untyped-call]
            raise ValueError("decode_responses cannot be used: cells are bytes")
        self._client: Redis = Redis.from_pool(pool)
        self._turns = asyncio.Semaphore(pool.max_connections)
        self._wanted: dict[str, list[_Cell]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._scripts = {name: self._client.register_script(_lua(name)) for name in _SCRIPTS}

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`. All that are asked for in one turn of the loop travel together."""
        loop = asyncio.get_running_loop()
        cell: asyncio.Future[bytes | None] = loop.create_future()
        if not self._wanted:
            loop.call_soon(self._send_gets)
        self._wanted.setdefault(key, []).append(cell)
        return _entry(await cell)

    def _send_gets(self) -> None:
        wanted, self._wanted = list(self._wanted.items()), {}
        for start in range(0, len(wanted), _BATCH):
            task = asyncio.create_task(self._get_together(wanted[start : start + _BATCH]))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _get_together(self, wanted: Sequence[tuple[str, list[_Cell]]]) -> None:
        # A future for each caller: one who goes away takes nobody's answer along.
        callers = [waiting for _, waiting in wanted]
        names = [self._prefix + key for key, _ in wanted]
        try:
            if len(names) == 1:
                cells = [await self._ask(self._client.get, names[0])]
            else:
                cells = await self._ask(self._client.mget, names)
        except Exception as error:  # noqa: BLE001 - it is the callers' to handle
            for cell in chain.from_iterable(callers):
                if not cell.done():
                    cell.set_exception(error)
        else:
            for waiting, found in zip(callers, cells, strict=True):
                for cell in waiting:
                    if not cell.done():
                        cell.set_result(found)
        finally:
            for cell in chain.from_iterable(callers):
                cell.cancel()  # unless it is done: this was cancelled

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """See `CacheBackend`."""
        if not keys:
            return {}
        cells = await self._ask(self._client.mget, [self._prefix + key for key in keys])
        found = {}
        for key, cell in zip(keys, cells, strict=True):
            try:
                entry = _entry(cell)
            except UnreadableCell:
                continue
            if entry is not None:
                found[key] = entry
        return found

    async def lease(self, key: str, ticket: str) -> Entry | Standing:
        """See `CacheBackend`."""
        cell = await self._run("lease", key, ticket, self._lease_ms)
        if cell is None:
            return Standing.NOTHING
        found = decode(cell)
        if isinstance(found, Entry):
            return found
        return Standing.FENCE if isinstance(found, Fence) else Standing.LEASE

    async def fence(self, key: str, ticket: str) -> None:
        """See `CacheBackend`."""
        await self._run("fence", key, ticket, self._fence_ms)

    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        """See `CacheBackend`."""
        if entry is None:
            word = await self._run("offer", key, ticket, _WITHDRAWN, 0, b"")
        else:
            cell = encode_entry(entry)
            word = await self._run("offer", key, ticket, entry.version, entry.keep_ms, cell)
        return Offered(word.decode())

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`."""
        return await self._drop([self._prefix.encode() + key.encode() for key in keys], "purge")

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

    async def _drop(self, names: Sequence[bytes], script: str) -> int:
        dropped = 0
        for start in range(0, len(names), _BATCH):
            async with self._client.pipeline(transaction=False) as pipeline:
                for name in names[start : start + _BATCH]:
                    await self._scripts[script](keys=[name], client=pipeline)
                dropped += sum(await self._ask(pipeline.execute))
        return dropped

    async def ping(self) -> None:
        """See `Ping`. A write, for a server that is full or read-only answers a PING."""
        await self._ask(self._client.set, f"{self._prefix}jobcache:ping", b"1", px=1000)

    async def aclose(self) -> None:
        """Close the connections. Whoever still waits for a get is cancelled."""
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        if sending:
            await asyncio.wait(sending)
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _run(self, script: str, key: str, *arguments: str | int | bytes) -> Any:  # noqa: ANN401
        return await self._ask(self._scripts[script], keys=[self._prefix + key], args=arguments)

    async def _ask(
        self, command: Callable[P, Awaitable[Any]], *arguments: P.args, **options: P.kwargs
    ) -> Any:  # noqa: ANN401 - redis-py's replies have no type
        try:
            # First come, first served. The pool's own queue is not: whoever has just given a
            # connection back can take it again before those who wait, for as long as it likes.
            async with self._turns:
                return await command(*arguments, **options)
        except ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise UnreadableCell(str(error)) from error
            raise CacheUnavailable(_reason(error)) from error
        except (RedisError, OSError) as error:
            raise CacheUnavailable(_reason(error)) from error


_SCRIPTS = ("lease", "fence", "offer", "purge", "evict")


def _lua(name: str) -> str:
    return files("jobcache.backends").joinpath(f"{name}.lua").read_text("utf-8")


def _entry(cell: bytes | None) -> Entry | None:
    if cell is None:
        return None
    found = decode(cell)
    return found if isinstance(found, Entry) else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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
