"""Every backend keeps the contract, and the suite that says so can tell when one does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from jobcache.backends.redis import backend as redis_backend
from jobcache.testing import conformance
from jobcache.testing.conformance import Check, Subject
from jobcache.testing.simulation import GUARDS
from tests.jobcache.testing.broken import (
    BROKEN_SCRIPTS,
    BROKEN_TABLE,
    OTHER_TABLES,
    broken_table,
    memory_on,
)
from tests.subjects import BACKENDS, KEEPING, PAIRS, MemorySubject, RedisSubject


def _name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("subject", [*BACKENDS, *PAIRS], indirect=True)
@pytest.mark.parametrize("check", conformance.SAFETY, ids=_name)
async def test_no_backend_serves_what_is_wrong(subject: Subject, check: Check) -> None:
    await check(subject)


@pytest.mark.parametrize("subject", [*KEEPING, *PAIRS], indirect=True)
@pytest.mark.parametrize("check", conformance.KEEPING, ids=_name)
async def test_every_backend_keeps_what_is_right(subject: Subject, check: Check) -> None:
    await check(subject)


# --- backends with one guard removed, each to be found out by its own schedule ---


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
async def test_a_transition_table_without_a_guard_is_found_out(guard: str) -> None:
    broken = memory_on(broken_table(BROKEN_TABLE[guard]))
    failing = await _failing(lambda: MemorySubject(broken))
    assert guard.replace(" ", "_").replace("'", "") in failing


@pytest.mark.parametrize("decision", OTHER_TABLES)
async def test_a_transition_table_that_decides_otherwise_is_found_out(decision: str) -> None:
    broken = memory_on(broken_table(OTHER_TABLES[decision]))
    assert await _failing(lambda: MemorySubject(broken)) != []


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
