"""One Redis server: its connections, and the commands that are not scripts.

Reads share one pipelined connection, and scripts (`script_runner`) another (`connection_slot`).
Connections that cannot be pipelined are taken from redis-py's pool (`pool_fallback`). Every command
is made for the incarnation that its connection leads to (`identity`), and connections prove that
they lead to a primary (`proof`). Commands are repeated after a lost connection (`round_trips`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from redis.exceptions import AskError, NoScriptError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from jobcache.backends._closing import end_all
from jobcache.backends.redis.attempt import Attempt
from jobcache.backends.redis.cache_errors import as_cache_error
from jobcache.backends.redis.connection_slot import ConnectionSlot
from jobcache.backends.redis.identity import Identity
from jobcache.backends.redis.pipelined_connection import (
    Command,
    NotPipelinable,
    PipelinedConnection,
)
from jobcache.backends.redis.pool_fallback import PoolFallback
from jobcache.backends.redis.proof import Proof
from jobcache.backends.redis.redis_py import closed_is_lost, connect, replies_to
from jobcache.backends.redis.refused_commands import (
    cluster_node,
    is_refused,
    is_suspect,
    is_unknown,
    named,
)
from jobcache.backends.redis.round_trips import RoundTrips
from jobcache.backends.redis.script_calls import Call, ScriptCalls
from jobcache.backends.redis.script_runner import EVAL_COMMANDS, ScriptRunner
from jobcache.backends.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from jobcache.backends.redis.identity import Incarnation

T = TypeVar("T")
logger = logging.getLogger("jobcache")

_SCANNED = 500  # keys to a command
_BETWEEN_VERIFICATIONS = 1.0  # seconds
_HEARTBEAT_LIFETIME_MS = 60_000
_PING_MS = 1000
_REPLY_LIMIT = 1.0  # seconds, where the URL gives no limit

Cells: TypeAlias = "list[bytes | Exception | None]"
"""The cells at several keys; an error in place of one that cannot be read."""

Check: TypeAlias = "Callable[[Server, Sequence[Command], Sequence[Any]], Exception | None]"


class OlderProtocol(RedisConnectionError):  # noqa: N818 - an instruction to try again
    """The server does not know HELLO. The next connection uses RESP2."""


class Server:
    """Send commands to one server.

    Args:
        pool: the pool of redis-py, for connections and their options.
        scripts: the texts of the scripts, by name.
        learn: asks a new connection for the incarnation id of the server that it leads to.
        proof: makes the commands with which a connection proves that it leads to a primary of ours.
        check: called with these commands and the replies; returns an error if they prove nothing.
        is_sharded: whether the server holds only some of the keys. Then no command reads several.
        clock: monotonic time in seconds.

    Attributes:
        host: the host.
        name: the host and port, for log messages.
        identity: the incarnation that answers now.
        scripts: runs scripts.
        tracked: whether a change feed follows this server.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        scripts: Mapping[str, str],
        learn: Callable[[AbstractConnection], Awaitable[str]],
        proof: Callable[[Server], list[Command]] = lambda _: [],
        check: Check = lambda _server, _proof, _replies: None,
        is_sharded: bool = False,
        clock: Callable[[], float],
    ) -> None:
        options = pool.connection_kwargs
        self.host: str = options.get("host", "localhost")
        self.name: str = options.get("path") or str(Address(self.host, options.get("port", 6379)))
        self.tracked = not is_sharded
        self.identity = Identity(learn, clock)
        self._pool = pool
        options["redis_connect_func"] = self._prepare
        self._is_sharded = is_sharded
        self._clock = clock
        self._script_calls = ScriptCalls(scripts)
        new_proof = partial(Proof, partial(proof, self), partial(check, self), clock)
        self._reads = ConnectionSlot(self.identity, self._open_pipelined, new_proof, clock)
        # Reads are batched by their callers.
        open_scripted = partial(self._open_pipelined, coalesces=True)
        self._scripted = ConnectionSlot(self.identity, open_scripted, new_proof, clock)
        self._fallback = PoolFallback(pool, self.identity, new_proof)
        self._trips = RoundTrips(self.identity, self._fallback)
        self.scripts = ScriptRunner(self._script_calls, self._scripted, self.identity, self._trips)
        self._verify_from = -math.inf
        self._verification: asyncio.Task[None] | None = None

    # --- commands ---

    def read(self, names: Sequence[str], decode: Callable[[Cells, str], T]) -> asyncio.Future[T]:
        """Return a future of the cells at these keys, decoded.

        Sends one MGET, or a GET for each key in a cluster. Needs no task if a connection is open.

        Args:
            names: the keys, with their prefix.
            decode: called with the cells, an error in place of each that could not be read, and the
                incarnation id of the server.

        Raises (in the future):
            CacheError: the server did not answer, or whatever `decode` raises.
        """
        incarnation = None if self._trips.uses_pool else self._reads.incarnation()
        if incarnation is None:
            return self._trips.start(self._read(names, decode))
        attempt: Attempt[T] = Attempt(
            self.identity,
            incarnation,
            partial(self._cells, decode),
            partial(self._trips.retry, self._read, names, decode),
            as_cache_error,
        )
        commands: list[Command] = [("MGET", *names)]
        if self._is_sharded:
            commands = [("GET", name) for name in names]
        self._reads.send(commands, attempt.on_replies)
        return attempt.future

    async def read_asking(self, name: str, decode: Callable[[Cells, str], T]) -> T:
        """Read one key whose slot is migrating to this server. Raises as `read` does."""
        return await self._read([name], decode, asking=True)

    async def scan(self, cursor: int, pattern: str) -> tuple[int, list[bytes]]:
        """Take one step through the string keys that match. Raises as `read` does."""
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED, "TYPE", "string")
        (reply,), _ = await self._trips.exchange(self._reads, lambda _: [command])
        if isinstance(reply, Exception):
            raise named("SCAN", reply)
        return int(reply[0]), reply[1]

    async def heartbeat(self, reads: str, scripted: str) -> None:
        """Write one key through the connection for reads, another through the one for scripts.

        Raises as `read` does.
        """
        for error in await asyncio.gather(
            self._write(self._reads, reads),
            self._write(self._scripted, scripted),
            return_exceptions=True,
        ):
            if error is not None:
                raise error

    async def _write(self, slot: ConnectionSlot, key: str) -> None:
        command: Command = ("SET", key, "1", "PX", _HEARTBEAT_LIFETIME_MS)
        (reply,), _ = await self._trips.exchange(slot, lambda _: [command])
        if isinstance(reply, Exception):
            raise named("SET", reply)

    # --- the server's state ---

    async def ping(self, key: str) -> None:
        """Try all commands that the cache needs, on `key`. Raises as `read` does.

        A server that is full or read-only, or refuses scripts, still answers a PING. The commands
        use a new connection: the others may be stuck, or have a queue.
        """
        with suppress(OlderProtocol):
            await self._ping(key)
            return
        await self._ping(key)

    async def _ping(self, key: str) -> None:
        connection = self.connection()
        try:
            with closed_is_lost():
                await connect(connection)  # this also learns the incarnation
                await self._try_out(connection, key)
        except AskError as error:
            # In a cluster this is an answer: the key's slot has moved, or is migrating.
            if not self._is_sharded:
                raise cluster_node(error) from error
        except ResponseError as error:
            if is_suspect(error):
                self.identity.mark_suspect()
            raise
        finally:
            await connection.disconnect(nowait=True)

    async def _try_out(self, connection: AbstractConnection, key: str) -> None:
        incarnation = self.identity.of(connection)
        assert incarnation is not None  # noqa: S101 - each new connection is recorded
        incarnation_id = str(incarnation.incarnation_id)
        # Two keys of different slots: a node of a cluster refuses that.
        read: Command = ("GET", key) if self._is_sharded else ("MGET", key, f"{key}:")
        calls = Call("fence", key, ("ping", _PING_MS)), Call("publish", key, ("ping", -1, 0, b""))
        commands = [read, *self._script_calls.by_digest(calls, incarnation_id)]
        replies = await replies_to(connection, commands)
        if any(isinstance(reply, NoScriptError) or is_refused(reply) for reply in replies[1:]):
            commands = self._script_calls.as_text(calls, incarnation_id)
            replies[1:] = await replies_to(connection, commands)
        for word, reply in zip((read[0], EVAL_COMMANDS, EVAL_COMMANDS), replies, strict=True):
            if isinstance(reply, Exception):
                raise named(str(word), reply)

    def verify_identity(self, key: str) -> None:
        """Find out, by a ping in the background, whether the server has a new incarnation.

        Called when a cell of another incarnation is found. A connection may outlive an incarnation:
        a server was demoted and promoted again, or dropped its replicas. Another process may have
        noticed that first, and have written the cell.
        """
        if self._clock() >= self._verify_from:
            self._verify_from = self._clock() + _BETWEEN_VERIFICATIONS
            self._verification = asyncio.create_task(self._verify(key))

    async def _verify(self, key: str) -> None:
        with suppress(RedisError, OSError):
            await self.ping(key)

    # --- connections ---

    def connection(self, **options: Any) -> AbstractConnection:  # noqa: ANN401 - redis-py's options
        """Make a connection outside of the pool, not connected; `options` win over the pool's."""
        pool = self._pool
        made: AbstractConnection = pool.connection_class(**{**pool.connection_kwargs, **options})
        return made

    async def retire(self) -> None:
        """Close each connection as soon as it is idle."""
        self._trips.uses_pool = True
        await self._end_verification()
        for slot in (self._reads, self._scripted):
            slot.close_when_idle()
        await self._fallback.retire()

    async def aclose(self) -> None:
        """Close the connections. Pending calls fail, and so do later ones."""
        # First, so that nothing more is sent: a command that begins while the others are cancelled
        # would open a connection that is never closed.
        self._trips.close()
        for slot in (self._reads, self._scripted):
            await slot.aclose()
        self.scripts.cancel()
        await self._end_verification()
        await self._trips.aclose()
        await self._fallback.aclose()

    async def _end_verification(self) -> None:
        if self._verification is not None:
            await end_all({self._verification})

    async def _prepare(self, connection: AbstractConnection) -> None:
        """Make a new connection ready, and learn the incarnation that it leads to."""
        generation = self.identity.current.generation
        try:
            await connection.on_connect()
        except ResponseError as error:
            self._use_older_protocol(error)
            raise OlderProtocol("the next connection uses RESP2") from error
        await self.identity.record(connection, generation)
        self._fallback.forget(connection)
        self._script_calls.reset()

    def _use_older_protocol(self, error: ResponseError) -> None:
        options = self._pool.connection_kwargs
        if not is_unknown(error) or str(options.get("protocol", 3)) == "2":
            raise error
        options["protocol"] = 2
        logger.warning("Redis refuses HELLO (%s): the older protocol, RESP2, is used", error)

    async def _open_pipelined(
        self, *, coalesces: bool = False
    ) -> tuple[PipelinedConnection, Incarnation | None]:
        """Open a pipelined connection.

        Raises:
            NotPipelinable: it cannot be pipelined; from now on every command uses the pool.
            RedisError: the server cannot be reached.
        """
        connection = self.connection()
        try:
            with closed_is_lost():
                await connect(connection)
            limit = connection.socket_timeout or _REPLY_LIMIT
            pipelined = PipelinedConnection(connection, limit, coalesces=coalesces)
        except BaseException as error:
            self._trips.uses_pool |= isinstance(error, NotPipelinable)
            await connection.disconnect(nowait=True)
            raise
        if self._trips.uses_pool:  # retired meanwhile
            pipelined.close()
        return pipelined, self.identity.of(connection)

    # --- reads ---

    def _cells(
        self, decode: Callable[[Cells, str], T], replies: list[Any], incarnation_id: str
    ) -> T:
        cells = replies if self._is_sharded else replies[0]
        if isinstance(cells, Exception):
            raise named("MGET", cells)
        return decode(cells, incarnation_id)

    async def _read(
        self, names: Sequence[str], decode: Callable[[Cells, str], T], *, asking: bool = False
    ) -> T:
        commands: list[Command] = [("MGET", *names)]
        if self._is_sharded:
            commands = [("GET", name) for name in names]
        try:
            replies, incarnation_id = await self._trips.exchange(
                self._reads, lambda _: commands, asking=asking
            )
            return self._cells(decode, replies, incarnation_id)
        except (RedisError, OSError) as error:
            raise as_cache_error(error) from error
