"""Backends on stores with compare-and-set keep the contract."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio

from jobcache.backends.compare_and_set import CellTooLarge
from jobcache.errors import CacheContended, CacheUnavailable, UnreadableCell
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing import conformance
from jobcache.testing.conformance import Check
from jobcache.testing.simulation import Explorer, Simulator, entry_of
from tests.jobcache.testing.test_state_machine import Machine, run_machine
from tests.subjects import (
    COMPARE_AND_SET,
    PATIENCE,
    DictionaryBackend,
    DictionarySubject,
    FakeClock,
    MemcachedSubject,
    SqlSubject,
    Stores,
    StoreSubject,
)


@pytest_asyncio.fixture(params=COMPARE_AND_SET)
async def subject(request: pytest.FixtureRequest, stores: Stores) -> AsyncIterator[StoreSubject]:
    made = await stores.subject(request.param)
    yield made
    await made.aclose()


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_the_contract_is_kept(subject: StoreSubject, check: Check) -> None:
    await check(subject)


@pytest.mark.parametrize("name", COMPARE_AND_SET)
def test_the_backend_agrees_with_the_transition_table(
    name: str, stores: Stores, *, long: bool
) -> None:
    def make(machine: Machine) -> StoreSubject:
        return machine.run(stores.subject(name))

    def teardown(machine: Machine) -> None:
        machine.run(machine.subject.aclose())  # type: ignore[attr-defined]

    few = 3 if name.startswith("sql") else 8
    run_machine(
        type("Stored", (Machine,), {"make": make, "teardown": teardown}), 40 if long else few
    )


@pytest.mark.parametrize("name", COMPARE_AND_SET)
def test_no_schedule_found_at_random_goes_wrong(name: str, stores: Stores, *, long: bool) -> None:
    with asyncio.Runner() as runner:
        subject = runner.run(stores.subject(name))
        if isinstance(subject, SqlSubject):
            runner.run(subject.backend._engine.dispose())  # the explorer has a loop of its own
    with Explorer(subject) as explorer:
        report = explorer.search(
            Simulator(processes=("RRW", "RW"), faults=3),
            seed=secrets.token_hex(4),
            runs=100 if long else 10,
        )
    if isinstance(subject, MemcachedSubject):
        subject.raw.close()
    assert report.finding is None, report


# --- contention ---


@pytest.mark.parametrize("name", ["memcached", "sql on sqlite"])
async def test_many_fences_of_one_key_at_once_all_stand(name: str, stores: Stores) -> None:
    subject = await stores.subject(name)
    backend, writers = subject.backend, [f"w{number}" for number in range(30)]
    await asyncio.gather(*(backend.fence("k", writer) for writer in writers))
    left = [await backend.publish("k", writer, None) for writer in writers]
    await subject.aclose()
    assert left == [*[PublishResult.FENCED] * 29, PublishResult.REMOVED]


class AlwaysTooLate(DictionaryBackend):
    """A store in which somebody else is always faster at the key "k"."""

    late = True
    refused = 0

    async def compare_and_set(self, key: str, cell: bytes, token: int | None, ttl: float) -> bool:
        if self.late and key == "k":
            return False
        return await super().compare_and_set(key, cell, token, ttl)

    async def delete(self, key: str, token: int) -> bool:
        if self.late and key == "k":
            self.refused += 1
            return False
        return await super().delete(key, token)


async def test_when_attempts_run_out_nothing_has_changed_and_the_error_says_so() -> None:
    backend = AlwaysTooLate(attempts=7)
    with pytest.raises(CacheContended, match=r"'k' is contended: nothing changed in 7 attempts"):
        await backend.fence("k", "w")
    assert backend.stored == {}
    with pytest.raises(CacheUnavailable):
        await backend.lease("k", "r")


async def test_contention_counts_as_an_answer_and_the_publish_is_repeated() -> None:
    """Otherwise one busy key would open the circuit for all keys."""
    backend = AlwaysTooLate(attempts=2)
    guarded = GuardedBackend(
        backend, deadline=PATIENCE, fence_deadline=PATIENCE, probe_after=0.001, probe_limit=0.01
    )
    backend.late = False
    await guarded.lease("k", "r")
    await guarded.publish("k", "r", entry_of(1))
    backend.late = True
    for _ in range(5):
        with pytest.raises(CacheContended):
            await guarded.fence("k", "w")
    with pytest.raises(CacheContended):
        await guarded.publish("k", "w", entry_of(2))
    assert guarded.condition().state == "closed"
    assert guarded.condition().pending == 1
    with pytest.raises(CacheUnavailable):
        await guarded.get("k")
    refused = backend.refused
    async with asyncio.timeout(PATIENCE):
        while backend.refused < refused + 20:  # more often than an operation may be refused
            await asyncio.sleep(0.001)
    backend.late = False
    async with asyncio.timeout(PATIENCE):
        while guarded.condition().pending:
            await asyncio.sleep(0.001)
    assert await guarded.get("k") is None, "the entry that the store held was older"
    await guarded.aclose()


async def test_a_store_that_cannot_be_emptied_brings_no_old_version_back() -> None:
    """However much it missed: none of these stores can list its keys."""

    class Away(DictionaryBackend):
        away = False

        async def read(self, key: str) -> tuple[bytes, int] | None:
            if self.away:
                raise CacheUnavailable("away")
            return await super().read(key)

    backend, keys = Away(), [f"k{number}" for number in range(20)]
    guarded = GuardedBackend(
        backend, deadline=PATIENCE, fence_deadline=PATIENCE, most_missed=5, probe_limit=0.01
    )
    for key in keys:
        await guarded.lease(key, "r")
        await guarded.publish(key, "r", entry_of(1))
    backend.away = True
    for key in keys:
        with pytest.raises(CacheUnavailable):
            await guarded.publish(key, "w", entry_of(2))
    backend.away = False
    async with asyncio.timeout(PATIENCE):
        while not guarded.condition().available or guarded.condition().pending:
            await asyncio.sleep(0.001)
    assert await guarded.get_many(keys) == {}, "version 1 was older"
    await guarded.aclose()


# --- stored cells ---


async def test_a_fence_that_others_join_keeps_the_deadline_in_its_bytes() -> None:
    subject = DictionarySubject()
    await subject.backend.fence("k", "w0")
    deadline = subject.backend.stored["k"][0].partition(b"|")[0]
    await subject.elapse(10)
    await subject.backend.fence("k", "w1")
    assert subject.backend.stored["k"][0].partition(b"|")[0] == deadline
    await subject.elapse(20)
    assert await subject.backend.lease("k", "r") is LeaseResult.ACQUIRED
    assert len(subject.backend.stored) == 1, "over the fence that nobody had collected"


async def test_the_store_is_asked_to_keep_a_cell_longer_than_its_deadline() -> None:
    asked: list[float] = []

    class Noted(DictionaryBackend):
        async def compare_and_set(
            self, key: str, cell: bytes, token: int | None, ttl: float
        ) -> bool:
            asked.append(ttl)
            return await super().compare_and_set(key, cell, token, ttl)

    clock = FakeClock()
    backend = Noted(clock=clock)
    await backend.fence("k", "w0")
    clock.now += 29.5
    await backend.fence("k", "w1")
    assert asked == [40.0, 10.5]


@pytest.mark.parametrize(
    "rubbish", [b"rubbish", b"", b"|", b"17|", b"9999999999999|E1|nonsense", b"9" * 40 + b"|L1|"]
)
async def test_a_cell_that_cannot_be_read_is_never_served_and_gives_way(rubbish: bytes) -> None:
    backend = DictionaryBackend()
    backend.stored["k"] = rubbish, 0
    if rubbish == b"17|":  # expired long ago
        assert await backend.get("k") is None
    else:
        with pytest.raises(UnreadableCell):
            await backend.get("k")
        with pytest.raises(UnreadableCell):
            await backend.lease("k", "r")
        assert await backend.publish("k", "r", entry_of(1)) is PublishResult.REMOVED
        backend.stored["k"] = rubbish, 0
    assert await backend.get_many(["k"]) == {}
    await backend.fence("k", "w")
    assert await backend.publish("k", "w", entry_of(1)) is PublishResult.STORED


async def test_a_body_that_its_owner_cannot_read_is_unreadable() -> None:
    def check(key: str, body: bytes) -> None:
        assert (key, body) == ("k", b"{}")
        raise ValueError("not ours")

    backend = DictionaryBackend()
    await backend.lease("k", "r")
    await backend.publish("k", "r", entry_of(1))
    backend.set_body_check(check)
    with pytest.raises(UnreadableCell, match="not ours"):
        await backend.get("k")


async def test_a_cell_that_the_store_finds_too_large_counts_as_committed() -> None:
    class Small(DictionaryBackend):
        async def compare_and_set(
            self, key: str, cell: bytes, token: int | None, ttl: float
        ) -> bool:
            if len(cell) > 1000:
                raise CellTooLarge("at most 1000 bytes")
            return await super().compare_and_set(key, cell, token, ttl)

    backend = Small()
    large = replace(entry_of(2), encoded_body=bytes(2000))
    await backend.lease("k", "r")
    assert await backend.publish("k", "r", large) is PublishResult.REMOVED
    await backend.fence("k", "w0")
    await backend.fence("k", "w1")
    assert await backend.publish("k", "w0", large) is PublishResult.FENCED
    assert await backend.publish("k", "w1", entry_of(1)) is PublishResult.REMOVED


async def test_a_lease_lasts_as_long_as_a_load_may_take() -> None:
    subject = DictionarySubject()
    subject.backend.set_lease_time(60)
    await subject.backend.lease("k", "r")
    await subject.elapse(59)
    assert await subject.backend.lease("k", "s") is LeaseResult.HELD
    subject.backend.set_lease_time(1)
    assert await subject.backend.lease("other", "r") is LeaseResult.ACQUIRED
    await subject.elapse(59)
    assert await subject.backend.lease("other", "s") is LeaseResult.HELD, "the longest counts"


async def test_a_ping_tries_all_that_is_needed_and_leaves_nothing() -> None:
    class Sealed(DictionaryBackend):
        async def delete(self, key: str, token: int) -> bool:
            raise CacheUnavailable("no deletes")

    whole = DictionaryBackend()
    await whole.ping()
    assert whole.stored == {}
    with pytest.raises(CacheUnavailable, match="no deletes"):
        await Sealed().ping()


async def test_many_are_read_at_once_where_the_store_can() -> None:
    class Batched(DictionaryBackend):
        async def read(self, key: str) -> tuple[bytes, int] | None:
            raise AssertionError("one by one")

        async def read_many(self, keys: Sequence[str]) -> dict[str, tuple[bytes, int]]:
            return {key: self.stored[key] for key in keys if key in self.stored}

    plain = DictionaryBackend()
    await plain.lease("k", "r")
    await plain.publish("k", "r", entry_of(1))
    batched = Batched()
    batched.stored = plain.stored
    assert await batched.get_many(["k", "l", "k"]) == {"k": entry_of(1)}
