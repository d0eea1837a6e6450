"""A small world in which the real cache runs, one step at a time.

A world is processes on one store and one source, each with a `JobCache` of its own, and in them
readers and writers of one key. Whatever they wait for is a *step*: an operation of the backend, a
load, an update, a commit, a pause. A step is taken when the explorer says so, at once and whole;
then everything runs on until it waits again. What can be done next are the *options*:

    R0 begins             a reader (M0: of many keys) or a writer begins
    R0 lease, R0 load, …  a step that somebody waits for is taken
    R0 looks again        a pause ends; R0 waits no longer: all its pauses end, one after the other
    P time passes         the next deadline is reached
    P0 is told            its feed delivers the next report (in a tiered world)
    P0's feed is back     it is live again

and, as faults, of which a world allows only so many:

    W0 fence is lost      it fails, and has not happened
    W0 fence unanswered   it happens, and fails: the reply is lost
    W0 fence is late      it fails, and happens at some other time
    W0 publish is slow      it happens, and the reply comes at some other time
    cancel W0             what it waits for itself has not happened; sent: it has; late: it will
    W0 dies               its process takes no further step
    evict, age            the cell is lost; what it holds is no longer fresh
    P0's feed is cut      it says so, and what it has not told yet it never will
    P0's feed is silent   it is not live, by the clock only; what changes is told, some time
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from jobcache.backends.memory import MemoryBackend
from jobcache.backends.tiered import TieredBackend
from jobcache.cache import JobCache
from jobcache.errors import CacheError, CacheUnavailable, LoadTimeout, SourceUnavailable
from jobcache.lifetimes import Lifetimes
from jobcache.protocol import cell
from jobcache.protocol.backend import Document, Entry
from jobcache.protocol.cell import Fence, Lease
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing.invariants import Commit, Invariants, Violation
from jobcache.testing.simulation.stepped_feed import SteppedFeed
from jobcache.testing.simulation.virtual_loop import VirtualLoop, at_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobcache.protocol.backend import LeaseResult, PublishResult
    from jobcache.protocol.cell import Cell
    from jobcache.testing.subject import Subject

T = TypeVar("T")

FAULTS = frozenset(
    {"evict", "age", "die", "cancel", "lose", "late", "slow", "load", "commit", "time", "feed"}
)
"""Every kind of fault. `lose` is of the backend's operations, answered or not; `time` (a deadline
that passes while something is under way, a load's as well) occurs behind a guard only, `slow` there
and behind a local tier. `feed` occurs in a tiered world; `lose` and `late` do not, unless it is
guarded: a remote tier is a guarded one."""

_ACTOR: contextvars.ContextVar[Actor] = contextvars.ContextVar("actor")
_START_MS = 1_700_000_000_000
_FRESH = 30.0
_LOAD_TIMEOUT = 30.0
_MOST_STEPS = 500


class CarryOut(Protocol):
    """Runs one operation of a backend to its end."""

    def __call__(self, operation: Coroutine[Any, Any, T], /) -> T:
        """Its result, or what it raises."""


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """What is explored.

    Attributes:
        processes: for each, its actors: "R" a reader, "M" one that reads many keys at once (this
            one among them), "W" a writer. ("R", "R", "W") is three processes; ("RRW",) is one, in
            which single flight is in play.
        faults: how many may happen in one schedule.
        kinds: which; a subset of `FAULTS`.
        warm: whether the cell holds an entry at the beginning.
        late_fence: writers change the row first and fence before they commit.
        guarded: each process has a `GuardedBackend` between its cache and the store.
        tiered: each process has a local tier before that, and a feed; `warm` warms both tiers.
        reads: how many each reader makes, one after the other.
    """

    processes: tuple[str, ...] = ("R", "R", "W", "W")
    faults: int = 2
    kinds: frozenset[str] = FAULTS
    warm: bool = False
    late_fence: bool = False
    guarded: bool = False
    tiered: bool = False
    reads: int = 1

    def __post_init__(self) -> None:
        if not self.processes or not all(
            actors and set(actors) <= {"R", "M", "W"} for actors in self.processes
        ):
            raise ValueError("a process is a word of R, M and W")
        if not self.kinds <= FAULTS:
            raise ValueError(f"no such fault: {', '.join(self.kinds - FAULTS)}")

    def __str__(self) -> str:
        ways = ("warm", "late_fence", "guarded", "tiered")
        return " ".join([*self.processes, *(way for way in ways if getattr(self, way))])


@dataclass(frozen=True, kw_only=True)
class Components:
    """What is put together in each process; a test puts something broken in.

    Attributes:
        cache: takes a backend and the keyword arguments of `JobCache`.
        guard: takes a backend and the keyword arguments of `GuardedBackend`.
        tiered: takes the arguments of `TieredBackend`.
    """

    cache: Callable[..., JobCache] = JobCache
    guard: Callable[..., GuardedBackend] = GuardedBackend
    tiered: Callable[..., TieredBackend] = TieredBackend


@dataclass(frozen=True, eq=False, slots=True)
class TierStack:
    """The tiers of a process in front of the store.

    Attributes:
        local: the local tier.
        feed: the change feed that reports to the local tier.
        backend: the local tier and the feed in front of the remote tier.
    """

    local: MemoryBackend
    feed: SteppedFeed
    backend: TieredBackend

    def held(self, key: str) -> Hashable:
        """What the local cell holds, a lease included."""
        return self.local._cell(key)  # noqa: SLF001 - nobody else may look at a lease


@dataclass(eq=False, slots=True)
class Process:
    """One process: a cache of its own."""

    name: str
    reads: bool
    """Whether there are readers in it."""
    dead: bool = False
    failed: set[int] = field(default_factory=set)
    """The versions of its publishes that failed."""
    front: TierStack | None = None
    cache: JobCache = field(init=False)


@dataclass(eq=False, slots=True)
class Memory:
    """A hash of all that some actors were told so far, in order: what they do depends on it alone.

    The readers of a process share one, for they share flights, and each writer has its own; behind
    a guard all actors of a process share one. Once all is done that it decides, it is empty again.
    """

    actors: list[Actor] = field(default_factory=list)
    hash: int = 0


@dataclass(eq=False, slots=True)
class Actor:
    """A reader or a writer."""

    name: str
    process: Process
    turns_left: int
    memory: Memory
    task: asyncio.Task[int] | None = None
    min_version: int = 0
    errors: int = 0
    begun: bool = False
    fenced: bool = False
    """Whether its fence has ever stood."""
    cancelled: bool = False
    unknown: bool = False
    """Nobody can say whether its commit happened."""

    @property
    def writes(self) -> bool:
        """Whether it is a writer."""
        return self.name[0] == "W"


@dataclass(eq=False, slots=True)
class Choice:
    """Something that is waited for."""

    label: str
    identity: str
    """The label and all that it does not say."""
    actor: Actor
    act: Callable[[], Any]
    reply: asyncio.Future[Any] | None
    """Where the result goes; None if nobody waits for it any more."""
    error: type[Exception] | None = None
    """What a failure is; None if it cannot fail."""
    faults: tuple[str, ...] = ()
    changes: bool = False
    """Whether it changes the store or the source."""
    version: int | None = None
    """Of a publish."""
    ready: Callable[[], bool] | None = None
    abandon: Callable[[], None] = lambda: None
    """Called if it will never happen."""
    looked: Hashable = None
    """Of a pause: the cell when it began."""

    def kind(self, fate: str) -> str:
        """The kind of fault that `fate` is."""
        if self.error is CacheUnavailable:
            return fate if fate in FAULTS else "lose"
        return "load" if self.error is SourceUnavailable else "commit"

    @property
    def pause(self) -> bool:
        """Whether this is a reader's pause, which changes nothing."""
        return self.label.endswith(" pause")


