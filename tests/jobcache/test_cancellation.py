"""A caller that is cancelled, wherever it happens to wait, changes nothing for the others.

Clients disconnect all the time. Each operation is run again and again and cancelled at its first
wait, its second, and so on to its last, twice each: while the awaited result is on its way, and
when it has arrived but was not delivered. Other callers use the same key meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from jobcache import CacheOutcome
from jobcache.backends._closing import end_all
from jobcache.protocol.backend import LeaseResult
from jobcache.protocol.entry import Entry
from jobcache.resilience.guarded_backend import GuardedBackend
from tests.cancelling import CancelledAt
from tests.jobcache.bench import Bench, Transaction, document
from tests.subjects import KEEPING, PATIENCE, MemorySubject, RedisSubject, make_subject

MOST_WAITS = 60
AT_ONCE = 4
MOMENT = 0.005
"""Seconds that others hold a fence, a lease or a load up: about as long as a commit takes."""


class SlowTransaction(Transaction):
    """Waits at its beginning, and before and after its commit.

    Attributes:
        interrupted: it was cancelled while it committed: nobody knows whether it did.
    """

    interrupted = False

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            await asyncio.sleep(0)
            await super().__aexit__(kind, error, trace)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.interrupted = kind is None
            raise


@dataclass
class Case:
    """One key, with the operations on it.

    Attributes:
        bench: the cache and its source.
        key: used in no other case.
        transactions: of the writer that is cancelled.
    """

    bench: Bench
    key: str
    transactions: list[SlowTransaction] = field(default_factory=list)

    async def read(self) -> int:
        return (await self.bench.read(self.key))[0]

    async def read_many(self) -> int:
        answers = await self.bench.cache.read_many([self.key], self.bench.source.load_many)
        return answers[self.key].entry.version

    async def write(self) -> int:
        """Fences one key from the beginning, another in the middle."""
        transaction = SlowTransaction(self.bench.source, self.key)
        self.transactions.append(transaction)
        async with self.bench.cache.write(transaction, self.key) as write:
            await asyncio.sleep(0)
            await write.fence(self.beside)
            write.publish(self.key, document(transaction.version))
            write.outdate(self.beside, transaction.version)
        return transaction.version

    @property
    def beside(self) -> str:
        return f"{self.key}-beside"

    # --- what the key is like ---

    async def cold(self) -> None:
        pass

    async def warm(self) -> None:
        await self.read()

    async def behind_a_fence(self) -> None:
        """Of a writer in another process, who is about to commit."""
        backend = self.bench.subject.backend
        await backend.fence(self.key, "elsewhere")

        async def commit() -> None:
            await asyncio.sleep(MOMENT)
            version = self.bench.source.versions[self.key] = 2
            entry = self.bench.cache.lifetimes.entry(document(version), self.bench.now_ms)
            await backend.publish(self.key, "elsewhere", entry)

        self.others = [asyncio.create_task(commit())]

    async def behind_a_lease(self) -> None:
        """Of a reader in another process, who is loading."""
        backend = self.bench.subject.backend
        assert await backend.lease(self.key, "elsewhere") is LeaseResult.ACQUIRED

        async def load() -> None:
            await asyncio.sleep(MOMENT)
            entry = self.bench.cache.lifetimes.entry(document(1), self.bench.now_ms)
            await backend.publish(self.key, "elsewhere", entry)

        self.others = [asyncio.create_task(load())]

    async def during_the_load(self) -> None:
        """Of another caller in this process; later operations take as long."""
        gate = self.bench.source.gate
        gate.clear()

        async def open_gate() -> None:
            await asyncio.sleep(MOMENT)
            gate.set()

        self.others = [asyncio.create_task(open_gate()), asyncio.create_task(self.read())]
        await asyncio.sleep(0)

    others: list[asyncio.Task[Any]] = field(default_factory=list)


OPERATIONS: dict[str, Callable[[Case], Coroutine[Any, Any, int]]] = {
    "read": Case.read,
    "read_many": Case.read_many,
    "write": Case.write,
}
SITUATIONS: dict[str, Callable[[Case], Awaitable[None]]] = {
    "cold": Case.cold,
    "warm": Case.warm,
    "behind a fence": Case.behind_a_fence,
    "behind a lease": Case.behind_a_lease,
    "during the load": Case.during_the_load,
}


@asynccontextmanager
async def leaving_nothing_behind(bench: Bench) -> AsyncIterator[None]:
    """Afterwards there are as many tasks as before, and no more connections than the pool's."""
    before = asyncio.all_tasks()
    subject = bench.subject
    raw = subject.raw if isinstance(subject, RedisSubject) else None
    connections = raw.info("stats")["total_connections_received"] if raw else 0
    yield
    async with asyncio.timeout(60):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.001)
    if raw:
        made = raw.info("stats")["total_connections_received"] - connections
        assert made <= 10, "connections are kept, and not dropped by who goes away"


