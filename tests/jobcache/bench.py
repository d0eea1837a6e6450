"""A cache with a source and a clock that a test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jobcache import CacheOutcome, Document, JobCache, Lifetimes, SourceUnavailable
from jobcache.testing.conformance import Subject


class Source:
    """A source of truth: versions by key, and a count of how often it was asked."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.loads = 0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, key: str) -> Document | None:
        self.loads += 1
        if self.away:
            raise SourceUnavailable("the source is away")
        version = self.versions.get(key)
        await self.gate.wait()
        return None if version is None else document(version)

    async def load_many(self, keys: Sequence[str]) -> Mapping[str, Document]:
        self.loads += 1
        if self.away:
            raise SourceUnavailable("the source is away")
        return {key: document(self.versions[key]) for key in keys if key in self.versions}


def document(version: int) -> Document:
    return Document(version, "acme", b'{"version":%d}' % version, "moving", 2)


class Transaction:
    """The caller's own transaction: raises a key's version in the source when it commits."""

    def __init__(self, source: Source, key: str, *, fails: str = "") -> None:
        self.source, self.key, self.fails = source, key, fails
        self.version = source.versions.get(key, 0) + 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            if self.fails == "before":
                raise ConnectionError("lost before the commit")
            self.source.versions[self.key] = self.version
            if self.fails == "after":
                raise ConnectionError("lost after the commit")


class Bench:
    """A cache on a backend, its source, and a wall clock that only the test moves."""

    def __init__(self, subject: Subject, **options: Any) -> None:
        self.subject = subject
        self.source = Source()
        self.now_ms = 1_700_000_000_000
        self.cache = JobCache(
            subject.backend,
            lifetimes=Lifetimes(default=30, gone=5, grace=300, jitter=0),
            clock_ms=lambda: self.now_ms,
            **options,
        )

    async def read(self, key: str, min_version: int = 0) -> tuple[int, CacheOutcome]:
        answer = await self.cache.read(key, lambda: self.source.load(key), min_version=min_version)
        return answer.entry.version, answer.outcome

    async def write(self, key: str, *, fails: str = "") -> int:
        transaction = Transaction(self.source, key, fails=fails)
        async with self.cache.write(transaction, key) as write:
            write.publish(key, document(write.transaction.version))
        return transaction.version

    async def elapse(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        await self.subject.elapse(seconds)
