"""A store with a fault between a read and a write is detected every time."""

from __future__ import annotations

from typing import Any

import pytest

from examples.sql_backend import SqlBackend
from jobcache.backends.memcached import MemcachedBackend
from jobcache.errors import CacheError
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import Entry
from jobcache.testing import conformance, interleavings
from jobcache.testing.interleavings import Operation, Scenario
from tests.subjects import (
    BACKENDS,
    COMPARE_AND_SET,
    DictionaryBackend,
    DictionarySubject,
    MemcachedSubject,
    SqlSubject,
    Stores,
    StoreSubject,
)


@pytest.mark.parametrize("name", COMPARE_AND_SET)
async def test_no_interleaving_goes_wrong(name: str, stores: Stores, *, long: bool) -> None:
    subject = await stores.subject(name)
    every = long or not isinstance(subject, SqlSubject)
    scenarios = interleavings.SCENARIOS if every else interleavings.SHORTEST
    report = await interleavings.check(subject.backend, scenarios)
    await subject.aclose()
    assert report.finding is None, report
    assert report.schedules > (250 if every else 50), "it plays every schedule"


@pytest.mark.parametrize("subject", BACKENDS, indirect=True)
async def test_operations_that_are_atomic_go_right_in_any_order(
    subject: conformance.Subject,
) -> None:
    keeps = subject.backend.name != "null"
    report = await interleavings.check(subject.backend, keeps=keeps)
    assert report.finding is None, report
    assert report.schedules > len(interleavings.SCENARIOS)


# --- stores that are broken ---


class IgnoresTheToken:
    """A compare-and-set that overwrites any cell."""

    async def compare_and_set(self, key: str, cell: bytes, token: Any, ttl: float) -> bool:
        if token is not None:
            found = await type(self).read(self, key)  # type: ignore[attr-defined]
            token = None if found is None else found[1]
        done: bool = await super().compare_and_set(key, cell, token, ttl)  # type: ignore[misc]
        return done


class OverwritesAFirstWrite:
    """A write for an empty cell that does not look whether it is empty."""

    async def compare_and_set(self, key: str, cell: bytes, token: Any, ttl: float) -> bool:
        if token is None:
            found = await type(self).read(self, key)  # type: ignore[attr-defined]
            token = None if found is None else found[1]
        done: bool = await super().compare_and_set(key, cell, token, ttl)  # type: ignore[misc]
        return done


class DeletesAnything:
    """A delete that ignores the token."""

    async def delete(self, key: str, token: Any) -> bool:
        found = await type(self).read(self, key)  # type: ignore[attr-defined]
        return found is not None and await super().delete(key, found[1])  # type: ignore[misc]


class DoesNotSayThatItLost:
    """A compare-and-set that returns True always."""

    async def compare_and_set(self, key: str, cell: bytes, token: Any, ttl: float) -> bool:
        await super().compare_and_set(key, cell, token, ttl)  # type: ignore[misc]
        return True


BROKEN = [IgnoresTheToken, OverwritesAFirstWrite, DeletesAnything, DoesNotSayThatItLost]


def broken_dictionary(kind: type) -> DictionaryBackend:
    made: DictionaryBackend = type("B", (kind, DictionaryBackend), {})()
    return made


def broken(name: str, kind: type, stores: Stores) -> StoreSubject:
    if name == "memcached":
        return MemcachedSubject(stores.memcached(), type("B", (kind, MemcachedBackend), {}))
    if name == "a dictionary":
        return DictionarySubject(type("B", (kind, DictionaryBackend), {}))
    url = stores.sqlite if name.endswith("sqlite") else stores.postgres
    return SqlSubject(url, type("B", (kind, SqlBackend), {}))


@pytest.mark.parametrize("name", COMPARE_AND_SET[:3])
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_step_is_found(name: str, kind: type, stores: Stores) -> None:
    subject = broken(name, kind, stores)
    if isinstance(subject, SqlSubject):
        await subject.start()
    report = await interleavings.check(subject.backend, interleavings.SHORTEST)
    await subject.aclose()
    assert report.finding is not None


class RestartsItsTokens(DictionaryBackend):
    """Each new cell begins with token 1, as the version column of a new row does."""

    def next_token(self, key: str) -> int:
        return (self.token_of(key) or 0) + 1


class RestartsItsTokensInSql(SqlBackend):
    async def compare_and_set(self, key: str, cell: bytes, token: int | None, ttl: float) -> bool:
        self.new_token = lambda: (token or 0) + 1  # type: ignore[method-assign]
        return await super().compare_and_set(key, cell, token, ttl)