@pytest.fixture
async def bench(request: pytest.FixtureRequest, redis_urls: dict[str, str]) -> AsyncIterator[Bench]:
    async for subject in make_subject(request.param, redis_urls):
        if isinstance(subject, RedisSubject):
            subject.raw.script_flush()  # so that the first fence has to be sent twice
            guard = GuardedBackend(subject.backend, deadline=PATIENCE, fence_deadline=PATIENCE)
            subject.backend = guard  # type: ignore[assignment]
        yield Bench(subject)


@pytest.mark.parametrize("bench", KEEPING, indirect=True)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "answered"])
async def test_cancelled_at_any_wait_it_changes_nothing_for_others(
    bench: Bench, operation: str, situation: str, *, late: bool
) -> None:
    """Some waits are tried at once, on a key and in a cache each, for most of it is waiting."""

    async def cancel_at(number: int) -> bool:
        case = Case(Bench(bench.subject), f"k{number}")
        case.bench.source.versions[case.key] = 1
        await SITUATIONS[situation](case)
        return await cancel_one(case, OPERATIONS[operation], number, late=late)

    cancelled: list[bool] = []
    async with leaving_nothing_behind(bench):
        while all(cancelled):
            first = len(cancelled) + 1
            assert first < MOST_WAITS, "it never comes to its end"
            async with asyncio.TaskGroup() as group:
                tried = [group.create_task(cancel_at(first + n)) for n in range(AT_ONCE)]
            cancelled += [each.result() for each in tried]
    peeked = isinstance(bench.subject, MemorySubject) and (operation, situation) == ("read", "warm")
    assert cancelled[0] is not peeked, "each was cancelled somewhere, but for what never waits"


async def cancel_one(
    case: Case,
    operation: Callable[[Case], Coroutine[Any, Any, int]],
    number: int,
    *,
    late: bool,
) -> bool:
    """Run one case. False if the operation has no such wait: it came to its end."""
    bench, versions = case.bench, case.bench.source.versions
    working = CancelledAt(operation(case), number, late=late)

    async def work() -> int:
        result: int = await working
        return result

    earlier = [asyncio.create_task(case.read()), asyncio.create_task(case.read_many())]
    victim = asyncio.create_task(work())
    later = [asyncio.create_task(case.read()), asyncio.create_task(case.read_many())]
    async with asyncio.timeout(60):
        (outcome,) = await asyncio.gather(victim, return_exceptions=True)
        cancelled = working.waits >= number
        assert isinstance(outcome, asyncio.CancelledError if cancelled else int), outcome
        seen = await asyncio.gather(*earlier, *later)
        await asyncio.gather(*case.others)
        await bench.cache._publisher.join()
        while bench.cache.reads.in_flight():
            await asyncio.sleep(0)
        await late_fences_withdrawn(bench)
    assert all(1 <= version <= versions[case.key] for version in seen)
    unknown = any(transaction.interrupted for transaction in case.transactions)
    await check_cell(bench, case.key, fenced=unknown)
    if case.transactions:
        await check_cell(bench, case.beside, fenced=unknown)
    loads = bench.source.loads
    answers = await asyncio.gather(*(bench.read(case.key) for _ in range(5)))
    assert {version for version, _ in answers} == {versions[case.key]}
    assert bench.source.loads - loads <= 2
    if not unknown:
        assert await bench.read(case.key) == (versions[case.key], CacheOutcome.HIT)
    return cancelled


async def late_fences_withdrawn(bench: Bench) -> None:
    """A fence that is sent twice can arrive after its withdrawal; its guard withdraws it again."""
    guard = getattr(bench.subject.backend, "_remote", bench.subject.backend)
    while isinstance(guard, GuardedBackend) and (guard._late_fences or guard._running):
        await asyncio.sleep(0)


async def check_cell(bench: Bench, key: str, *, fenced: bool) -> None:
    """No lease is left, and no fence but where nobody knows whether its writer has committed."""
    backend = bench.subject.backend
    found = await backend.lease(key, "probe")
    if found is LeaseResult.ACQUIRED:
        await backend.publish(key, "probe", None)
    if fenced:
        assert found is LeaseResult.FENCED
    else:
        assert found is LeaseResult.ACQUIRED or isinstance(found, Entry), found


async def test_a_cancellation_that_is_lost_is_repeated() -> None:
    """As `asyncio.wait_for` loses it on Python 3.11, under redis-py's sending."""
    ended = []

    async def loses_one() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fails() -> None:
        raise ConnectionError

    tasks = [asyncio.create_task(loses_one()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await end_all(tasks)
    assert ended == ["cancelled"]
    await end_all([])
