"""One Redis server: its connections, what is sent to it together, and the life it is in.

The gets of one turn of the loop are one `MGET`, a single one is a `GET`; the scripts of one turn
travel in one pipeline. All gets share one connection, all scripts another (`redis_lane`): reads of
large bodies do not hold up a fence. Every command is made for the connection that it goes out on,
with the incarnation id of the server at that connection's other end. So nothing is written with
another server's incarnation id, not even where a connection is lost and the second try meets the
successor:

    W's fence is sent to A, which dies; the next connection leads to B: it gets a fence of its own

One connection that meets another life puts all older ones in doubt: they may lead to where the
server was before. Each is made anew before it is used, and what was still under way on it is tried
again.

An address may be pointed at a new primary while connections to the old one stay open, and the old
one lives on as a replica. So every connection in use proves itself every half second: before
whatever else it sends, it sends a write that changes nothing. A server that refuses this write, or
any other, puts all connections in doubt:

    the address moves from A to B; A becomes a replica of B, and has not copied B's cells yet
    W commits v2, and publishes it on B; R would go on reading v1 from A on its old connection

Where redis-py has another parser than hiredis', all goes by its pool, which is small, and makes
callers wait a moment rather than fail: a burst of polls is not an outage.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import contextmanager, suppress
from hashlib import sha1
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from redis.exceptions import AskError, NoScriptError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from jobcache._concurrency.batching import Batcher
from jobcache.backends._closing import end_all
from jobcache.backends.redis.pipelined_connection import (
    Command,
    NotPipelinable,
    PipelinedConnection,
)
from jobcache.backends.redis.refused_commands import (
    cluster_node,
    is_refused,
    is_suspect,
    is_unknown,
    named,
)
from jobcache.backends.redis.url import Address
from jobcache.errors import NamespaceConflict
from jobcache.protocol.backend import Entry
from jobcache.protocol.codec import encode_entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from jobcache._concurrency.batching import Then

logger = logging.getLogger("jobcache")

_BATCH = 500  # keys to a command
_CALLS = 50  # scripts to a pipeline
_CLOSED = "handler is closed"
_BETWEEN_WONDERS = 1.0  # seconds
_BETWEEN_DOUBTS = 0.2  # seconds: a server that takes no writes is not reconnected to for each
_BETWEEN_PROOFS = 0.5  # seconds
_HEARTBEAT_LIFETIME_MS = 60_000
_PING_MS = 1000
_SCRIPTS = "EVALSHA and EVAL"

_PATIENCE = 1.0  # seconds for an answer, where the URL gives no limit

_ASKING: Command = ("ASKING",)


class OlderProtocol(RedisConnectionError):  # noqa: N818 - says what is the matter
    """The server knows no HELLO: the next connection will do without it."""


class Call(NamedTuple):
    """A script to run on one key.

    Attributes:
        script: its name.
        key: the key, prefix and all.
        arguments: what follows the incarnation id; an entry is sent as its cell.
        others: more keys of the same server, for a script that takes any number.
    """

    script: str
    key: str | bytes
    arguments: tuple[str | int | bytes | Entry, ...] = ()
    others: tuple[str | bytes, ...] = ()


# Plain tuples, for they are made for each get.
Told: TypeAlias = "tuple[Any, str, Server]"
"""A reply as redis-py reads it, the incarnation id of its server, and the server."""

Cells: TypeAlias = "tuple[list[bytes | None], str]"
"""What is at several keys, and the incarnation id of the life that the server was in."""


Check: TypeAlias = "Callable[[Server, Sequence[Command], Sequence[Any]], Exception | None]"


class Server:
    """One server.

    Args:
        pool: its connections.
        scripts: their text, by name.
        learn: asks a new connection for the incarnation id of the server that it leads to.
        proof: the commands with which a connection proves that it leads to a primary of ours.
        check: given these commands and the replies, returns the error if they prove nothing.
        is_sharded: it holds only some of the keys, so that one command cannot ask for many.
        clock: monotonic time in seconds.

    Attributes:
        host: where it is.
        name: its host and port, for people.
        incarnation_id: of the life it is in, as far as is known.
        tracked: whether it is among those that a feed of changes listens to.
        incarnations: how often another life was met than the one before.
        doubts: how often all connections were put in doubt. One made before the last of these is
            made anew, even if it leads into the same life, as far as can be told.
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
        self.incarnation_id: str | None = None
        self.doubts = 0
        self.tracked = not is_sharded
        self.incarnations = 0
        self._last_incarnation: str | None = None
        self._pool = pool
        options["redis_connect_func"] = self._greet
        self._scripts = scripts
        self._digests = {
            name: sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in scripts.items()
        }
        self._whole_is_known = False
        self._whole = False  # EVALSHA is refused, and scripts are sent as text
        self._learn = learn
        self._proof = proof
        self._check = check
        self._is_sharded = is_sharded
        self._clock = clock
        # By connection: the incarnation id of the life that it leads into, and `doubts` when it was
        # made.
        self._lives: WeakKeyDictionary[AbstractConnection, tuple[str, int]] = WeakKeyDictionary()
        self._proving: WeakKeyDictionary[AbstractConnection, _Proving] = WeakKeyDictionary()
        self._doubt_from = -math.inf
        self._turns = asyncio.Semaphore(pool.max_connections)
        self._gets: Batcher[str, Told] = Batcher(self._get_all, _BATCH)
        self._calls: Batcher[Call, Told] = Batcher(self._call_all, _CALLS, self._call_soon)
        self._reads, self._scripted = _ConnectionSlot(self), _ConnectionSlot(self)
        self._laneless = False
        self._verify_from = -math.inf
        self._wondering: asyncio.Task[None] | None = None
        self._retired = False

    def ask(self, asked: str | Call, *, asking: bool = False) -> Awaitable[Told]:
        """The cell at a key, or what a script replies. All of one turn of the loop go together.

        Args:
            asked: the key, prefix and all; or the script and its key.
            asking: its slot is on its way to this server, which takes the command nevertheless.

        Raises:
            RedisError: as redis-py does; also `OSError`.
        """
        # A coroutine less for every get: this is asked for each.
        if asking:
            return self._ask_alone(asked)
        return self._gets.ask(asked) if isinstance(asked, str) else self._calls.ask(asked)

    async def _ask_alone(self, asked: str | Call) -> Told:
        if isinstance(asked, str):
            (told,) = await self._get_all([asked], asking=True)
        else:
            (told,) = await self._call_all([asked], asking=True)
        if isinstance(told, Exception):
            raise told
        return told

    async def get_many(self, keys: Sequence[str]) -> Cells:
        """The cells at these keys, in one command. Raises as `ask` does."""
        command: Command = ("MGET", *keys)
        (cells,), incarnation_id = await self._exchange(self._reads, lambda _: [command])
        if isinstance(cells, Exception):
            raise named("MGET", cells)
        return cells, incarnation_id

    def ask_many(self, keys: Sequence[str], then: Callable[[Cells | BaseException], None]) -> bool:
        """Read cells without a task and a retry; `PipelinedConnection.send` explains `then`.

        Returns:
            False, and `then` is not called, where there is no connection for it.
        """
        pipelined, incarnation_id = self._reads.at_hand()
        if pipelined is None or self._retired:
            return False
        doubts = self.doubts

        def told(replies: list[Any] | BaseException) -> None:
            cells = replies if isinstance(replies, BaseException) else replies[0]
            if is_suspect(cells):
                self.doubt()
                then(RedisConnectionError(f"the server may not be the one it was: {cells}"))
            elif isinstance(cells, BaseException):
                then(cells)
            elif incarnation_id != self.incarnation_id or doubts != self.doubts:
                then(RedisConnectionError("the server is not the one it was"))
            else:
                then((cells, incarnation_id))

        self._reads.send(pipelined, [("MGET", *keys)], told)
        return True

    async def scan(self, cursor: int, pattern: str) -> tuple[int, list[bytes]]:
        """One step through the string keys that match. Raises as `ask` does."""
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _BATCH, "TYPE", "string")
        (reply,), _ = await self._exchange(self._reads, lambda _: [command])
        if isinstance(reply, Exception):
            raise named("SCAN", reply)
        return int(reply[0]), reply[1]

    async def ping(self, key: str) -> None:
        """Try all that the cache needs on `key`. Raises as `ask` does.

        A server that is full or read-only, or refuses scripts, still answers a PING. On a
        connection of its own: the others may be stuck, or have a queue before them.
        """
        with suppress(OlderProtocol):
            await self._ping(key)
            return
        await self._ping(key)

    async def _ping(self, key: str) -> None:
        connection = self.connection()
        try:
            with closed_is_lost():
                # Which learns the server's life, too. (redis-py has not typed this method.)
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._try_out(connection, key)
        except AskError as error:
            # In a cluster it is up: the key's slot has moved, or is about to.
            if not self._is_sharded:
                raise cluster_node(error) from error
        except ResponseError as error:
            if is_suspect(error):
                self.doubt()
            raise
        finally:
            await connection.disconnect(nowait=True)

    async def _try_out(self, connection: AbstractConnection, key: str) -> None:
        incarnation_id, _ = self._lives[connection]
        # Two keys of different slots: one node of a cluster refuses that.
        refresh: Command = ("GET", key) if self._is_sharded else ("MGET", key, f"{key}:")
        calls = Call("fence", key, ("ping", _PING_MS)), Call("publish", key, ("ping", -1, 0, b""))
        replies = await _replies(
            connection, [refresh, *(self._evalsha(call, incarnation_id) for call in calls)]
        )
        if any(isinstance(reply, NoScriptError) or is_refused(reply) for reply in replies[1:]):
            commands = [self._eval(call, incarnation_id) for call in calls]
            replies[1:] = await _replies(connection, commands)
        for command, reply in zip((refresh[0], _SCRIPTS, _SCRIPTS), replies, strict=True):
            if isinstance(reply, Exception):
                raise named(str(command), reply)

    async def heartbeat(self, reads: str, scripted: str) -> None:
        """Write a key through the connection for reads, another through the one for scripts.

        Raises as `ask` does.
        """
        for reply in await asyncio.gather(
            self._write(self._reads, reads),
            self._write(self._scripted, scripted),
            return_exceptions=True,
        ):
            if reply is not None:
                raise reply

    async def _write(self, way: _ConnectionSlot, key: str) -> None:
        command: Command = ("SET", key, "1", "PX", _HEARTBEAT_LIFETIME_MS)
        (reply,), _ = await self._exchange(way, lambda _: [command])
        if isinstance(reply, Exception):
            raise named("SET", reply)

    def connection(self, **options: Any) -> AbstractConnection:  # noqa: ANN401 - redis-py's options
        """A connection outside of the pool, not yet connected; `options` win over the pool's."""
        pool = self._pool
        made: AbstractConnection = pool.connection_class(**{**pool.connection_kwargs, **options})
        return made

    def verify_identity(self, key: str) -> None:
        """A cell is of another life: find out, by a ping, whether it is ours that has ended.

        Connections outlive it where a server is demoted and promoted again, or forgets its
        replicas; and another process may have learned so before this one.
        """
        if self._clock() >= self._verify_from:
            self._verify_from = self._clock() + _BETWEEN_WONDERS
            self._wondering = asyncio.create_task(self._find_out(key))

    def invalidate(self) -> None:
        """This may be the server no longer: every connection is made anew before it is used."""
        self.incarnation_id = None
        self.doubts += 1

    def doubt(self) -> None:
        """Call `invalidate` for a server that refuses writes, but not for each command."""
        if self._clock() >= self._doubt_from:
            self._doubt_from = self._clock() + _BETWEEN_DOUBTS
            self.invalidate()

    def proof(self) -> list[Command]:
        """What a connection sends to prove that it leads to a primary of ours."""
        return self._proof(self)

    def proved(self, proof: Sequence[Command], replies: list[Any]) -> list[Any]:
        """The replies that follow the proof's; errors in their place, if it has failed."""
        others = replies[len(proof) :]
        error = self._check(self, proof, replies)
        return others if error is None else [error] * len(others)

    def now(self) -> float:
        """Monotonic time in seconds."""
        return self._clock()

    async def retire(self) -> None:
        """Let go of the connections, each as soon as it is not in use."""
        self._retired = True
        await self._end_verification()
        for way in (self._reads, self._scripted):
            way.close_when_idle()
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close the connections. Whoever still waits is cancelled."""
        self._retired = True
        for way in (self._reads, self._scripted):
            await way.aclose()  # first, so that nothing more is sent for whoever waits
        await self._gets.aclose()
        await self._calls.aclose()
        await self._end_verification()
        await self._pool.disconnect()

    # --- what travels together ---

    async def _get_all(
        self, keys: Sequence[str], *, asking: bool = False
    ) -> Sequence[Told | Exception]:
        distinct = list(dict.fromkeys(keys))
        if self._is_sharded or len(distinct) == 1:
            commands: list[Command] = [("GET", key) for key in distinct]
            replies, incarnation_id = await self._exchange(
                self._reads, lambda _: commands, asking=asking
            )
            told = [self._told("GET", reply, incarnation_id) for reply in replies]
        else:
            cells, incarnation_id = await self.get_many(distinct)
            told = [(cell, incarnation_id, self) for cell in cells]
        if len(distinct) == len(keys):
            return told
        found = dict(zip(distinct, told, strict=True))
        return [found[key] for key in keys]

    def _call_soon(self, calls: Sequence[Call], then: Then[Told]) -> bool:
        pipelined, incarnation_id = self._scripted.at_hand()
        if pipelined is None or self._retired:
            return False
        doubts = self.doubts

        def told(replies: list[Any] | BaseException) -> None:
            if isinstance(replies, BaseException):
                then(None if isinstance(replies, RedisConnectionError) else replies)
            elif any(map(is_suspect, replies)):
                self.doubt()
                then(None)
            elif (
                incarnation_id != self.incarnation_id
                or doubts != self.doubts
                or any(map(self._wants_text, replies))
            ):
                then(None)  # all of them once more, for each can be repeated
            else:
                then([self._told(_SCRIPTS, reply, incarnation_id) for reply in replies])

        self._scripted.send(
            pipelined, [self._evalsha(call, incarnation_id) for call in calls], told
        )
        return True

    async def _call_all(
        self, calls: Sequence[Call], *, asking: bool = False
    ) -> Sequence[Told | Exception]:
        told = await self._evaluate(calls, self._evalsha, asking=asking)
        again = [n for n, reply in enumerate(told) if self._wants_text(reply)]
        if again:
            # The server has been started, or told to forget scripts; or it does not let us use
            # EVALSHA. EVAL makes it know them, and needs no SCRIPT LOAD, which many proxies refuse.
            replies = await self._evaluate([calls[n] for n in again], self._eval, asking=asking)
            for n, reply in zip(again, replies, strict=True):
                if is_refused(told[n]) and not isinstance(reply, Exception):
                    self._use_text(told[n])
                told[n] = reply
        return [named(_SCRIPTS, one) if isinstance(one, Exception) else one for one in told]

    async def _evaluate(
        self, calls: Sequence[Call], command: Callable[[Call, str], Command], *, asking: bool
    ) -> list[Told | Exception]:
        replies, incarnation_id = await self._exchange(
            self._scripted,
            lambda incarnation_id: [command(call, incarnation_id) for call in calls],
            asking=asking,
        )
        return [
            reply if isinstance(reply, Exception) else (reply, incarnation_id, self)
            for reply in replies
        ]

    def _wants_text(self, reply: object) -> bool:
        """Whether a script was refused that may be taken as text."""
        return isinstance(reply, NoScriptError) or (not self._whole and is_refused(reply))

    def _use_text(self, refusal: object) -> None:
        if not self._whole_is_known:
            self._whole_is_known = True
            logger.warning(
                "Redis refuses EVALSHA (%s): scripts are sent whole, with EVAL, each time", refusal
            )
        self._whole = True

    def _evalsha(self, call: Call, incarnation_id: str) -> Command:
        if self._whole:
            return self._eval(call, incarnation_id)
        return ("EVALSHA", self._digests[call.script], *self._arguments(call, incarnation_id))

    def _eval(self, call: Call, incarnation_id: str) -> Command:
        return ("EVAL", self._scripts[call.script], *self._arguments(call, incarnation_id))

    def _arguments(self, call: Call, incarnation_id: str) -> Command:
        arguments = (
            encode_entry(argument, incarnation_id) if isinstance(argument, Entry) else argument
            for argument in call.arguments
        )
        return (1 + len(call.others), call.key, *call.others, incarnation_id, *arguments)

    def _told(self, command: str, reply: Any, incarnation_id: str) -> Told | Exception:  # noqa: ANN401 - as redis-py reads it
        return (
            named(command, reply) if isinstance(reply, Exception) else (reply, incarnation_id, self)
        )

    # --- one round trip ---

    async def _exchange(
        self, way: _ConnectionSlot, make: Callable[[str], list[Command]], *, asking: bool = False
    ) -> tuple[list[Any], str]:
        """Send commands together, and read the replies, errors among them.

        Args:
            way: the one they take.
            make: makes the commands for the server's incarnation id.
            asking: see `ask`.

        Where the connection is lost, or leads to where the server is no longer, they are sent
        again, once, on a new one: all that is sent can be repeated. (What went out without a task,
        and was lost, begins here.) This may be a fence, without which others serve what is old.
        Not after a time-out, which would double it. redis-py itself tries nothing again.
        """
        with suppress(RedisConnectionError):
            return await self._once(way, make, asking=asking)
        return await self._once(way, make, asking=asking)

    async def _once(
        self, way: _ConnectionSlot, make: Callable[[str], list[Command]], *, asking: bool
    ) -> tuple[list[Any], str]:
        if asking:
            plain = make
            make = lambda incarnation_id: [  # noqa: E731 - one place, two lines
                word for one in plain(incarnation_id) for word in (_ASKING, one)
            ]
        doubts = self.doubts
        if self._laneless or self._retired:
            replies, incarnation_id = await self._by_pool(make)
        else:
            replies, incarnation_id = await way.exchange(make)
        if any(map(is_suspect, replies)):
            self.doubt()
        elif incarnation_id != self.incarnation_id or doubts != self.doubts:
            raise RedisConnectionError("the server is not the one it was")
        return (replies[1::2] if asking else replies), incarnation_id

    async def pipelined(self) -> tuple[PipelinedConnection, tuple[str, int]]:
        """Open a pipelined connection; return it, its server's incarnation id, and `doubts`.

        Raises:
            NotPipelinable: there is none; from now on every command uses the pool.
            RedisError: the server is not there.
        """
        connection = self.connection()
        try:
            with closed_is_lost():
                await connection.connect()  # type: ignore[no-untyped-call] # nor this one
            pipelined = PipelinedConnection(connection, connection.socket_timeout or _PATIENCE)
        except BaseException as error:
            self._laneless |= isinstance(error, NotPipelinable)
            await connection.disconnect(nowait=True)
            raise
        if self._retired:  # meanwhile
            pipelined.close()
        return pipelined, self._lives[connection]

    async def _by_pool(self, make: Callable[[str], list[Command]]) -> tuple[list[Any], str]:
        """Where there are no lanes, or no more: on one of the pool's connections."""
        # First come, first served. The pool's own queue is not: whoever has just given a
        # connection back can take it again before those who wait, for as long as it likes.
        async with self._turns:
            with closed_is_lost():
                # (redis-py has not typed this method.)
                connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                try:
                    incarnation_id = await self._incarnation_of(connection)
                    proof = self._proving.setdefault(connection, _Proving(self)).due()
                    replies = await _replies(connection, [*proof, *make(incarnation_id)])
                    return (self.proved(proof, replies) if proof else replies), incarnation_id
                except BaseException:
                    # What is still on its way is nobody else's answer.
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    if self._retired:
                        await connection.disconnect(nowait=True)
                    await self._pool.release(connection)

    # --- the server's life ---

    async def _greet(self, connection: AbstractConnection) -> None:
        """Make a new connection ready, and learn whose life it leads into."""
        doubts = self.doubts
        await self._agree_on_protocol(connection)
        try:
            incarnation_id = await self._learn(connection)
        except NamespaceConflict:
            self.invalidate()  # older connections may lead to the same server
            raise
        self._proving.pop(connection, None)
        self._whole = False  # it may be another server, or may have been mended
        self.incarnation_id = incarnation_id
        self._lives[connection] = incarnation_id, doubts
        if incarnation_id != self._last_incarnation:
            self.incarnations += self._last_incarnation is not None
            self._last_incarnation = incarnation_id

    async def _agree_on_protocol(self, connection: AbstractConnection) -> None:
        try:
            await connection.on_connect()
        except ResponseError as error:
            options = self._pool.connection_kwargs
            if not is_unknown(error) or str(options.get("protocol", 3)) == "2":
                raise
            options["protocol"] = 2
            logger.warning("Redis refuses HELLO (%s): the older protocol, RESP2, is used", error)
            raise OlderProtocol("the next connection uses RESP2") from error

    async def _incarnation_of(self, connection: AbstractConnection) -> str:
        """The life a connection leads into; one that may be another than the server's is remade."""
        if self._lives.get(connection) != (self.incarnation_id, self.doubts):
            await connection.disconnect(nowait=True)
            await connection.connect()  # type: ignore[no-untyped-call]
        incarnation_id, _ = self._lives[connection]
        return incarnation_id

    async def _find_out(self, key: str) -> None:
        with suppress(RedisError, OSError):
            await self.ping(key)

    async def _end_verification(self) -> None:
        if self._wondering is not None:
            await end_all({self._wondering})


