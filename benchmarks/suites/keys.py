"""The cost of a hit and the memory of an entry, by the number of keys.

    python -m benchmarks.suites.keys --counts 100,1000000

It runs in its own process and prints a section of the results as JSON, because a million entries
would affect later measurements.

Hits are measured in two ways. With the same hundred keys, only the work could grow with the number
of keys. With all keys in random order, misses of the processor's caches grow too, as in every
dictionary; a dictionary is measured beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import uvloop

from app.http.garbage_collection import tune_garbage_collection
from app.jobs.cache_keys import progress_key
from benchmarks.interleaving import Subject, cost, take_turns
from benchmarks.process_cpu import resident
from benchmarks.results import Section
from benchmarks.suites.lookups import BODY
from jobcache import CacheOutcome, Document, JobCache, Lifetimes
from jobcache.backends.memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

HOT = "JobCache, the same 100 keys"
ALL = "JobCache, all keys by chance"
HOT_DICTIONARY = "dictionary, the same 100 keys"
ALL_DICTIONARY = "dictionary, all keys by chance"
COUNTS = (100, 1_000, 10_000, 100_000, 1_000_000)
BYTES_PER_ENTRY = "bytes_per_entry"
BYTES_OF_BODY = "bytes_of_its_body"
PAUSES = ("eviction", "expiry")
PAUSE = "longest_step_during_{}_ms"
COMPUTED = "longest_step_during_{}_computing_ms"
COLLECTION = "one_full_garbage_collection_ms"

_HOT = 100
_KEEP = 3600.0  # seconds
_STEPS = 20_000  # during eviction, and during expiry


class Clock:
    """A monotonic clock that can be set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return time.monotonic() + self.ahead


async def measured(counts: Sequence[int], *, operations: int, turns: int) -> Section:
    """The section. The largest of `counts` is also where eviction and expiry are looked at."""
    chance = random.Random(1)  # noqa: S311 - an order, not a secret
    subjects: list[Subject] = []
    facts: dict[str, float] = {}
    clock = Clock()
    for count in sorted(counts):
        gc.collect()
        before = resident(os.getpid())
        backend = MemoryBackend(max_entries=count, max_bytes=1 << 40, clock=clock)
        cache = JobCache(backend, lifetimes=Lifetimes(default=_KEEP))
        await _fill(backend, cache, range(count))
        facts[BYTES_PER_ENTRY] = (resident(os.getpid()) - before) / count  # of the largest, at last
        facts[BYTES_OF_BODY] = float(len(BODY))
        keys = [progress_key(number) for number in range(count)]
        plain = dict.fromkeys(keys, BODY)
        hot = [keys[number % min(_HOT, count)] for number in range(operations)]
        # keys as they come from requests: new strings, not the ones that are stored
        wide = [progress_key(chance.randrange(count)) for _ in range(operations)]
        for name, kind, work in (
            (HOT, "ours", _reads(cache, hot)),
            (ALL, "ours", _reads(cache, wide)),
            (HOT_DICTIONARY, "limit", _plain(plain, hot)),
            (ALL_DICTIONARY, "limit", _plain(plain, wide)),
        ):
            once = cost(operations, work)
            subjects.append(Subject(name, kind, "", once, count))  # type: ignore[arg-type]
    gc.collect()
    gc.freeze()  # or the collection before each turn would take longest where most is held
    series = await take_turns(subjects, turns)
    gc.unfreeze()
    largest = max(counts)
    facts |= await _pauses(backend, cache, clock, largest)
    return Section(
        "keys",
        "The cost of a hit by the number of keys",
        f"{operations} hits in one coroutine, of entries with bodies of {len(BODY)} bytes",
        "µs",
        more_is_better=False,
        scale="keys",
        series=series,
        facts=facts,
    )


async def _fill(backend: MemoryBackend, cache: JobCache, numbers: range) -> None:
    now_ms = time.time_ns() // 1_000_000
    for number in numbers:
        key = progress_key(number)
        # each entry with a body of its own, as it would come from a database
        document = Document(7, "acme", bytes(bytearray(BODY)), "rendering", 6)
        await backend.lease(key, "t")
        await backend.publish(key, "t", cache.lifetimes.entry(document, now_ms))


async def _never() -> Document:
    raise AssertionError("a key was not cached")


def _reads(cache: JobCache, keys: Sequence[str]) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        for key in keys:
            answer = await cache.read(key, _never)
        assert answer.outcome is CacheOutcome.HIT

    return work


def _plain(values: dict[str, bytes], keys: Sequence[str]) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        for key in keys:
            found = values.get(key)
        assert found is not None

    return work


async def _pauses(
    backend: MemoryBackend, cache: JobCache, clock: Clock, count: int
) -> dict[str, float]:
    """The longest that the loop was kept from going on, in milliseconds.

    By the wall clock, and by the processor time of it: the former is longer where another process
    had the processor meanwhile.
    """
    facts = {}
    for kind in PAUSES:
        if kind == "expiry":
            clock.ahead = 2 * _KEEP
        longest = computing = 0.0
        for number in range(_STEPS):
            began, computed = time.perf_counter_ns(), time.thread_time_ns()
            # One step of a service: what is new is loaded and stored, then the loop goes on. In a
            # full cache that drops an entry; where all have expired, it meets them.
            key = count + number if kind == "eviction" else number * 7
            await _fill(backend, cache, range(key, key + 1))
            await backend.get(progress_key(number))
            longest = max(longest, (time.perf_counter_ns() - began) / 1e6)
            computing = max(computing, (time.thread_time_ns() - computed) / 1e6)
            await asyncio.sleep(0)
        facts[PAUSE.format(kind)] = longest
        facts[COMPUTED.format(kind)] = computing
    began = time.perf_counter_ns()
    gc.collect()
    facts[COLLECTION] = (time.perf_counter_ns() - began) / 1e6
    return facts


def main() -> None:
    """Measure, and print the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites.keys", description=__doc__)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    tune_garbage_collection()  # as the service does
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        work = measured(counts, operations=options.operations, turns=options.turns)
        json.dump(asdict(runner.run(work)), sys.stdout)


if __name__ == "__main__":
    main()
