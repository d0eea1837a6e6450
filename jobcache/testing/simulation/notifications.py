"""PostgreSQL as the change feed of a simulation: the servers, and what each process hears of them.

Each process has the real feed and the real backend. Simulated are what the feed is given: the
listening connection, the connections on which the process writes, and a clock. The explorer decides
when a notification is delivered, and when time passes for a process.
"""

from __future__ import annotations

import contextvars
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from jobcache.errors import CacheUnavailable
from jobcache.testing.invariants import Violation
from jobcache.testing.simulation.actors import ACTOR, Actor, Load, Memory
from jobcache.testing.simulation.listening_connection import CHANNEL, Connection, Sent

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from jobcache.backends.postgres.feed import PostgresFeed
    from jobcache.testing.simulation.actors import Process
    from jobcache.testing.simulation.configuration import Simulator
    from jobcache.testing.simulation.virtual_loop import VirtualLoop

T = TypeVar("T")
_HEARTBEAT = 0.5
_SILENCE = 2.0
_LONGER = 5.0
_UNKNOWN = -1
_MOST_STEPS = 50


class Simulation(Protocol):
    """The parts of `State` that are used here."""

    @property
    def simulator(self) -> Simulator:
        """What is explored."""

    @property
    def loop(self) -> VirtualLoop:
        """Runs the feeds."""

    @property
    def servers(self) -> Servers:
        """The servers that notify."""

    @property
    def key(self) -> str:
        """Whose cell is explored."""

    @property
    def database(self) -> int:
        """The version that the primary holds."""

    @property
    def faults_left(self) -> int:
        """How many faults may still happen."""

    async def step(
        self,
        label: str,
        act: Callable[[], T],
        *,
        error: type[Exception] | None = None,
        faults: Sequence[str] = (),
        changes: bool = False,
    ) -> T:
        """Wait until the explorer has `act` done, or not done."""


class Servers:
    """The primary, the server that was the primary before, and the processes that listen to them.

    Attributes:
        primary: the number of the primary.
        demoted: the version that the former primary holds; None if there was no failover.
        unannounced: committed versions of which no notification was sent.
        lines: one for each process.
    """

    def __init__(self, state: Simulation) -> None:
        self._state = state
        self.primary = 1
        self.demoted: int | None = None
        self.unannounced: set[int] = set()
        self.lines: list[Line] = []

    def committed(self, version: int, notification: tuple[str, str] | None) -> None:
        """Note a commit, and send what its transaction notifies of."""
        self.unannounced.add(version)
        if notification is not None:
            self.send(self.primary, [notification])

    def send(
        self, server: int, notifications: Sequence[tuple[str, str]], whose: Line | None = None
    ) -> None:
        """Send notifications from a transaction on a server; `whose` has sent heartbeats."""
        for channel, payload in notifications:
            if channel != CHANNEL:
                if whose is not None:
                    whose.take_in(server, channel, payload, None)
                continue
            since = None
            if server == self.primary:
                # Every entry that is stored after this report was loaded after these commits.
                since = min(self.unannounced, default=None)
                self.unannounced.clear()
            for line in self.lines:
                line.take_in(server, channel, payload, since)

    def fail_over(self, *, lags: bool) -> None:
        """Make another server the primary. Each process has one pooled connection to it so far.

        Args:
            lags: whether the pools lead to the former primary once more when they are renewed.
        """
        self.demoted, self.primary = self._state.database, 2
        for line in self.lines:
            line.pool, line.lags = [2, 1], lags
            line.lost_entry()

    def fingerprint(self) -> Hashable:
        """Return all that decides about the future."""
        return self.primary, self.demoted, frozenset(self.unannounced)


