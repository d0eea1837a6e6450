"""One schedule of a simulation, in which the real cache runs step by step.

A simulation has processes on one store and one source. Each process has a `JobCache` of its own,
and readers and writers of one key. Whatever they wait for is a *step*: an operation of the backend,
a load, an update, a commit, a pause. The explorer decides which step is taken next. The step
happens at once and as a whole, and then everything runs until it waits again.

The *options* are what can be done next:

    R0 begins             a reader (M0: of many keys) or a writer begins
    R0 lease, R0 load, …  a step that an actor waits for is taken
    R0 looks again        a pause ends
    R0 waits no longer    all pauses of the reader end
    time passes           the next deadline is reached
    P0 is notified        the feed of a process delivers the next report (if it has two tiers)
    P0's feed is back     the feed is live again
    P0 connects           the feed opens a connection (with PostgreSQL as the feed)
    P0 listens            the server's answer to LISTEN has arrived; a heartbeat is sent
    P0's timer fires      the feed sends a heartbeat, or finds that one is missing
    W0 waits no longer    the report of its own change does not come soon enough

Faults are options too. A simulation allows only so many of them:

    W0 fence is lost      the operation fails, and did not happen
    W0 fence unanswered   the operation happens, and its reply is lost
    W0 fence is late      the operation fails, and happens at another time
    W0 publish is slow    the operation happens, and its reply arrives at another time
    cancel W0             the operation that the actor waits for did not happen
    cancel W0 sent        … it has happened
    cancel W0 late        … it will happen
    W0 dies               the process of the actor takes no further step
    evict                 the cell is lost
    age                   the entry in the cell is past its freshness
    P0's feed is cut      the feed reports that; reports that were under way are lost
    P0's feed is silent   the feed is not live, by the clock only; reports arrive late
    P0 sends a heartbeat  half a second passes for its feed
    evict P0's cell       a local cell is lost
    failover              another server is the primary; some connections lead to the former one
"""

from __future__ import annotations

import contextvars
from functools import partial
from itertools import count
from operator import is_
from typing import TYPE_CHECKING, Any, TypeVar

from jobcache.backends.memory import MemoryBackend
from jobcache.errors import CacheError, SourceUnavailable
from jobcache.lifetimes import Lifetimes
from jobcache.protocol.document import UnversionedDocument
from jobcache.testing.invariants import Violation
from jobcache.testing.simulation.actors import ACTOR, Actor, Memory, Process, TierStack
from jobcache.testing.simulation.checks import Checks
from jobcache.testing.simulation.choices import WORDS, Choice, summarize
from jobcache.testing.simulation.configuration import Components
from jobcache.testing.simulation.fingerprint import fingerprint
from jobcache.testing.simulation.notifications import Line
from jobcache.testing.simulation.options import Options
from jobcache.testing.simulation.source import FRESH, document
from jobcache.testing.simulation.state import State
from jobcache.testing.simulation.stepped_feed import SteppedFeed
from jobcache.testing.simulation.store import Store
from jobcache.testing.simulation.virtual_loop import at_once
from jobcache.testing.simulation.work import read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from jobcache.protocol.entry import Entry
    from jobcache.testing.simulation.choices import Option
    from jobcache.testing.simulation.configuration import Simulator
    from jobcache.testing.simulation.state import CarryOut
    from jobcache.testing.subject import Subject

T = TypeVar("T")
_LOAD_TIMEOUT = 30.0
_MOST_STEPS = 500