class _ConnectionSlot:
    """The way that one kind of command takes to a server: a lane, and a new one where it is lost.

    Args:
        server: where it leads.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection: PipelinedConnection | None = None
        self._proving = _Proving(server)
        self._incarnation = (
            "",
            0,
        )  # the incarnation id of the life that it leads into, and `doubts` when made
        self._laying: asyncio.Task[tuple[PipelinedConnection, str]] | None = None

    async def exchange(self, make: Callable[[str], list[Command]]) -> tuple[list[Any], str]:
        """Send the commands that `make` makes; return the replies and the incarnation id."""
        pipelined, incarnation_id = self.at_hand()
        if pipelined is None:
            pipelined, incarnation_id = await self._lay()
        proof = self._proving.due()
        replies = await pipelined.ask([*proof, *make(incarnation_id)])
        return (self._server.proved(proof, replies) if proof else replies), incarnation_id

    def send(
        self,
        pipelined: PipelinedConnection,
        commands: list[Command],
        then: Callable[[list[Any] | BaseException], None],
    ) -> None:
        """Send commands on the lane at hand, and the proof before them if it is due.

        See `PipelinedConnection.send`.
        """
        proof = self._proving.due()
        if not proof:
            pipelined.send(commands, then)
            return

        def told(replies: list[Any] | BaseException) -> None:
            if not isinstance(replies, BaseException):
                replies = self._server.proved(proof, replies)
            then(replies)

        pipelined.send([*proof, *commands], told)

    def at_hand(self) -> tuple[PipelinedConnection | None, str]:
        """Return the connection into the current incarnation, if there is one, and its id."""
        pipelined = self._connection
        incarnation_id, doubts = self._incarnation
        server = self._server
        if (
            pipelined is None
            or not pipelined.open
            or incarnation_id != server.incarnation_id
            or doubts != server.doubts
        ):
            return None, ""
        return pipelined, incarnation_id

    def close_when_idle(self) -> None:
        """See `PipelinedConnection`."""
        if self._connection is not None:
            self._connection.close_when_idle()

    async def aclose(self) -> None:
        """Close the lane. Whoever waits is cancelled."""
        if self._laying is not None:
            await end_all({self._laying})
        if self._connection is not None:
            self._connection.close()

    async def _lay(self) -> tuple[PipelinedConnection, str]:
        """Connect; callers that need a connection meanwhile share the attempt, or its error."""
        if self._laying is None or self._laying.done():
            self._laying = asyncio.create_task(self._lay_one())
            self._laying.add_done_callback(_seen)
        laying = self._laying
        await asyncio.wait({laying})  # which leaves it alone if its caller goes
        if laying.cancelled():
            raise asyncio.CancelledError
        return laying.result()

    async def _lay_one(self) -> tuple[PipelinedConnection, str]:
        if self._connection is not None:
            self._connection.close(RedisConnectionError("the server is not the one it was"))
        self._connection, self._incarnation = await self._server.pipelined()
        self._proving = _Proving(self._server)
        return self._connection, self._incarnation[0]


class _Proving:
    """When a connection has to prove again that it leads to a primary of ours.

    Args:
        server: where it leads.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._due_at = -math.inf

    def due(self) -> list[Command]:
        """The commands that prove it, if it is time; to be sent with whatever is sent next."""
        now = self._server.now()
        if now < self._due_at:
            return []
        self._due_at = now + _BETWEEN_PROOFS
        return self._server.proof()


def _seen(task: asyncio.Task[Any]) -> None:
    """Whoever wanted to know may have gone."""
    if not task.cancelled():
        task.exception()


@contextmanager
def closed_is_lost() -> Iterator[None]:
    """Name it a lost connection when uvloop says, in words of its own, that the other side closed.

    Raises:
        RedisConnectionError: what redis-py would raise if it knew those words.
    """
    try:
        yield
    except RuntimeError as error:
        if _CLOSED not in str(error):
            raise
        raise RedisConnectionError(str(error)) from error


async def _replies(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    await connection.send_packed_command(connection.pack_commands(commands))
    return [await _reply(connection) for _ in commands]


async def _reply(connection: AbstractConnection) -> Any:  # noqa: ANN401 - redis-py's replies
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