@dataclass(frozen=True, slots=True)
class Option:
    """What can be done next.

    Attributes:
        label: as it stands in a schedule.
        kind: what sort of thing it is.
        whose: the step, actor or process it is done to.
        fate: how a step fails, or what becomes of what is cancelled.
        fault: the kind of fault it is; empty if it is none.
    """

    label: str
    kind: str
    whose: str = ""
    fate: str = ""
    fault: str = ""

    @property
    def actor(self) -> str:
        """Who takes this step; empty for what befalls them."""
        word = self.label.partition(" ")[0]
        return word if self.kind in {"step", "begin", "look", "wait"} and word != "late" else ""


class Run:
    """One schedule in the making.

    Args:
        simulator: what is explored.
        subject: the backend, and a way to lose a cell.
        key: whose cell; empty.
        carry_out: runs one operation of the subject to its end.
        snapshot: what a cell holds, for whoever can tell; else what the transition table says.
        parts: what processes are made of.
    """

    def __init__(
        self,
        simulator: Simulator,
        subject: Subject,
        key: str,
        carry_out: CarryOut,
        *,
        snapshot: Callable[[str], Hashable] | None = None,
        parts: Components | None = None,
    ) -> None:
        self.simulator = simulator
        self.subject = subject
        self.key = key
        self.carry_out = carry_out
        self._snapshot = snapshot
        self._seen: Hashable = None
        self._unseen = True
        self.loop = VirtualLoop()  # type: ignore[abstract] # there is nothing to read or to signal
        self.invariants = Invariants(remembers=simulator.guarded or simulator.tiered)
        self.database = 1
        self.cell: Cell = None
        self.now_ms = _START_MS
        self.taken: list[str] = []
        self.faults_left = simulator.faults
        self.row_lock: _Transaction | None = None
        self.tokens: dict[str, Actor] = {}
        self.pending: list[Choice] = []
        self._load_failed = False
        self._focus: Actor | None = None
        self._closing = False
        self._parts = Components() if parts is None else parts
        self.processes: list[Process] = []
        self.actors: list[Actor] = []
        self._populate()

    def _populate(self) -> None:
        numbers = {kind: count() for kind in "RMW"}
        for index, word in enumerate(self.simulator.processes):
            names = [f"{kind}{next(numbers[kind])}" for kind in word]
            process = Process(names[0] if len(names) == 1 else f"P{index}", word.strip("W") != "")
            store = Store(self, process)
            tokens = map(f"{process.name}x{{}}".format, count())
            backend = (
                self._parts.guard(store, clock=self.loop.time, sleep=partial(self._pause, "probes"))
                if self.simulator.guarded
                else store
            )
            if self.simulator.tiered:
                process.front = self._front(backend)
            process.cache = self._parts.cache(
                backend if process.front is None else process.front.backend,
                lifetimes=Lifetimes(default=_FRESH, jitter=0),
                # Without a guard time does not pass, and timers would only be in the way.
                load_timeout=_LOAD_TIMEOUT if self.simulator.guarded else None,
                clock_ms=lambda: self.now_ms,
                token=partial(next, tokens),
                sleep=partial(self._pause, "pause"),
            )
            self.processes.append(process)
            shared = Memory()
            for name in names:
                alone = name[0] == "W" and not self.simulator.guarded
                memory = Memory() if alone else shared
                turns = 1 if name[0] == "W" else self.simulator.reads
                actor = Actor(name, process, turns, memory)
                memory.actors.append(actor)
                self.actors.append(actor)
        if self.simulator.warm:
            entry = Lifetimes(default=_FRESH, jitter=0).entry(document(1), self.now_ms)
            self.carry_out(self.subject.backend.lease(self.key, "first"))
            self.carry_out(self.subject.backend.publish(self.key, "first", entry))
            self.cell = entry
            for process in self.processes:
                if process.front is not None and process.reads:
                    at_once(process.front.local.lease(self.key, "first"))
                    at_once(process.front.local.publish(self.key, "first", entry))

    def _front(self, remote: Any) -> TierStack:  # noqa: ANN401 - a test may put anything there
        local, feed = MemoryBackend(clock=self.loop.time), SteppedFeed(self.key)
        return TierStack(local, feed, self._parts.tiered(local, remote, feed))

    # --- what can be done next ---

    def options(self) -> list[Option]:
        """All that can be done next, what is no fault first; none if this is the end."""
        steps = self._steps()
        if self._focus is not None:
            ours = [(name, step) for name, step in steps if step.actor is self._focus]
            if ours:
                return [*self._plain(ours), *self._failing(ours), *self._deadline(ours)]
            self._focus = None
        if not self.simulator.guarded:
            settled = [(name, step) for name, step in steps if self._is_nobodys_business(step)]
            if settled:
                return [*self._plain(settled[:1]), *self._failing(settled[:1])]
        options = [*self._beginning(), *self._plain(steps)]
        if not options and self.loop.waits_for_time():
            options.append(Option("time passes", "time"))
        options.extend(self._telling())
        if self.faults_left:
            options.extend(self._failing(steps))
            options.extend(self._elsewhere(steps))
        return options

    def _steps(self) -> list[tuple[str, Choice]]:
        """The steps that can be taken, each under a name of its own."""
        named: dict[str, Choice] = {}
        for step in self.pending:
            if self._lives(step) and (step.ready is None or step.ready()):
                name, number = step.label, 1
                while name in named:
                    number += 1
                    name = f"{step.label} #{number}"
                named[name] = step
        return list(named.items())

    def _lives(self, step: Choice) -> bool:
        return step.reply is None or not step.actor.process.dead

    def _is_nobodys_business(self, step: Choice) -> bool:
        """Whether it makes no difference to anything else when `step` is taken; then it is at once.

        So it is with a load once nothing more can be committed, if nobody shares it and its reader
        cannot be cancelled meanwhile.
        """
        if (
            step.reply is None
            or not step.label.endswith(" load")
            or "cancel" in self.simulator.kinds
        ):
            return False
        if any(other.process is step.actor.process for other in self._others(step.actor)):
            return False
        return all(other.reply is not None for other in self.pending) and not any(
            actor.writes and not actor.process.dead and (actor.turns_left or actor.task)
            for actor in self.actors
        )

    def _others(self, actor: Actor) -> list[Actor]:
        return [other for other in self.actors if other is not actor]

    def _beginning(self) -> Iterator[Option]:
        # Readers are alike, and so are writers: where exchanging them changes nothing, they begin
        # in the order of their names.
        alike = len(self.processes) == 1 or len(self.processes) == len(self.actors)
        unused: set[str] = set()
        for actor in self.actors:
            if actor.task is None and actor.turns_left and not actor.process.dead:
                if actor.name[0] not in unused:
                    yield Option(f"{actor.name} begins", "begin", actor.name)
                if alike and not actor.begun:
                    unused.add(actor.name[0])

    def _plain(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        for name, step in steps:
            if not step.pause:
                yield Option(name, "step", name)
                continue
            # Nothing is seen by looking at what has not changed; but patience may end any time.
            if step.looked != self.look():
                yield Option(f"{step.actor.name} looks again", "look", name)
            yield Option(f"{step.actor.name} waits no longer", "wait", name)

    def _failing(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        if self.faults_left:
            for name, step in steps:
                for fate in step.faults:
                    yield Option(f"{name} {_WORDS[fate]}", "step", name, fate, step.kind(fate))

    def _deadline(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        possible = "time" in self.simulator.kinds and self.simulator.guarded
        if possible and self.faults_left and steps and self.loop.waits_for_time():
            yield Option("time passes", "time", fault="time")

    def _elsewhere(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        kinds = self.simulator.kinds
        if "evict" in kinds and self.look() is not None:
            yield Option("evict", "evict", fault="evict")
        if "age" in kinds and self.look() is not None:
            yield Option("age", "age", fault="age")
        if "feed" in kinds:
            yield from self._cutting()
        yield from self._deadline(steps)
        for actor in self.actors:
            if actor.task is None or actor.process.dead:
                continue
            name = actor.name
            if "cancel" in kinds and not actor.cancelled:
                under_way = any(step.actor is actor and step.changes for _, step in steps)
                for manner in ("", "sent", "late") if actor.writes and under_way else ("",):
                    label = f"cancel {name} {manner}".rstrip()
                    yield Option(label, "cancel", name, manner, "cancel")
            # The death of anybody else is as if it were never its turn again.
            if "die" in kinds and actor.fenced:
                name = actor.process.name
                yield Option(f"{name} dies", "die", name, fault="die")

    def _telling(self) -> Iterator[Option]:
        for name, front in self._fronts():
            if front.feed.waiting:
                yield Option(f"{name} is told", "told", name)
            if not front.feed.live:
                yield Option(f"{name}'s feed is back", "back", name)

    def _cutting(self) -> Iterator[Option]:
        for name, front in self._fronts():
            if front.feed.live:
                yield Option(f"{name}'s feed is silent", "silent", name, fault="feed")
            if front.feed.state != "cut":
                yield Option(f"{name}'s feed is cut", "cut", name, fault="feed")

    def _fronts(self) -> Iterator[tuple[str, TierStack]]:
        """Where it matters what is told, and when: somebody may still read there.

        Elsewhere everything is told at the end.
        """
        for process in self.processes:
            if process.front is not None and self._reads_on(process):
                yield process.name, process.front

    def _reads_on(self, process: Process) -> bool:
        if process.dead:
            return False
        readers = [actor for actor in self.actors if actor.process is process and not actor.writes]
        return any(actor.turns_left or actor.task for actor in readers) or any(
            step.actor in readers for step in self.pending
        )

    def look(self) -> Hashable:
        """What the cell holds."""
        if self._snapshot is None:
            return self.cell
        if self._unseen:
            self._seen, self._unseen = self._snapshot(self.key), False
        return self._seen

    # --- doing it ---

    def take(self, option: Option, *, known: bool = False) -> None:
        """Do it, let everything run on, and look for what must not be.

        Args:
            option: one of `options`.
            known: it was done before and found in order.

        Raises:
            Violation: there is what must not be.
        """
        self.taken.append(option.label)
        if len(self.taken) > _MOST_STEPS:
            raise Violation("this goes on for ever")
        self.faults_left -= option.fault != ""
        self._focus = None
        self._do(option)
        self.loop.settle()
        self._check(known=known)

    def _do(self, option: Option) -> None:
        kind, whose = option.kind, option.whose
        if kind == "step":
            self._take(dict(self._steps())[whose], option.fate)
        elif kind == "begin":
            self._begin(self._actor(whose))
        elif kind == "look":
            self._look_again(dict(self._steps())[whose])
        elif kind == "wait":
            self._wait_out(dict(self._steps())[whose])
        elif kind == "time":
            self._time()
        elif kind == "evict":
            self.evict()
        elif kind == "age":
            self.now_ms += round(_FRESH * 1000) + 1
        elif kind == "cancel":
            self._cancel(self._actor(whose), option.fate)
        elif kind == "die":
            self._die(whose)
        else:
            self._tell(whose, kind)

    def _actor(self, name: str) -> Actor:
        return next(actor for actor in self.actors if actor.name == name)

    def finish(self) -> None:
        """Look at what is left when nothing more can be done.

        Raises:
            Violation: somebody still waits, or something was left behind.
        """
        for actor in self.actors:
            if actor.task is not None and not actor.process.dead:
                raise Violation(f"{actor.name} waits for ever")
        left = [
            task for task, context in self.loop.tasks.items() if not context[_ACTOR].process.dead
        ]
        if left:
            raise Violation(f"{len(left)} tasks were left behind: {left[0].get_coro()}")
        for process in self.processes:
            if process.cache.reads.in_flight() and not process.dead:
                raise Violation(f"{process.name} still has a call under way")
        self._tell_all()

    def close(self) -> None:
        """End every task that is left, so that nothing outlives the run."""
        self._closing = True
        for _ in range(_MOST_STEPS):
            if not self.loop.tasks:
                break
            for task in list(self.loop.tasks):
                task.cancel()
            self.loop.settle()
        self.carry_out(self.subject.evict(self.key))

    def fingerprint(self) -> int:
        """Two runs with the same one have the same futures (but for a collision of hashes)."""
        return hash(
            (
                self.look(),
                _word(self.cell),
                self.database,
                self.invariants.state(),
                self.now_ms,
                self.faults_left,
                None if self.row_lock is None else self.row_lock.actor.name,
                tuple(sorted(step.identity for step in self.pending if step.reply is None)),
                tuple(self._remembered()),
                tuple(
                    (
                        actor.turns_left,
                        actor.process.dead,
                        actor.task is not None and actor.min_version,
                        actor.task is not None and self._refused(actor),
                        actor.unknown,
                        not actor.process.dead and frozenset(actor.process.failed),
                    )
                    for actor in self.actors
                ),
                tuple(self._in_front()) if self.simulator.tiered else None,
                self._focus and self._focus.name,
            )
        )

    def _remembered(self) -> Iterator[int]:
        for memory in dict.fromkeys(actor.memory for actor in self.actors):
            awake = self.simulator.guarded or any(actor.task is not None for actor in memory.actors)
            waited_for = {step.actor for step in self.pending if step.reply is not None}
            dead = memory.actors[0].process.dead
            done = dead or not (awake or waited_for.intersection(memory.actors))
            yield 0 if done else memory.hash

    def _in_front(self) -> Iterator[Hashable]:
        for process in self.processes:
            front = process.front
            if process.dead or front is None:
                yield None
            elif self._reads_on(process):
                yield front.held(self.key), front.feed.fingerprint()
            else:
                yield front.held(self.key), bool(front.feed.waiting)

    def _min_version(self, process: Process) -> int:
        front = process.front
        return self.invariants.min_version(
            process.name, None if front is None else front.feed.heard
        )

    def _begin(self, actor: Actor) -> None:
        actor.min_version = self._min_version(actor.process)
        actor.errors = actor.process.cache.statistics.errors
        actor.begun, actor.turns_left = True, actor.turns_left - 1
        self._note(actor, f"{actor.name} begins", None)
        context = contextvars.copy_context()
        context.run(_ACTOR.set, actor)
        work = self._write(actor) if actor.writes else self._read(actor)
        actor.task = self.loop.create_task(work, context=context)
        # Nobody notices a beginning, so it is put off until the first step. But two readers of one
        # process may come to share what neither has begun, and a local tier is touched at once.
        alone = all(other.process is not actor.process for other in self._others(actor))
        if alone or (actor.writes and not self.simulator.tiered):
            self._focus = actor

    def _take(self, step: Choice, fate: str) -> None:
        self.pending.remove(step)
        happens = fate in {"", "unanswered", "slow"}
        error: BaseException | None = None
        result: Any = None
        if happens:
            try:
                result = step.act()
            except CacheError as raised:
                error = raised
        if fate in {"lost", "unanswered", "late"} and step.error is not None:
            error = step.error(f"{step.label} {_WORDS[fate]}")
            if step.error is SourceUnavailable:
                self._load_failed = True
            if step.error is ConnectionError:
                step.actor.unknown = True
        if fate in {"lost", "late"} and step.version is not None:
            step.actor.process.failed.add(step.version)
        if fate == "lost":
            step.abandon()
        if fate == "late":
            self._send_late(step)
        elif fate == "slow":
            self._note(step.actor, f"{step.label} slow", _word(result))
            given = partial(_give, result, error)
            reply = Choice(f"{step.label} reply", step.identity, step.actor, given, step.reply)
            self.pending.append(reply)
            return
        self._answer(step, fate, result, error)

    def _send_late(self, step: Choice) -> None:
        self.pending.append(Choice(f"late {step.label}", step.identity, step.actor, step.act, None))

    def _answer(self, step: Choice, fate: str, result: object, error: BaseException | None) -> None:
        if step.reply is None:
            return
        word: Hashable = _word(result) if error is None else type(error).__name__
        self._note(step.actor, f"{step.label} {fate}", word)
        if step.reply.done():
            return
        if error is not None:
            step.reply.set_exception(error)
        else:
            step.reply.set_result(result)

    def _note(self, actor: Actor, what: str, result: Hashable) -> None:
        memory, front = actor.memory, actor.process.front
        # What is near is seen without a step, but only by a reader, and only as it moves.
        local: Hashable = None
        if front is not None and not actor.writes:
            local = front.held(self.key), front.feed.live
        memory.hash = hash((memory.hash, what, result, local, self.now_ms, self.loop.time()))

    def _look_again(self, step: Choice) -> None:
        self._take(step, "")
        self._focus = step.actor

    def _wait_out(self, step: Choice) -> None:
        waiting: Choice | None = step
        while waiting is not None:
            self._take(waiting, "")
            self.loop.settle()
            ours = [other for other in self.pending if other.actor is step.actor]
            for look in [other for other in ours if other.label.endswith(" lease")]:
                self._take(look, "")
            self.loop.settle()
            ours = [other for other in self.pending if other.actor is step.actor]
            waiting = next((other for other in ours if other.pause), None)

    def _time(self) -> None:
        # A deadline may be waited for in parts: it is reached when something comes of it.
        before, steps = self._at_rest(), list(self.pending)
        while self.loop.waits_for_time():
            self.loop.pass_time()
            self.loop.settle()
            same = len(steps) == len(self.pending) and all(map(is_, steps, self.pending))
            if not same or self._at_rest() != before:
                break
        for actor in self.actors:
            self._note(actor, "time", None)

    def _at_rest(self) -> list[bool]:
        return [actor.task is None or actor.task.done() for actor in self.actors]

    def evict(self) -> None:
        """Lose the cell."""
        self.cell = None
        self.ask(self.subject.evict(self.key))

    def _tell(self, name: str, kind: str) -> None:
        process = next(process for process in self.processes if process.name == name)
        assert process.front is not None
        feed = process.front.feed
        if kind == "told":
            feed.deliver()
        elif kind == "cut":
            feed.cut()
        elif kind == "silent":
            feed.fall_silent()
        else:
            feed.come_back()
            for actor in self.actors:
                if actor.process is process and actor.task is not None:
                    actor.min_version = min(actor.min_version, self._min_version(process))

    def _tell_all(self) -> None:
        for process in self.processes:
            front = process.front
            if front is None or process.dead:
                continue
            if isinstance(front.held(self.key), Lease):
                raise Violation(f"a lease that nobody holds was left near {process.name}")
            while front.feed.waiting:
                front.feed.deliver()
            front.feed.come_back()
            self._check_local(process, front, quiet=True)

    def _die(self, name: str) -> None:
        process = next(process for process in self.processes if process.name == name)
        process.dead = True
        lock = self.row_lock
        if lock is not None and lock.actor.process is process:
            sent = any(step.reply is None and step.act == lock.commit for step in self.pending)
            if not sent:
                lock.roll_back()

    def _cancel(self, actor: Actor, manner: str) -> None:
        assert actor.task is not None
        before = list(self.pending)
        actor.cancelled = True
        actor.task.cancel()
        self._note(actor, f"cancel {actor.name}", None)
        self.loop.settle()
        for step in before:
            if step in self.pending:
                continue
            if step.error is ConnectionError:
                actor.unknown = True
            if manner == "sent" and step.changes:
                step.act()
            elif manner == "late" and step.changes:
                self._send_late(step)
            else:
                step.abandon()

    # --- what must not be ---

    def _check(self, *, known: bool) -> None:
        if self.loop.errors:
            raise Violation(f"a callback raised {self.loop.errors[0]!r}")
        for actor in self.actors:
            if actor.task is not None and actor.task.done() and not actor.process.dead:
                task, actor.task = actor.task, None
                self._ended(actor, task)
        if known:
            return
        quiet = self._quiet()
        if quiet:
            entry = self.carry_out(self.subject.backend.get(self.key))
            hidden = None if entry is None else self.invariants.hidden(entry.version)
            if entry is not None and hidden is not None:
                raise Violation(f"v{entry.version} stays in the cache, and hides v{hidden}")
        for process in self.processes:
            if process.front is not None and not process.dead:
                self._check_local(process, process.front, quiet=quiet)

    def _check_local(self, process: Process, front: TierStack, *, quiet: bool) -> None:
        """What a read that began now would be given."""
        entry = front.backend.peek(self.key)
        if entry is None:
            return
        min_version, held = (
            self._min_version(process),
            f"v{entry.version} stays near {process.name}",
        )
        if entry.version < min_version:
            raise Violation(f"{held}, although v{min_version} was visible")
        hidden = self.invariants.hidden(entry.version)
        if quiet and not front.feed.waiting and hidden is not None:
            raise Violation(f"{held}, and hides v{hidden}")

    def _ended(self, actor: Actor, task: asyncio.Task[int]) -> None:
        if task.cancelled():
            if not actor.cancelled:
                raise Violation(f"{actor.name} was cancelled, though nobody asked for it")
            return
        error = task.exception()
        if error is not None:
            expected = (
                isinstance(error, LoadTimeout)
                or (isinstance(error, SourceUnavailable) and self._load_failed)
                if not actor.writes
                else isinstance(error, ConnectionError)
            )
            if not expected:
                raise Violation(f"{actor.name} raised {error!r}") from error
            return
        version = task.result()
        if not actor.writes and version < actor.min_version:
            raise Violation(
                f"{actor.name} returns v{version}, although v{actor.min_version} was visible when"
                " it began"
            )
        refused = (
            self._refused(actor) if self.simulator.guarded else version in actor.process.failed
        )
        self.invariants.seen(actor.process.name, version, refused=refused)

    def _quiet(self) -> bool:
        """Whether no writer is at work, nor anything that one has left behind."""
        if any(actor.writes and self._at_work(actor) for actor in self.actors):
            return False
        if self.simulator.guarded:
            return not any(self._lives(step) for step in self.pending)
        return not any(step.actor.writes and self._lives(step) for step in self.pending)

    def _at_work(self, actor: Actor) -> bool:
        return actor.task is not None and not actor.process.dead

    def cut_off(self, actor: Actor, version: int) -> bool:
        """Whether a writer has become unable to tell the store that it committed `version`."""
        if actor.process.dead or actor.unknown:
            return True
        return not self.simulator.guarded and version in actor.process.failed

    def _refused(self, actor: Actor) -> bool:
        return actor.process.cache.statistics.errors > actor.errors

    # --- what the cache waits for ---

    def ask(self, operation: Coroutine[Any, Any, T]) -> T:
        """Carry out an operation of the backend that may change the cell."""
        if not self.simulator.tiered:
            self._unseen = True
            return self.carry_out(operation)
        before, visible = self.look(), self.invariants.visible
        self._unseen = True
        result = self.carry_out(operation)
        if self._snapshot is None or self.look() != before:
            for process in self.processes:
                # Where nobody reads, nothing is ever near.
                if process.front is not None and process.reads and not process.dead:
                    process.front.feed.report(visible)
        return result

    async def step(
        self,
        label: str,
        act: Callable[[], T],
        *,
        detail: str = "",
        error: type[Exception] | None = None,
        faults: Sequence[str] = (),
        changes: bool = False,
        version: int | None = None,
        ready: Callable[[], bool] | None = None,
        abandon: Callable[[], None] = lambda: None,
    ) -> T:
        """Wait until the explorer has `act` done, or not done."""
        if self._closing:
            raise asyncio.CancelledError
        actor = _ACTOR.get()
        reply: asyncio.Future[T] = self.loop.create_future()
        name = f"{actor.name} {label}"
        step = Choice(
            name,
            name + detail,
            actor,
            act,
            reply,
            error=error,
            faults=tuple(faults),
            changes=changes,
            version=version,
            ready=ready,
            abandon=abandon,
        )
        if step.pause:
            step.looked = self.look()
        self.pending.append(step)
        try:
            return await reply
        finally:
            if step in self.pending:
                self.pending.remove(step)

    async def _pause(self, label: str, seconds: float) -> None:
        del seconds  # how long it is matters to nobody: others may take any time
        await self.step(label, lambda: None)

    def fates(self, *, changes: bool) -> Iterator[str]:
        """How an operation of the backend can fail."""
        kinds = self.simulator.kinds
        guarded, tiered = self.simulator.guarded, self.simulator.tiered
        if "lose" in kinds and (guarded or not tiered):
            yield "lost"
            if changes:
                yield "unanswered"
        if "late" in kinds and changes and not (guarded or tiered):
            yield "late"
        if "slow" in kinds and (guarded or tiered):
            yield "slow"

    # --- the actors ---

    async def _read(self, actor: Actor) -> int:
        async def load() -> Document:
            fates = ("lost",) if "load" in self.simulator.kinds else ()
            error = SourceUnavailable
            return document(
                await self.step("load", lambda: self.database, error=error, faults=fates)
            )

        async def load_many(keys: Sequence[str]) -> Mapping[str, Document]:
            return dict.fromkeys(keys, await load())

        cache = actor.process.cache
        if actor.name[0] == "M":
            return (await cache.read_many([self.key], load_many))[self.key].entry.version
        return (await cache.read(self.key, load)).entry.version

    async def _write(self, actor: Actor) -> int:
        transaction = _Transaction(self, actor)
        keys = () if self.simulator.late_fence else (self.key,)
        async with actor.process.cache.write(transaction, *keys) as write:
            version = await transaction.update()
            if self.simulator.late_fence:
                await write.fence(self.key)
            write.publish(self.key, document(version))
        return version


class _Transaction:
    """Raises the version under the row's lock, and commits when it is left normally."""

    def __init__(self, run: Run, actor: Actor) -> None:
        self.run = run
        self.actor = actor

    async def __aenter__(self) -> Self:
        return self

    async def update(self) -> int:
        run = self.run

        def lock() -> int:
            run.row_lock = self
            return run.database + 1

        faults = ("lost",) if "commit" in run.simulator.kinds else ()
        free = lambda: run.row_lock is None  # noqa: E731 - reads best beside its use
        return await run.step("update", lock, error=_UpdateFailedError, faults=faults, ready=free)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.roll_back()
            return
        faults = ("lost", "unanswered", "late") if "commit" in self.run.simulator.kinds else ()
        await self.run.step(
            "commit",
            self.commit,
            error=ConnectionError,
            faults=faults,
            changes=True,
            abandon=self.roll_back,
        )

    def commit(self) -> None:
        """The new version is there for everybody to see."""
        run = self.run
        stands = isinstance(run.cell, Fence) and any(
            run.tokens.get(token) is self.actor for token in run.cell.tokens
        )
        run.database += 1
        run.row_lock = None
        run.invariants.committed(
            Commit(run.database, stands, partial(run.cut_off, self.actor, run.database))
        )

    def roll_back(self) -> None:
        """The database rolls back."""
        if self.run.row_lock is self:
            self.run.row_lock = None


class _UpdateFailedError(ConnectionError):
    """The database would not take the update; nothing was committed."""


class Store:
    """One process's way to the backend: each operation is a step."""

    name = "explored"

    def __init__(self, run: Run, process: Process) -> None:
        self._run = run
        self._process = process

    async def _step(
        self,
        label: str,
        act: Callable[[], T],
        *,
        detail: str = "",
        changes: bool = True,
        version: int | None = None,
    ) -> T:
        return await self._run.step(
            label,
            act,
            detail=detail,
            error=CacheUnavailable,
            faults=tuple(self._run.fates(changes=changes)),
            changes=changes,
            version=version,
        )

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`."""
        run = self._run
        return await self._step(
            "get", lambda: run.carry_out(run.subject.backend.get(key)), changes=False
        )

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """See `CacheBackend`."""
        run = self._run
        return await self._step(
            "get", lambda: run.carry_out(run.subject.backend.get_many(keys)), changes=False
        )

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """See `CacheBackend`."""
        run = self._run

        def act() -> Entry | LeaseResult:
            run.cell = cell.lease(run.cell, token).cell
            return run.ask(run.subject.backend.lease(key, token))

        return await self._step("lease", act, detail=f" {token}")

    async def fence(self, key: str, token: str) -> None:
        """See `CacheBackend`."""
        run = self._run
        actor = run.tokens[token] = _ACTOR.get()

        def act() -> None:
            actor.fenced = True
            run.cell = cell.fence(run.cell, token).cell
            run.ask(run.subject.backend.fence(key, token))

        await self._step("fence", act, detail=f" {token}")

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """See `CacheBackend`."""
        run = self._run

        def act() -> PublishResult:
            run.cell = cell.publish(run.cell, token, entry).cell
            published = run.ask(run.subject.backend.publish(key, token, entry))
            if entry is not None:
                run.invariants.told(entry.version)
            return published

        label = "withdraw" if entry is None else f"publish v{entry.version}"
        detail = f" {token}" if entry is None else f" {token} {entry.keep_ms}"
        version = None if entry is None else entry.version
        return await self._step(label, act, detail=detail, version=version)

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`."""
        run = self._run

        def act() -> int:
            run.cell = cell.purge(run.cell).cell
            return run.ask(run.subject.backend.purge(keys))

        return await self._step("purge", act)

    async def purge_all(self) -> int:
        """See `SupportsPurgeAll`: of all the keys there are, this world knows one."""
        run = self._run

        def act() -> int:
            run.evict()
            return 1

        return await self._step("purge all", act)

    async def ping(self) -> None:
        """See `SupportsPing`."""
        await self._step("ping", lambda: None, changes=False)

    async def aclose(self) -> None:
        """The subject is closed by whoever made it."""


_WORDS = {
    "lost": "is lost",
    "unanswered": "unanswered",
    "late": "is late",
    "slow": "is slow",
}


def document(version: int) -> Document:
    """What the source holds."""
    return Document(version, "acme", b"{}", "moving", 2)


def _give(result: T, error: BaseException | None) -> T:
    if error is not None:
        raise error
    return result


def _word(result: object) -> Hashable:
    if isinstance(result, Entry):
        return result.version, result.stored_at_ms, result.keep_ms
    return result if isinstance(result, Hashable) else repr(result)
