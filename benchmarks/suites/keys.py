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
from contextlib import contextmanager
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
    from collections.abc import Awaitable, Callable, Iterator, Sequence

HOT = "JobCache, the same 100 keys"
ALL = "JobCache, all keys by chance"
HOT_DICTIONARY = "dictionary, the same 100 keys"
ALL_DICTIONARY = "dictionary, all keys by chance"
COUNTS = (100, 1_000, 10_000, 100_000, 1_000_000)
BYTES_PER_ENTRY = "bytes_per_entry"
BYTES_OF_BODY = "bytes_of_its_body"
PAUSES = ("growth", "eviction", "expiry", "clearing")
PAUSE = "longest_step_during_{}_ms"
COMPUTED = "longest_step_during_{}_computing_ms"
COLLECTION = "one_full_garbage_collection_ms"

_HOT = 100
_KEEP = 3600.0  # seconds
_STEPS = 20_000  # during eviction, during expiry, and after clearing


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
    clock, pauses = Clock(), _Pauses()
    for count in sorted(counts):
        gc.collect()
        before = resident(os.getpid())
        backend = MemoryBackend(max_entries=count, max_bytes=1 << 40, clock=clock)
        cache = JobCache(backend, lifetimes=Lifetimes(default=_KEEP))
        gc.disable()  # its pauses belong to the process as a whole: one is measured below
        for number in range(count):
            with pauses.step("growth"):
                await _fill(backend, cache, number)
        gc.enable()
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
    facts[COLLECTION] = _full_collection()
    gc.disable()
    await _pauses(backend, cache, clock, largest, pauses)
    gc.enable()
    facts |= pauses.facts
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


async def _fill(backend: MemoryBackend, cache: JobCache, number: int) -> None:
    key, now_ms = progress_key(number), time.time_ns() // 1_000_000
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


class _Pauses:
    """The longest that the loop was kept from going on, by kind, in milliseconds.

    By the wall clock, and by the processor time of it: the former is longer where another process
    had the processor meanwhile.
    """

    def __init__(self) -> None:
        self.facts: dict[str, float] = {}

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        """Measure one step of the loop."""
        began, computed = time.perf_counter_ns(), time.thread_time_ns()
        yield
        computing = (time.thread_time_ns() - computed) / 1e6
        passed = (time.perf_counter_ns() - began) / 1e6
        for fact, took in ((PAUSE, passed), (COMPUTED, computing)):
            name = fact.format(kind)
            self.facts[name] = max(self.facts.get(name, 0.0), took)


async def _pauses(
    backend: MemoryBackend, cache: JobCache, clock: Clock, count: int, pauses: _Pauses
) -> None:
    """Measure the steps of a service on a full backend, an expired one, and one just emptied."""
    for kind in PAUSES[1:]:
        if kind == "expiry":
            clock.ahead = 2 * _KEEP
        if kind == "clearing":
            with pauses.step(kind):
                await backend.purge_all()
        for number in range(_STEPS):
            # A new document is loaded and stored, and the loop goes on. A full cache evicts an
            # entry then; an expired one meets expired entries; an emptied one frees what it held.
            key = number * 7 if kind == "expiry" else count + number
            with pauses.step(kind):
                await _fill(backend, cache, key)
                await backend.get(progress_key(number))
            await asyncio.sleep(0)


def _full_collection() -> float:
    """Return what one full garbage collection takes, in milliseconds."""
    began = time.perf_counter_ns()
    gc.collect()
    return (time.perf_counter_ns() - began) / 1e6


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
