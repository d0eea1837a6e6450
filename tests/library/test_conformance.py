"""Every backend keeps the contract, and the suite that says so can tell when one does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from jobcache.backends import redis as redis_backend
from jobcache.backends.memory import MemoryBackend
from jobcache.codec import Fence, Lease
from jobcache.protocol import Entry, Offered
from jobcache.testing import conformance
from jobcache.testing.conformance import Check, Subject
from jobcache.testing.schedules import GUARDS
from tests.subjects import BACKENDS, KEEPING, MemorySubject, RedisSubject


def _name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("subject", BACKENDS, indirect=True)
@pytest.mark.parametrize("check", conformance.SAFETY, ids=_name)
async def test_no_backend_serves_what_is_wrong(subject: Subject, check: Check) -> None:
    await check(subject)


@pytest.mark.parametrize("subject", KEEPING, indirect=True)
@pytest.mark.parametrize("check", conformance.KEEPING, ids=_name)
async def test_every_backend_keeps_what_is_right(subject: Subject, check: Check) -> None:
    await check(subject)


# --- backends with one guard removed, each to be found out by its own schedule ---


class NoFence(MemoryBackend):
    async def fence(self, key: str, ticket: str) -> None:
        """Writers do not fence."""


class OneFenceSlot(MemoryBackend):
    async def fence(self, key: str, ticket: str) -> None:
        cell = self._cell(key)
        await super().fence(key, ticket)
        if isinstance(cell, Fence):
            self._put(key, Fence(cell.floor, frozenset({ticket})), 30)


class FloorNotRaised(MemoryBackend):
    def _leave(self, key: str, fence: Fence, ticket: str, entry: Entry | None) -> Offered:
        offered = super()._leave(key, fence, ticket, entry)
        left = self._cell(key)
        if isinstance(left, Fence):
            self._put(key, Fence(fence.floor, left.tickets), 30)
        return offered


class StoreWithoutTicket(MemoryBackend):
    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        if self._cell(key) is None:
            return self._store_anyway(key, entry)
        return await super().offer(key, ticket, entry)

    def _store_anyway(self, key: str, entry: Entry | None) -> Offered:
        if entry is not None:
            self._put(key, entry, 600)
        return Offered.STORED


class SpareOtherLeases(MemoryBackend):
    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        cell = self._cell(key)
        if isinstance(cell, Lease) and cell.ticket != ticket:
            return Offered.KEPT
        return await super().offer(key, ticket, entry)


class SpareOlderEntry(MemoryBackend):
    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        cell = self._cell(key)
        if entry is not None and isinstance(cell, Entry) and cell.version < entry.version:
            return Offered.KEPT
        return await super().offer(key, ticket, entry)


BROKEN_MEMORY = dict(
    zip(
        GUARDS,
        (
            NoFence,
            OneFenceSlot,
            FloorNotRaised,
            StoreWithoutTicket,
            SpareOtherLeases,
            SpareOlderEntry,
        ),
        strict=True,
    )
)

# What stands in a script, and what stands there when the guard is gone.
BROKEN_SCRIPTS = dict(
    zip(
        GUARDS,
        (
            ("fence", "local done", "do return 1 end\nlocal done"),
            ("fence", "tickets = tickets .. ticket .. ','", "tickets = ',' .. ticket .. ','"),
            ("offer", "  if version > floor then", "  if false then"),
            ("offer", "  return 'nothing'", "  return store('stored')"),
            (
                "offer",
                "  if withdrawn then\n    return 'kept'",
                "  if true then\n    return 'kept'",
            ),
            ("offer", "held > version", "held ~= version"),
        ),
        strict=True,
    )
)


async def _failing(subject: Callable[[], Subject]) -> list[str]:
    failing = []
    for check in conformance.CHECKS:
        fresh = subject()
        try:
            await check(fresh)
        except AssertionError:
            failing.append(check.__name__)
        with suppress(AttributeError):
            await fresh.aclose()  # type: ignore[attr-defined]
    return failing


@pytest.mark.parametrize("guard", GUARDS)
async def test_a_memory_backend_without_a_guard_is_found_out(guard: str) -> None:
    failing = await _failing(lambda: MemorySubject(BROKEN_MEMORY[guard]))
    assert guard.replace(" ", "_").replace("'", "") in failing


@pytest.mark.parametrize("guard", GUARDS)
async def test_a_script_without_a_guard_is_found_out(
    guard: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, whole, broken = BROKEN_SCRIPTS[guard]
    lua = redis_backend._lua

    def broken_lua(name: str) -> str:
        text = lua(name)
        if name != script:
            return text
        assert whole in text, "the script has changed; say anew how to break it"
        return text.replace(whole, broken)

    monkeypatch.setattr(redis_backend, "_lua", broken_lua)
    failing = await _failing(lambda: RedisSubject(redis_url))
    assert guard.replace(" ", "_").replace("'", "") in failing


async def test_the_same_suite_finds_nothing_in_a_whole_backend(redis_url: str) -> None:
    assert await _failing(MemorySubject) == []
    assert await _failing(lambda: RedisSubject(redis_url)) == []
