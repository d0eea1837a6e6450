"""Every backend keeps the contract, and the suite detects backends that do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from jobcache.backends.memory import MemoryBackend
from jobcache.backends.redis import namespace
from jobcache.errors import CacheUnavailable
from jobcache.protocol.entry import Entry
from jobcache.testing import conformance
from jobcache.testing.conformance import Check, Subject
from tests.jobcache.testing.broken import (
    BROKEN_SCRIPTS,
    BROKEN_TABLE,
    BROKEN_UNVERSIONED_SCRIPTS,
    BROKEN_UNVERSIONED_TABLE,
    OTHER_TABLES,
    broken_table,
    memory_on,
)
from tests.subjects import BACKENDS, KEEPING, PAIRS, MemorySubject, RedisSubject

TABLES = BROKEN_TABLE | BROKEN_UNVERSIONED_TABLE
SCRIPTS = BROKEN_SCRIPTS | BROKEN_UNVERSIONED_SCRIPTS


def _name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("subject", [*BACKENDS, *PAIRS], indirect=True)
@pytest.mark.parametrize("check", conformance.SAFETY, ids=_name)
async def test_no_backend_serves_a_wrong_entry(subject: Subject, check: Check) -> None:
    await check(subject)


@pytest.mark.parametrize("subject", [*KEEPING, *PAIRS], indirect=True)
@pytest.mark.parametrize("check", conformance.KEEPING, ids=_name)
async def test_every_backend_keeps_a_right_entry(subject: Subject, check: Check) -> None:
    await check(subject)


# --- backends without one of the guards: each is detected by its own schedule ---


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


@pytest.mark.parametrize("guard", TABLES)
async def test_a_transition_table_without_a_guard_is_detected(guard: str) -> None:
    broken = memory_on(broken_table(TABLES[guard]))
    failing = await _failing(lambda: MemorySubject(broken))
    assert guard.replace(" ", "_").replace("'", "") in failing


@pytest.mark.parametrize("decision", OTHER_TABLES)
async def test_a_wrong_transition_table_is_detected(decision: str) -> None:
    broken = memory_on(broken_table(OTHER_TABLES[decision]))
    assert await _failing(lambda: MemorySubject(broken)) != []


@pytest.mark.parametrize("guard", SCRIPTS)
async def test_a_script_without_a_guard_is_detected(
    guard: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, whole, broken = SCRIPTS[guard]
    texts = dict(namespace.script_texts())
    assert whole in texts[script], "the script has changed; say anew how to break it"
    texts[script] = texts[script].replace(whole, broken)
    monkeypatch.setattr(namespace, "script_texts", lambda: texts)
    failing = await _failing(lambda: RedisSubject(redis_url))
    assert guard.replace(" ", "_").replace("'", "") in failing


def test_a_failure_says_what_was_expected_and_found_in_any_test_framework() -> None:
    """Run in a separate program: pytest rewrites the assertions of modules that it imports."""
    program = """
import asyncio
from jobcache.backends.memory import MemoryBackend
from jobcache.testing import conformance

class Forgetful(MemoryBackend):
    async def publish(self, key, token, entry):
        held = await self.get(key)
        published = await super().publish(key, token, entry)
        if held is not None and entry is not None and held.version > entry.version:
            self.drop([key])
        return published

class Subject:
    def __init__(self):
        self.backend = Forgetful()
    async def evict(self, key):
        self.backend.drop_all()
    async def elapse(self, seconds):
        raise NotImplementedError

check = next(check for check in conformance.CHECKS if check.__name__ == "a_newer_entry_stays")
try:
    asyncio.run(check(Subject()))
except AssertionError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, check=True
    )
    assert (
        result.stdout
        == """a_newer_entry_stays: The older version of a slow reader changes nothing.
expected the entry of version 3, found None
what the check did:
   1. lease('k', 'first') -> LeaseResult.ACQUIRED
   2. publish('k', 'first', the entry of version 3) -> PublishResult.STORED
   3. publish('k', 'r', the entry of version 2) -> PublishResult.KEPT
   4. get('k') -> None
"""
    )


async def test_a_failure_says_where_two_entries_differ() -> None:
    class Renaming(MemoryBackend):
        def _get(self, key: str) -> Entry | None:
            found = super()._get(key)
            return found and replace(found, owner="somebody")

    check = next(
        each for each in conformance.CHECKS if each.__name__ == "a_large_body_is_kept_whole"
    )
    with pytest.raises(AssertionError) as raised:
        await check(MemorySubject(Renaming))
    assert "its owner: expected 'acme', found 'somebody'" in str(raised.value)
    assert len(str(raised.value)) < 1000, "nobody wants to see the whole body"


async def test_an_operation_that_raises_is_shown_with_the_calls_before_it() -> None:
    class Broken(MemoryBackend):
        async def fence(self, key: str, token: str) -> None:
            raise CacheUnavailable("the disk is full")

    check = next(each for each in conformance.CHECKS if each.__name__ == "a_writer_warms_the_cache")
    with pytest.raises(CacheUnavailable) as raised:
        await check(MemorySubject(Broken))
    (note,) = raised.value.__notes__
    assert "1. fence('k', 'w') raised CacheUnavailable('the disk is full')" in note


async def test_the_same_suite_finds_nothing_in_a_whole_backend(redis_url: str) -> None:
    assert await _failing(MemorySubject) == []
    assert await _failing(lambda: RedisSubject(redis_url)) == []