async def test_a_token_that_comes_back_after_a_delete_is_found(stores: Stores) -> None:
    report = await interleavings.check(RestartsItsTokens())
    assert report.finding is not None
    assert len(report.finding.scenario.operations) == 3
    subject = SqlSubject(stores.sqlite, RestartsItsTokensInSql)
    await subject.start()
    in_sql = await interleavings.check(subject.backend)
    await subject.aclose()
    assert in_sql.finding is not None
    assert in_sql.finding.schedule == report.finding.schedule, "the same every time"


async def test_a_report_shows_the_steps_and_what_was_returned() -> None:
    report = await interleavings.check(RestartsItsTokens())
    assert str(report).splitlines()[:10] == [
        (
            f"{report.scenarios} scenarios, {report.schedules} schedules: no order of the"
            " operations explains what they returned in R lease: R publish v1 | purge | W fence"
        ),
        "first, each by itself:",
        "  R lease -> LeaseResult.ACQUIRED",
        "then, step by step:",
        "  R publish v1: read",
        "  purge: read",
        "  purge: delete",
        "  W fence: read",
        "  W fence: compare_and_set",
        "  R publish v1: compare_and_set",
    ]
    assert "  R publish v1 -> PublishResult.STORED" in str(report).splitlines()


async def test_what_the_cell_holds_afterwards_counts() -> None:
    """A fence was deleted, though each result is possible."""
    backend = broken_dictionary(DeletesAnything)
    scenario = Scenario.parse("R lease: R withdraw | W fence")
    report = await interleavings.check(backend, [scenario])
    assert report.finding is not None
    assert report.finding.results == (PublishResult.REMOVED, None)


class ReadsFromAReplica(DictionaryBackend):
    """A `get` that once returns what the cell held before the last write."""

    stale: tuple[bytes, int] | None = None

    async def compare_and_set(self, key: str, cell: bytes, token: int | None, ttl: float) -> bool:
        self.stale = self.stored.get(key)
        return await super().compare_and_set(key, cell, token, ttl)

    async def get(self, key: str) -> Entry | None:
        found, stale, self.stale = await self.read(key), self.stale, None
        cell = self._decode(key, found if stale is None else stale).cell
        return cell if isinstance(cell, Entry) else None


async def test_an_operation_that_began_after_another_ended_comes_after_it() -> None:
    scenario = Scenario.parse("R lease, R publish v1: W fence | get")
    report = await interleavings.check(ReadsFromAReplica(), [scenario])
    assert report.finding is not None
    assert report.finding.schedule[-1] == "get: read", "after the fence had ended"


async def test_operations_that_run_alone_are_compared_as_well() -> None:
    class LeasesToAll(DictionaryBackend):
        async def lease(self, key: str, token: str) -> Entry | LeaseResult:
            await super().lease(key, token)
            return LeaseResult.ACQUIRED

    scenario = Scenario.parse("R lease, S lease: W fence | get")
    report = await interleavings.check(LeasesToAll(), [scenario])
    assert report.finding is not None
    assert "  S lease -> LeaseResult.ACQUIRED" in str(report).splitlines()


async def test_an_operation_that_gives_up_is_a_finding() -> None:
    report = await interleavings.check(DictionaryBackend(attempts=1))
    assert report.finding is not None
    assert any("contended" in repr(result) for result in report.finding.results)


async def test_a_store_that_fails_is_no_finding() -> None:
    class Fails(DictionaryBackend):
        async def delete(self, key: str, token: int) -> bool:
            raise CacheError("no deletes today")

    with pytest.raises(CacheError, match="no deletes today"):
        await interleavings.check(Fails())


async def test_the_backend_is_unchanged_afterwards() -> None:
    backend = DictionaryBackend()
    await interleavings.check(backend, interleavings.SCENARIOS[:1])
    assert not {"read", "compare_and_set", "delete"} & set(vars(backend))


def test_a_scenario_is_read_as_it_is_written() -> None:
    text = "R lease, R publish v1: W fence | purge"
    scenario = Scenario.parse(text)
    assert str(scenario) == text
    assert scenario.before[1] == Operation("publish", "R", 1)
    assert scenario.operations == (Operation("fence", "W"), Operation("purge"))
    with pytest.raises(ValueError, match="R leases"):
        Scenario.parse("R leases")
