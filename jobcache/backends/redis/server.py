"""One Redis server: sends commands to it, and sends them again after a lost connection.

Reads share one pipelined connection, and scripts another (`connection_slot`). Connections that
cannot be pipelined are taken from redis-py's pool (`pool_fallback`). Every command is made for the
incarnation that its connection leads to (`identity`), and connections prove that they lead to a
primary (`proof`).

Commands are retried once after a lost connection, or after one that led to an older incarnation.
All of them can be repeated, and a lost fence would let other processes serve an old version. There
is no retry after a time-out, which would double the wait. redis-py itself retries nothing.
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

from jobcache._concurrency.batching import (
    Batcher,
    copy_outcome,
    outcome_error,
    resolve_future,
)
from jobcache.backends._closing import end_all
from jobcache.backends.redis.attempt import Attempt, SendAgain
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
from jobcache.backends.redis.script_calls import Call, ScriptCalls
from jobcache.backends.redis.url import Address
from jobcache.errors import CacheUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from jobcache.backends.redis.identity import Incarnation

T = TypeVar("T")
logger = logging.getLogger("jobcache")

_SCANNED = 500  # keys to a command
_CALLS = 50  # scripts to a pipeline
_BETWEEN_VERIFICATIONS = 1.0  # seconds
_HEARTBEAT_LIFETIME_MS = 60_000
_PING_MS = 1000
_SCRIPTS = "EVALSHA and EVAL"
_REPLY_LIMIT = 1.0  # seconds, where the URL gives no limit
_ASKING: Command = ("ASKING",)

Cells: TypeAlias = "list[bytes | Exception | None]"
"""The cells at several keys; an error in place of one that cannot be read."""

ScriptReply: TypeAlias = "tuple[Any, str, Server]"
"""A reply as redis-py reads it, the incarnation id of its server, and the server."""

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
        self._scripts = ScriptCalls(scripts)
        new_proof = partial(Proof, partial(proof, self), partial(check, self), clock)
        self._reads = ConnectionSlot(self.identity, self._open_pipelined, new_proof, clock)
        # Reads are batched by their callers.
        open_scripted = partial(self._open_pipelined, coalesces=True)
        self._scripted = ConnectionSlot(self.identity, open_scripted, new_proof, clock)
        self._fallback = PoolFallback(pool, self.identity, new_proof)
        self._uses_pool = self._closed = False
        self._calls: Batcher[Call, ScriptReply] = Batcher(self._evaluate_soon, _CALLS)
        self._verify_from = -math.inf
        self._verification: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

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
        incarnation = None if self._uses_pool else self._reads.incarnation()
        if incarnation is None:
            return self._start(self._read(names, decode))
        attempt: Attempt[T] = Attempt(
            self.identity,
            incarnation,
            partial(self._cells, decode),
            partial(self._retry, self._read, names, decode),
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

    def call(
        self,
        call: Call,
        convert: Callable[[ScriptReply], T],
        translate: Callable[[BaseException], BaseException],
    ) -> asyncio.Future[T]:
        """Return a future of a script's reply, converted.

        It is sent at once; further calls of the same turn of the loop are sent together. Needs no
        task if a connection is open.

        Args:
            call: the script and its arguments.
            convert: makes the result of the reply.
            translate: returns the error to raise in place of one of redis-py, or an `OSError`.
        """
        incarnation = None if self._uses_pool else self._scripted.incarnation()
        if incarnation is None:
            evaluated: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._evaluate_batched(call, convert, translate, evaluated)
            return evaluated
        attempt: Attempt[T] = Attempt(
            self.identity,
            incarnation,
            partial(self._result, convert),
            partial(self._evaluate_batched, call, convert, translate),
            translate,
        )
        try:
            commands = self._scripts.by_digest((call,), str(incarnation.incarnation_id))
            self._scripted.send(commands, attempt.on_replies)
        except Exception as error:  # noqa: BLE001 - raised to the caller, who awaits the future
            attempt.future.set_exception(error)
        return attempt.future

    async def call_asking(self, call: Call) -> ScriptReply:
        """Call a script on a key whose slot is migrating to this server. Raises as `call` does."""
        (reply,) = await self._evaluate([call], asking=True)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def scan(self, cursor: int, pattern: str) -> tuple[int, list[bytes]]:
        """Take one step through the string keys that match. Raises as `read` does."""
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED, "TYPE", "string")
        (reply,), _ = await self._exchange(self._reads, lambda _: [command])
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
        (reply,), _ = await self._exchange(slot, lambda _: [command])
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
        commands = [read, *self._scripts.by_digest(calls, incarnation_id)]
        replies = await replies_to(connection, commands)
        if any(isinstance(reply, NoScriptError) or is_refused(reply) for reply in replies[1:]):
            commands = self._scripts.as_text(calls, incarnation_id)
            replies[1:] = await replies_to(connection, commands)
        for word, reply in zip((read[0], _SCRIPTS, _SCRIPTS), replies, strict=True):
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
        self._uses_pool = True
        await self._end_verification()
        for slot in (self._reads, self._scripted):
            slot.close_when_idle()
        await self._fallback.retire()

    async def aclose(self) -> None:
        """Close the connections. Pending calls fail, and so do later ones."""
        # First, so that nothing more is sent: a command that begins while the others are cancelled
        # would open a connection that is never closed.
        self._uses_pool = self._closed = True
        for slot in (self._reads, self._scripted):
            await slot.aclose()
        self._calls.cancel()
        await self._end_verification()
        await end_all(list(self._tasks))
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
        self._scripts.reset()

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
            self._uses_pool |= isinstance(error, NotPipelinable)
            await connection.disconnect(nowait=True)
            raise
        if self._uses_pool:  # retired meanwhile
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
            replies, incarnation_id = await self._exchange(
                self._reads, lambda _: commands, asking=asking
            )
            return self._cells(decode, replies, incarnation_id)
        except (RedisError, OSError) as error:
            raise as_cache_error(error) from error

    # --- scripts ---

    def _result(
        self, convert: Callable[[ScriptReply], T], replies: list[Any], incarnation_id: str
    ) -> T:
        """Return the script's result, converted.

        Raises:
            SendAgain: the script must be sent as text.
        """
        (reply,) = replies
        if not isinstance(reply, Exception):
            return convert((reply, incarnation_id, self))
        if self._scripts.wants_text(reply):
            raise SendAgain
        raise named(_SCRIPTS, reply)

    def _evaluate_batched(
        self,
        call: Call,
        convert: Callable[[ScriptReply], T],
        translate: Callable[[BaseException], BaseException],
        evaluated: asyncio.Future[T],
    ) -> None:
        """Call a script in a task, which all such calls of this turn of the loop share."""
        self._calls.request(call).add_done_callback(
            partial(_convert, evaluated, convert, translate)
        )

    def _evaluate_soon(
        self, calls: Sequence[Call]
    ) -> asyncio.Future[Sequence[ScriptReply | Exception]]:
        return self._start(self._evaluate(calls))

    async def _evaluate(
        self, calls: Sequence[Call], *, asking: bool = False
    ) -> Sequence[ScriptReply | Exception]:
        scripts = self._scripts
        replies, incarnation_id = await self._exchange(
            self._scripted, partial(scripts.by_digest, calls), asking=asking
        )
        results = [(reply, incarnation_id, self) for reply in replies]
        again = [n for n, reply in enumerate(replies) if scripts.wants_text(reply)]
        if again:
            # The server was restarted, or has flushed its scripts, or does not allow EVALSHA.
            some = [calls[n] for n in again]
            replies, incarnation_id = await self._exchange(
                self._scripted, partial(scripts.as_text, some), asking=asking
            )
            for n, reply in zip(again, replies, strict=True):
                if is_refused(results[n][0]) and not isinstance(reply, Exception):
                    scripts.use_text(results[n][0])
                results[n] = reply, incarnation_id, self
        return [
            named(_SCRIPTS, each[0]) if isinstance(each[0], Exception) else each for each in results
        ]

    # --- one round trip ---

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        if self._closed:
            work.close()
            refused: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            refused.set_exception(CacheUnavailable("the connections to Redis have been closed"))
            return refused
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _retry(self, *again: Any) -> None:  # noqa: ANN401 - a coroutine function and its arguments
        """Send commands again, in a task, and copy the outcome to the future."""
        send, *arguments, future = again
        if self._closed:
            future.cancel()
            return
        self._start(send(*arguments)).add_done_callback(partial(copy_outcome, future))

    async def _exchange(
        self, slot: ConnectionSlot, make: Callable[[str], list[Command]], *, asking: bool = False
    ) -> tuple[list[Any], str]:
        """Send commands together, twice if necessary; return the replies, errors among them.

        Args:
            slot: the connection to use.
            make: makes the commands for the server's incarnation id.
            asking: whether the keys' slot is migrating to this server. Then ASKING is sent before
                each command.
        """
        if asking:
            make = partial(_with_asking, make)
        try:
            replies, incarnation_id = await self._exchange_once(slot, make)
        except RedisConnectionError:
            replies, incarnation_id = await self._exchange_once(slot, make)
        return (replies[1::2] if asking else replies), incarnation_id

    async def _exchange_once(
        self, slot: ConnectionSlot, make: Callable[[str], list[Command]]
    ) -> tuple[list[Any], str]:
        generation = self.identity.current.generation
        sender = self._fallback if self._uses_pool else slot
        replies, incarnation = await sender.exchange(make)
        if any(map(is_suspect, replies)):
            self.identity.mark_suspect()
        elif (incarnation.incarnation_id, generation) != self.identity.current:
            raise RedisConnectionError("the server is not the one it was")
        return replies, str(incarnation.incarnation_id)


def _convert(
    converted: asyncio.Future[T],
    convert: Callable[[ScriptReply], T],
    translate: Callable[[BaseException], BaseException],
    calling: asyncio.Future[ScriptReply],
) -> None:
    error = outcome_error(calling)
    found: T | BaseException
    try:
        found = convert(calling.result()) if error is None else translate(error)
    except Exception as unexpected:  # noqa: BLE001 - raised to the caller
        found = unexpected
    resolve_future(converted, found)


def _with_asking(make: Callable[[str], list[Command]], incarnation_id: str) -> list[Command]:
    return [word for command in make(incarnation_id) for word in (_ASKING, command)]
