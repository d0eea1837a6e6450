"""Hits repeat the rule of `WallClock.is_fresh`, and decide as it does."""

from __future__ import annotations

import time

import pytest

from jobcache import Document, JobCache, Lifetimes
from jobcache._engine.storing import Absent, Storing
from jobcache.backends.memory import MemoryBackend
from jobcache.protocol.entry import CLOCK_SKEW_MS
from jobcache.serializers import JSON

STORED_MS = 1_700_000_000_000
FRESH_MS = 30_000


async def load() -> Document:
    return Document(3, "acme", b"{}", "moving", 2)


async def load_value() -> list[int]:
    return [3]


@pytest.mark.parametrize(
    ("age_ms", "fresh"),
    [
        (0, True),
        (FRESH_MS - 1, True),
        (FRESH_MS, False),
        (-CLOCK_SKEW_MS, True),
        (-CLOCK_SKEW_MS - 1, False),
    ],
)
async def test_every_hit_is_fresh_by_the_same_rule(age_ms: int, fresh: bool) -> None:  # noqa: FBT001
    backend, lifetimes = MemoryBackend(), Lifetimes(default=FRESH_MS / 1000, jitter=0)
    writer = JobCache(backend, lifetimes=lifetimes, clock_ms=lambda: STORED_MS)
    await writer.read("document", load)
    await writer.get_or_load("value", load_value, ttl=FRESH_MS / 1000, serializer=JSON)
    entry = await backend.get("document")
    assert entry is not None

    reader = JobCache(backend, clock_ms=lambda: STORED_MS + age_ms)
    reads, storing = reader.reads, Storing(JSON, FRESH_MS / 1000)
    assert {
        "the rule": reader._clock.is_fresh(entry),
        "in this process": reads.peek("document", load) is not None,
        "in a store": reads._hit("document", load, 0, time.perf_counter_ns(), entry) is not None,
        "a value": not isinstance(reader.values.peek("value", storing), Absent),
    } == dict.fromkeys(("the rule", "in this process", "in a store", "a value"), fresh)
    await reader.aclose()
    await writer.aclose()
