"""A source of truth for synchronous caches, which remembers who asked it, and from where."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jobcache import CacheOutcome, CacheSettings, Document
from jobcache.sync import JobCache
from tests.jobcache.bench import document

MEMORY = CacheSettings(backend="memory")


class Source:
    """Versions by key.

    Attributes:
        threads: in which something was loaded, or a transaction begun or ended.
        ends: with what each transaction ended; None for a commit.
        open: how many transactions have not ended.
    """

    def __init__(self, **versions: int) -> None:
        self.versions = versions
        self.loads = 0
        self.threads: set[int] = set()
        self.ends: list[type[BaseException] | None] = []
        self.open = 0

    def load(self, key: str = "k") -> Document | None:
        self.loads += 1
        self.threads.add(threading.get_ident())
        version = self.versions.get(key)
        return None if version is None else document(version)

    @contextmanager
    def transaction(self, key: str = "k") -> Iterator[int]:
        self.threads.add(threading.get_ident())
        version = self.versions.get(key, 0) + 1
        self.open += 1
        try:
            yield version
        except BaseException as error:
            self.ends.append(type(error))
            raise
        else:
            self.ends.append(None)
            self.versions[key] = version
        finally:
            self.open -= 1
            self.threads.add(threading.get_ident())


def write(cache: JobCache, source: Source, key: str = "k") -> None:
    with cache.write(source.transaction(key), key) as writing:
        writing.publish(key, document(writing.transaction))


def read(cache: JobCache, source: Source, key: str = "k") -> tuple[int, CacheOutcome]:
    answer = cache.read(key, lambda: source.load(key))
    return answer.entry.version, answer.outcome