class Run:
    """One schedule in the making.

    Args:
        simulator: what is explored.
        subject: the backend, and a way to lose a cell.
        key: whose cell; empty.
        carry_out: runs one operation of the subject to its end.
        snapshot: returns the content of a cell; None: the transition table tells it.
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
        self.taken: list[str] = []
        self._parts = Components() if parts is None else parts
        self._state = State(simulator, subject, key, carry_out, snapshot)
        self._options = Options(self._state)
        self._checks = Checks(self._state)
        self._populate()

    def _populate(self) -> None:
        numbers = {kind: count() for kind in "RMW"}
        for index, word in enumerate(self._state.simulator.processes):
            names = [f"{kind}{next(numbers[kind])}" for kind in word]
            process = Process(names[0] if len(names) == 1 else f"P{index}", word.strip("W") != "")
            store = Store(self._state, process)
            tokens = map(f"{process.name}x{{}}".format, count())
            backend = (
                self._parts.guard(
                    store, clock=self._state.loop.time, sleep=partial(self._state.pause, "probes")
                )
                if self._state.simulator.guarded
                else store
            )
            if self._state.simulator.tiered:
                process.front = self._front(process, backend)
            elif self._state.simulator.postgres:
                process.front = self._listening(process)
            process.cache = self._parts.cache(
                backend if process.front is None else process.front.backend,
                lifetimes=Lifetimes(default=FRESH, jitter=0),
                # Without a guard time does not pass, and timers would only be in the way.
                load_timeout=_LOAD_TIMEOUT if self._state.simulator.guarded else None,
                clock_ms=lambda: self._state.now_ms,
                token=partial(next, tokens),
                sleep=partial(self._state.pause, "pause"),
            )
            self._state.processes.append(process)
            shared = Memory()
            memory = shared if self._state.simulator.guarded else Memory()
            process.ahead = Actor(f"A{index}", process, 0, memory)
            memory.actors.append(process.ahead)
            for name in names:
                alone = name[0] == "W" and not self._state.simulator.guarded
                memory = Memory() if alone else shared
                turns = 1 if name[0] == "W" else self._state.simulator.reads
                actor = Actor(name, process, turns, memory)
                memory.actors.append(actor)
                self._state.actors.append(actor)
        if self._state.simulator.warm:
            entry = self._first_entry()
            self._state.carry_out(self._state.subject.backend.lease(self._state.key, "first"))
            self._state.carry_out(
                self._state.subject.backend.publish(self._state.key, "first", entry)
            )
            self._state.cell = None if self._state.simulator.postgres else entry
            for process in self._state.processes:
                if process.front is not None and process.reads:
                    at_once(process.front.local.lease(self._state.key, "first"))
                    at_once(process.front.local.publish(self._state.key, "first", entry))

    def _first_entry(self) -> Entry:
        lifetimes, now_ms = Lifetimes(default=FRESH, jitter=0), self._state.now_ms
        if self.simulator.unversioned:
            return lifetimes.unversioned_entry(UnversionedDocument(b"1", FRESH), "first", now_ms)
        return lifetimes.entry(document(1), now_ms)

    def _front(self, process: Process, remote: Any) -> TierStack:  # noqa: ANN401 - a test may put anything there
        local, feed = MemoryBackend(clock=self._state.loop.time), SteppedFeed(self._state.key)
        feed.through = partial(self._state.deliver, process, feed)
        wait = partial(self._state.pause, "wait")
        return TierStack(local, feed, self._parts.tiered(local, remote, feed, sleep=wait))

    def _listening(self, process: Process) -> TierStack:
        from jobcache.backends.postgres.feed import PostgresFeed  # noqa: PLC0415 - needs asyncpg

        make_feed = PostgresFeed if self._parts.feed is None else self._parts.feed
        process.line = line = Line(self._state, process, make_feed)
        self._state.servers.lines.append(line)
        local = MemoryBackend(clock=self._state.loop.time, max_entries=16)
        tokens = map(f"{process.name}p{{}}".format, count())
        backend = self._parts.postgres(local, line.feed, token=partial(next, tokens))
        line.start()
        return TierStack(local, line, backend)

    def options(self) -> list[Option]:
        """Return all that can be done next, faults last; nothing if this is the end."""
        return self._options.options()

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
        self._state.faults_left -= option.fault != ""
        self._state.focus = None
        self._do(option)
        self._state.loop.run_ready()
        self._checks.after_step(known=known)

    def _do(self, option: Option) -> None:
        kind, whose = option.kind, option.whose
        if kind == "step":
            self._take(dict(self._options.steps())[whose], option.fate)
        elif kind == "begin":
            self._begin(self._actor(whose))
        elif kind == "look":
            self._read_again(dict(self._options.steps())[whose])
        elif kind == "wait":
            self._wait_out(dict(self._options.steps())[whose])
        elif kind == "time":
            self._time()
        elif kind == "evict":
            self._state.evict()
        elif kind == "age":
            self._state.now_ms += round(FRESH * 1000) + 1
            for line in self._state.servers.lines:
                line.lost_entry()
        elif kind == "cancel":
            self._cancel(self._actor(whose), option.fate)
        else:
            self._do_to_process(kind, whose)

    def _do_to_process(self, kind: str, whose: str) -> None:
        if kind == "die":
            self._die(whose)
        elif kind == "hurry":
            self._hurry(self._actor(whose))
        elif kind == "failover":
            self._state.servers.fail_over(lags=whose == "late")
        elif kind == "lose":
            self._lose_cell(whose)
        else:
            self._change_feed(whose, kind)

    def _actor(self, name: str) -> Actor:
        return next(actor for actor in self._state.actors if actor.name == name)

    def finish(self) -> None:
        """Look for violations when nothing more can be done.

        Raises:
            Violation: somebody still waits, or something was left behind.
        """
        self._checks.at_end()

    def close(self) -> None:
        """End every task that is left, so that nothing outlives the run."""
        self._state.closing = True
        for _ in range(_MOST_STEPS):
            if not self._state.loop.tasks:
                break
            for task in list(self._state.loop.tasks):
                task.cancel()
            self._state.loop.run_ready()
        self._state.carry_out(self._state.subject.evict(self._state.key))

    def fingerprint(self) -> int:
        """Two runs with the same one have the same futures (but for a collision of hashes)."""
        return fingerprint(self._state)

    def _begin(self, actor: Actor) -> None:
        actor.min_version = self._state.min_version(actor.process)
        actor.errors = actor.process.cache.statistics.errors
        actor.begun, actor.turns_left = True, actor.turns_left - 1
        self._state.note(actor, f"{actor.name} begins", None)
        context = contextvars.copy_context()
        context.run(ACTOR.set, actor)
        work = write(self._state, actor) if actor.writes else read(self._state, actor)
        actor.task = self._state.loop.create_task(work, context=context)
        # Nobody notices a beginning, so it is put off until the first step. But two readers of one
        # process may come to share what neither has begun, and a local tier is touched at once.
        alone = not self._state.simulator.postgres and all(
            other.process is not actor.process for other in self._state.others(actor)
        )
        if alone or (actor.writes and not self._state.simulator.tiered):
            self._state.focus = actor

    def _take(self, step: Choice, fate: str) -> None:
        self._state.pending.remove(step)
        happens = fate in {"", "unanswered", "slow"}
        error: BaseException | None = None
        result: Any = None
        if happens:
            try:
                result = step.act()
            except CacheError as raised:
                error = raised
        if fate in {"lost", "unanswered", "late"} and step.error is not None:
            error = step.error(f"{step.label} {WORDS[fate]}")
            if step.error is SourceUnavailable:
                self._state.load_failed = True
            if step.error is ConnectionError:
                step.actor.unknown = True
        if fate in {"lost", "late"} and step.version is not None:
            step.actor.process.failed.add(step.version)
        if fate == "lost":
            step.abandon()
        if fate == "late":
            self._send_late(step)
        elif fate == "slow":
            self._state.note(step.actor, f"{step.label} slow", summarize(result))
            given = partial(_give, result, error)
            reply = Choice(f"{step.label} reply", step.identity, step.actor, given, step.reply)
            self._state.pending.append(reply)
            return
        self._answer(step, fate, result, error)

    def _send_late(self, step: Choice) -> None:
        self._state.pending.append(
            Choice(f"late {step.label}", step.identity, step.actor, step.act, None)
        )

    def _answer(self, step: Choice, fate: str, result: object, error: BaseException | None) -> None:
        if step.reply is None:
            return
        word: Hashable = summarize(result) if error is None else type(error).__name__
        self._state.note(step.actor, f"{step.label} {fate}", word)
        if step.reply.done():
            return
        if error is not None:
            step.reply.set_exception(error)
        else:
            step.reply.set_result(result)

    def _read_again(self, step: Choice) -> None:
        self._take(step, "")
        self._state.focus = step.actor

    def _wait_out(self, step: Choice) -> None:
        waiting: Choice | None = step
        while waiting is not None:
            self._take(waiting, "")
            self._state.loop.run_ready()
            ours = [other for other in self._state.pending if other.actor is step.actor]
            for look in [other for other in ours if other.label.endswith(" lease")]:
                self._take(look, "")
            self._state.loop.run_ready()
            ours = [other for other in self._state.pending if other.actor is step.actor]
            waiting = next((other for other in ours if other.pause), None)

    def _time(self) -> None:
        # A deadline may be waited for in parts: it is reached when something comes of it.
        before, steps = self._at_rest(), list(self._state.pending)
        while self._state.loop.waits_for_time():
            self._state.loop.pass_time()
            self._state.loop.run_ready()
            same = len(steps) == len(self._state.pending) and all(
                map(is_, steps, self._state.pending)
            )
            if not same or self._at_rest() != before:
                break
        for actor in self._state.actors:
            self._state.note(actor, "time", None)

    def _at_rest(self) -> list[bool]:
        return [actor.task is None or actor.task.done() for actor in self._state.actors]

    def _change_feed(self, name: str, kind: str) -> None:
        process = next(process for process in self._state.processes if process.name == name)
        assert process.front is not None
        process.front.feed.take(kind)
        for actor in self._state.actors:
            if actor.process is not process or actor.task is None:
                continue
            if kind == "back":
                actor.min_version = min(actor.min_version, self._state.min_version(process))
            elif self._state.simulator.postgres:
                # It may find that its report will not come.
                actor.hurried = actor.hurried or kind != "report"

    def _hurry(self, actor: Actor) -> None:
        actor.hurried = True
        if actor.process.line is not None:
            actor.process.line.lost_entry()  # the writer empties the cell, now or later
        self._state.loop.fire(lambda context: context.get(ACTOR) is actor)

    def _lose_cell(self, name: str) -> None:
        process = next(process for process in self._state.processes if process.name == name)
        assert process.front is not None
        assert process.line is not None
        process.front.local.drop_all()
        process.line.lost_entry()

    def _die(self, name: str) -> None:
        process = next(process for process in self._state.processes if process.name == name)
        process.dead = True
        lock = self._state.row_lock
        if lock is not None and lock.actor.process is process:
            sent = any(
                step.reply is None and step.act == lock.commit for step in self._state.pending
            )
            if not sent:
                lock.roll_back()

    def _cancel(self, actor: Actor, manner: str) -> None:
        assert actor.task is not None
        before = list(self._state.pending)
        actor.cancelled = True
        actor.task.cancel()
        self._state.note(actor, f"cancel {actor.name}", None)
        self._state.loop.run_ready()
        for step in before:
            if step in self._state.pending:
                continue
            if step.error is ConnectionError:
                actor.unknown = True
            if manner == "sent" and step.changes:
                step.act()
            elif manner == "late" and step.changes:
                self._send_late(step)
            else:
                step.abandon()


def _give(result: T, error: BaseException | None) -> T:
    if error is not None:
        raise error
    return result
