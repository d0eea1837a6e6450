"""Schedules of readers and writers, played step by step on a real backend.

Each schedule below is the shortest one that goes wrong if one guard of the protocol is missing. An
exhaustive search over readers, writers, deaths and evictions has printed them. A backend that keeps
the contract survives all of them.

    Rn miss / load / publish / return    a reader finds nothing, asks the source, publishes, answers
    Rn hit                             a reader is served from the cache
    Wn fence / commit / publish / ack    a writer's steps;  Wn dies: it takes no further step
    evict                              the cell is lost, as it may be at any time
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobcache.lifetimes import Lifetimes
from jobcache.protocol.document import Document
from jobcache.testing.invariants import Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.entry import Entry

GUARDS = {
    "writers fence before they commit": (
        "W0 fence -> R0 miss -> R0 load -> W0 commit -> W0 dies -> R0 publish -> R0 return"
    ),
    "a fence holds every writer's token": (
        "W0 fence -> W1 fence -> W1 commit -> W0 commit -> W0 dies -> W1 publish -> W1 ack"
    ),
    "a publish raises the fence's version": (
        "W0 fence -> W0 commit -> W1 fence -> W1 commit -> W1 publish -> W0 publish"
        " -> W0 ack -> W1 ack"
    ),
    "an empty cell stores nothing": (
        "W0 fence -> R0 miss -> R0 load -> W0 commit -> W0 dies -> evict -> R0 publish -> R0 return"
    ),
    "a publish removes others' leases": (
        "W0 fence -> evict -> R0 miss -> R0 load -> W0 commit -> W0 publish -> W0 ack -> R0 publish"
        " -> R0 return -> R1 hit"
    ),
    "a publish removes an older entry": (
        "W0 fence -> evict -> W1 fence -> W1 commit -> W0 commit -> W1 publish -> W0 publish"
        " -> W0 ack"
        " -> R0 hit"
    ),
}
"""By the guard whose absence each one catches."""


@dataclass
class _Simulator:
    database: int = 1
    visible: int = 1
    fence_lost: bool = False
    min_versions: dict[str, int] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)
    committed: dict[str, int] = field(default_factory=dict)
    at_work: set[str] = field(default_factory=set)


async def play(
    backend: CacheBackend, key: str, schedule: str, evict: Callable[[str], Awaitable[None]]
) -> None:
    """Play one schedule on the cell `key`, which must be empty.

    Args:
        backend: the backend to play it on.
        key: whose cell.
        schedule: steps joined by " -> ".
        evict: makes the backend lose a key's cell, whatever it holds.

    Raises:
        Violation: a read returned less than was visible when it began, or the cell ends up with
            an older entry than was committed although no writer is left that could replace it.
    """
    simulator = _Simulator()
    for step in schedule.split(" -> "):
        if step == "evict":
            simulator.fence_lost |= bool(simulator.at_work)
            await evict(key)
        elif step.startswith("R"):
            await _read(backend, key, simulator, *step.split())
        else:
            await _write(backend, key, simulator, *step.split())
    entry = await backend.get(key)
    hidden = entry is not None and entry.version < simulator.database
    if entry is not None and hidden and not simulator.at_work and not simulator.fence_lost:
        raise Violation(f"v{entry.version} stays in the cache and hides v{simulator.database}")


async def _read(
    backend: CacheBackend, key: str, simulator: _Simulator, reader: str, step: str
) -> None:
    if step in {"hit", "miss"}:
        simulator.min_versions[reader] = simulator.visible
        entry = await backend.get(key)
        if entry is not None:
            _returned(simulator, reader, entry.version)
        elif step == "miss":
            await backend.lease(key, reader)
    elif step == "load":
        simulator.loaded[reader] = simulator.database
    elif step == "publish":
        await backend.publish(key, reader, entry_of(simulator.loaded[reader]))
    elif step == "return":
        _returned(simulator, reader, simulator.loaded[reader])
    else:
        raise ValueError(f"no such step: {reader} {step}")


async def _write(
    backend: CacheBackend, key: str, simulator: _Simulator, writer: str, step: str
) -> None:
    if step == "fence":
        simulator.at_work.add(writer)
        await backend.fence(key, writer)
    elif step == "commit":
        simulator.database += 1
        simulator.committed[writer] = simulator.database
    elif step == "publish":
        await backend.publish(key, writer, entry_of(simulator.committed[writer]))
    elif step == "ack":
        simulator.at_work.discard(writer)
        simulator.visible = max(simulator.visible, simulator.committed[writer])
    elif step == "dies":
        simulator.at_work.discard(writer)
    else:
        raise ValueError(f"no such step: {writer} {step}")


def _returned(simulator: _Simulator, reader: str, version: int) -> None:
    min_version = simulator.min_versions[reader]
    if version < min_version:
        raise Violation(
            f"{reader} got v{version}, although v{min_version} was visible when it began"
        )
    simulator.visible = max(simulator.visible, version)


def entry_of(version: int, *, body: bytes = b"{}", owner: str = "acme") -> Entry:
    """Return an entry with a long lifetime, for tests."""
    lifetimes = Lifetimes(jitter=0.0)
    document = Document(version=version, owner=owner, body=body, status="moving", poll_after=2)
    return lifetimes.entry(document, 1_700_000_000_000)
