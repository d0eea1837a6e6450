"""Which pairs of backend and database the tests of every run use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from zlib import crc32

import pytest

SERVICE_BACKENDS = ["null", "memory", "redis", "tiered"]
DATABASES = ["sqlite", "postgres"]


def impossible_pairs(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return tests of the backend `postgres` whose database is another one."""
    return {
        item
        for item in items
        if (callspec := getattr(item, "callspec", None)) is not None
        and "postgres" in (callspec.params.get(name) for name in ("shared", "backend_environment"))
        and "sqlite" in callspec.params.values()
    }


def spare_pairs(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return tests whose pair can be spared: backend and database know nothing of each other.

    A test with all pairs of some backends and both databases keeps one database for each backend,
    and the next test the other one. So each pair is run by about half of these tests.
    """
    pairs: dict[str, dict[pytest.Item, tuple[str, str]]] = defaultdict(dict)
    for item in items:
        callspec = getattr(item, "callspec", None)  # of parametrized functions only
        chosen = [] if callspec is None else list(callspec.params.values())
        backends = [value for value in chosen if value in SERVICE_BACKENDS]
        databases = [value for value in chosen if value in DATABASES]
        if backends and databases:
            pairs[item.nodeid.partition("[")[0]][item] = (backends[0], databases[0])
    spare: set[pytest.Item] = set()
    for test, found in pairs.items():
        if set(found.values()) == set(product({one for one, _ in found.values()}, DATABASES)):
            turn = crc32(test.encode())
            for item, (backend, database) in found.items():
                number = SERVICE_BACKENDS.index(backend) + DATABASES.index(database) + turn
                if number % len(DATABASES):
                    spare.add(item)
    return spare