class Line:
    """What one process hears of the server, and when: the interventions of the explorer.

    It is also the pool on which the process writes, as the feed uses it (`Writers`).

    Args:
        state: of the simulation.
        process: whose feed this is.
        make_feed: makes the feed.

    Attributes:
        feed: the feed of the process.
        waiting: the notifications that are on their way.
        lags: whether the pool leads to the former primary once more when it is renewed.
        pool: the server to which each of two pooled connections leads. The process loads on the
            second one, and sends heartbeats on the first one.
    """

    def __init__(
        self, state: Simulation, process: Process, make_feed: Callable[..., PostgresFeed]
    ) -> None:
        self._state = state
        self._process = process
        notifies = not (state.simulator.unnotified or state.simulator.unversioned)
        self._deaf = not process.reads and notifies
        self._actor = Actor(f"{process.name}'s feed", process, 0, Memory())
        self._started = self._pooled = False
        self._now = self._proved_at = 0.0
        self._connection: Connection | None = None
        self._pausing: asyncio.Future[None] | None = None
        self._missing: deque[Sent] = deque()  # sent by a server that the feed does not listen to
        self._known, self._is_loaded = _UNKNOWN, False
        self._loads: list[Load] = []
        self.waiting: deque[Sent] = deque()
        self.pool = [1, 1]
        self.lags = False
        self.feed = make_feed(
            self._connect,
            self,
            channel=CHANNEL,
            heartbeat=_HEARTBEAT,
            silence=_SILENCE,
            clock=lambda: self._now,
            sleep=self._sleep,
        )

    def start(self) -> None:
        """Start the feed; it is live then, unless nobody in the process reads."""
        context = contextvars.copy_context()
        context.run(ACTOR.set, self._actor)
        self._state.loop.call_soon(self.feed.start, context=context)
        self._state.loop.run_ready()
        while self.waiting:
            self.deliver()
        self._state.loop.run_ready()
        self._started = True

    # --- what the feed is given ---

    async def _sleep(self, seconds: float) -> None:
        del seconds  # the explorer decides how long it is
        self._pausing = self._state.loop.create_future()
        await self._pausing

    async def _connect(self) -> Connection:
        if self._deaf:
            await self._state.loop.create_future()  # nobody would notice anything
        server = self._state.servers.primary
        pooled, self._pooled = self._pooled, False
        self._connection = Connection(
            self._state.loop, server, self._send_here, waits=self._started, pooled=pooled
        )
        return self._connection

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        """Send notifications: a heartbeat at once, those of a writer as a step."""
        state = self._state
        if ACTOR.get() is self._actor:
            state.servers.send(self.pool[0], notifications, self)
            return
        send = partial(state.servers.send, self.pool[1], notifications)
        faults = ("lost", "unanswered") if "lose" in state.simulator.kinds else ()
        await state.step("notify", send, error=CacheUnavailable, faults=faults, changes=True)

    def _send_here(self, notifications: Sequence[tuple[str, str]]) -> None:
        """Send notifications on the listening connection: a pooler passes on only those."""
        assert self._connection is not None
        if self._connection.pooled:
            for channel, payload in notifications:
                sent = Sent(channel, payload, None, self._state.database, self._now)
                self.waiting.append(sent)
        else:
            self._state.servers.send(self._connection.server, notifications, self)

    async def renew(self) -> None:
        """Open both pooled connections anew."""
        server = self._state.servers.primary
        if self.lags:
            self.lags, server = False, 1
        self.pool = [server] * 2

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""

    # --- notifications ---

    def take_in(self, server: int, channel: str, payload: str, since: int | None) -> None:
        """Put a notification on its way, if this process listens."""
        connection = self._connection
        if (
            self._process.dead
            or connection is None
            or channel not in connection.listens_to(channel)
        ):
            return
        sent = Sent(channel, payload, since, self._state.database, self._now)
        if connection.pooled:
            return
        if server == connection.server:
            self.waiting.append(sent)
        elif since is not None:
            self._missing.append(sent)

    def deliver(self) -> None:
        """Deliver the next notification."""
        assert self._connection is not None
        sent = self.waiting.popleft()
        self._connection.deliver(sent)
        if sent.channel != CHANNEL:
            self._proved_at = sent.at
        elif sent.version > self._known or sent.since is None:
            self._forget_loads()
            self._known, self._is_loaded = sent.version, False

    # --- the explorer's options ---

    @property
    def live(self) -> bool:
        """Whether the feed is live."""
        return self.feed.live

    @property
    def behind(self) -> bool:
        """Whether there are changes to report."""
        return bool(self.waiting or self._missing or self._state.servers.unannounced)

    def options(self) -> Iterator[tuple[str, str]]:
        """Yield what can be done, and how it is called."""
        if self.waiting:
            yield "report", " is notified"
        if len(self.waiting) > 1:
            yield "reports", " is notified of all"  # in one turn of its event loop
        if self._is_listening():
            if not self.live and not self._awaits_heartbeat():
                yield "timer", "'s timer fires"
        elif self._connection is not None:
            yield "listen", " listens"
        elif self._pausing is not None:
            yield "connect", " connects"

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Yield what can go wrong, how it is called, and the kind of fault."""
        if self.live:
            if self._now < self._proved_at + _SILENCE:
                yield "silent", "'s feed is silent", "silence"
            if not self._has_heartbeat():
                yield "due", " sends a heartbeat", "silence"
        if self._connection is not None:
            yield "cut", "'s feed is cut", "feed"
        elif self._pausing is not None:
            yield "pooler", " connects to a pooler", "feed"

    def take(self, kind: str) -> None:
        """Do one of these."""
        if kind == "report":
            self.deliver()
            return
        if kind == "reports":
            while self.waiting:
                self.deliver()
            return
        self._forget_loads()
        if kind in {"connect", "pooler"}:
            self._pooled = kind == "pooler"
            assert self._pausing is not None
            pausing, self._pausing = self._pausing, None
            pausing.set_result(None)
        elif kind == "listen":
            assert self._connection is not None
            self._connection.register()
        elif kind == "cut":
            self._cut()
        elif kind == "silent":
            self._now = self._proved_at + _SILENCE
        else:
            self._now += _HEARTBEAT if kind == "due" else _LONGER
            self._state.loop.fire(self._is_ours)
            self._state.loop.run_ready()
            if self._connection is not None and self._connection.is_closed():
                self._forget_connection()  # the feed has given it up

    def catch_up(self) -> None:
        """Have the feed be live, and send what it owes."""
        loop, servers = self._state.loop, self._state.servers
        if self._deaf:
            return
        for _ in range(_MOST_STEPS):
            outdated = self._connection and self._connection.server != servers.primary
            if self.live and not outdated:
                break
            self.take("timer" if self.live else next(kind for kind, _ in self.options()))
            loop.run_ready()
        else:
            raise Violation(f"the feed of {self._process.name} is never live again")
        if not self._has_heartbeat():
            self.take("due")
            loop.run_ready()
        while self.waiting:
            self.deliver()
            loop.run_ready()

    def _is_ours(self, context: contextvars.Context) -> bool:
        return context.get(ACTOR) is self._actor

    def _is_listening(self) -> bool:
        return self._connection is not None and not self._connection.is_waiting()

    def _has_heartbeat(self) -> bool:
        return self.feed._awaited is not None  # noqa: SLF001 - nobody else may look at it

    def _awaits_heartbeat(self) -> bool:
        """Return whether the first heartbeat of a connection will come back."""
        connected = self.feed._connected  # noqa: SLF001 - nobody else may look at it
        return not connected and any(sent.channel != CHANNEL for sent in self.waiting)

    def _cut(self) -> None:
        assert self._connection is not None
        connection = self._connection
        self._forget_connection()
        connection.end()

    def _forget_connection(self) -> None:
        self._connection = None
        self.waiting.clear()
        self._missing.clear()

    # --- loads ---

    def begin_load(self) -> Load:
        """Return a load, which has taken a connection."""
        load = Load(self.pool[1], self._known if self.live else _UNKNOWN)
        self._loads.append(load)
        if len(self._loads) > 1:
            self._forget_loads()
        return load

    def select(self, load: Load) -> int:
        """Return the version in the database to which the connection of a load leads.

        Raises:
            Violation: the process has loaded this version before, and lost it for no reason.
        """
        servers = self._state.servers
        if load.server != servers.primary:
            assert servers.demoted is not None
            return servers.demoted
        version = self._state.database
        if version == load.known == self._known:
            if self._is_loaded:
                raise Violation(f"{self._process.name} loads v{version} a second time")
            self._is_loaded = True
        return version

    def end_load(self, load: Load, *, completed: bool) -> None:
        """Note that a load has ended."""
        self._loads.remove(load)
        if not completed:
            self._forget_loads()

    def _forget_loads(self) -> None:
        """Count no load of the present version: several may be needed."""
        self._known = _UNKNOWN
        for load in self._loads:
            load.known = _UNKNOWN

    def acknowledged(self, version: int) -> None:
        """Note that a writer of this process has acknowledged a version without a fault."""
        if self.live and version > self._known:
            self._known, self._is_loaded = version, False

    def lost_entry(self) -> None:
        """Note that the entry was lost, or is past its freshness."""
        self._forget_loads()

    # --- for the invariants ---

    def min_version(self, own: int) -> int:
        """Return the least version that a read which begins now may return.

        Args:
            own: the highest version that the process has acknowledged or returned.
        """
        split = self.pool[1] != self._state.servers.primary
        database = self._state.database
        if not self.live:
            # The read is a load. What a former primary returns is not the cache's doing.
            return 0 if split else database
        unreported = {
            sent.since
            for sent in (*self.waiting, *self._missing)
            if sent.since is not None and self._now < sent.at + _SILENCE
        }
        unreported |= self._state.servers.unannounced
        reported = min(unreported, default=database + 1) - 1
        return reported if split else max(own, reported)

    def fingerprint(self) -> Hashable:
        """Return all that decides about the future."""
        feed = self.feed
        expected = tuple(
            (token, future.done() and future.result())
            for token, futures in sorted(feed._expected.items())  # noqa: SLF001
            for future in futures.values()
        )
        return (
            feed.live,
            feed._connected,  # noqa: SLF001
            self._has_heartbeat(),
            self._owed(),
            expected,
            (self._now - self._proved_at, feed._live_until - self._now)  # noqa: SLF001
            if self._may_wait()
            else None,
            (*self.pool, self.lags),
            (self._known, self._is_loaded),
            tuple((load.server, load.known) for load in self._loads),
            self._pausing is None,
            self._connection and self._connection.fingerprint(),
            tuple(map(self._summary, self.waiting)),
            tuple(map(self._summary, self._missing)),
        )

    def _owed(self) -> Hashable:
        owed, number = self.feed._owed, self.feed._number  # noqa: SLF001
        return (
            tuple(owed._keys),  # noqa: SLF001
            tuple(owed._carried),  # noqa: SLF001
            tuple(
                (tuple(sent.keys), sent.by_statement, sent.heard, sent.decisive - number)
                for sent in owed._sent.values()  # noqa: SLF001
            ),
        )

    def _may_wait(self) -> bool:
        """Return whether time may pass while the feed is live."""
        return self._state.faults_left > 0 and self.live

    def _summary(self, sent: Sent) -> Hashable:
        payload = sent.payload.replace(self._state.key, "") if sent.channel == CHANNEL else None
        age = min(self._now - sent.at, _SILENCE)
        age = age if self._may_wait() else age >= _SILENCE
        awaited = sent.payload == self.feed._awaited  # noqa: SLF001
        return payload, awaited, sent.since, sent.version, age
