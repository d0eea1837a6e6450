"""Schedules of readers and writers, played step by step on a real backend.

The lines below are the shortest ways in which the protocol goes wrong when one of its guards is
missing, as an exhaustive search over readers, writers, deaths and evictions prints them. A backend
that keeps the contract survives each of them.

    Rn miss / load / offer / return    a reader finds nothing, asks the source, offers, answers
    Rn hit                             a reader is served from the cache
    Wn fence / commit / offer / ack    a writer's steps;  Wn dies: it takes no further step
    evict                              the cell is lost, as it may be at any time
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobcache.lifetimes import Lifetimes
from jobcache.protocol.backend import Document, Entry
from jobcache.testing.invariants import Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobcache.protocol.backend import CacheBackend

GUARDS = {
    "writers fence before they commit": (
        "W0 fence -> R0 miss -> R0 load -> W0 commit -> W0 dies -> R0 offer -> R0 return"
    ),
    "a fence holds every writer's ticket": (
        "W0 fence -> W1 fence -> W1 commit -> W0 commit -> W0 dies -> W1 offer -> W1 ack"
    ),
    "an offer raises the fence's floor": (
        "W0 fence -> W0 commit -> W1 fence -> W1 commit -> W1 offer -> W0 offer -> W0 ack -> W1 ack"
    ),
    "an empty cell stores nothing": (
        "W0 fence -> R0 miss -> R0 load -> W0 commit -> W0 dies -> evict -> R0 offer -> R0 return"
    ),
    "an offer removes others' leases": (
        "W0 fence -> evict -> R0 miss -> R0 load -> W0 commit -> W0 offer -> W0 ack -> R0 offer"
        " -> R0 return -> R1 hit"
    ),
    "an offer removes an older entry": (
        "W0 fence -> evict -> W1 fence -> W1 commit -> W0 commit -> W1 offer -> W0 offer -> W0 ack"
        " -> R0 hit"
    ),
}
"""By the guard whose absence each one catches."""


@dataclass
class _World:
    database: int = 1
    visible: int = 1
    fence_lost: bool = False
    floors: dict[str, int] = field(default_factory=dict)
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
    world = _World()
    for step in schedule.split(" -> "):
        if step == "evict":
            world.fence_lost |= bool(world.at_work)
            await evict(key)
        elif step.startswith("R"):
            await _read(backend, key, world, *step.split())
        else:
            await _write(backend, key, world, *step.split())
    entry = await backend.get(key)
    hidden = entry is not None and entry.version < world.database
    if entry is not None and hidden and not world.at_work and not world.fence_lost:
        raise Violation(f"v{entry.version} stays in the cache and hides v{world.database}")


async def _read(backend: CacheBackend, key: str, world: _World, reader: str, step: str) -> None:
    if step in {"hit", "miss"}:
        world.floors[reader] = world.visible
        entry = await backend.get(key)
        if entry is not None:
            _returned(world, reader, entry.version)
        elif step == "miss":
            await backend.lease(key, reader)
    elif step == "load":
        world.loaded[reader] = world.database
    elif step == "offer":
        await backend.offer(key, reader, entry_of(world.loaded[reader]))
    elif step == "return":
        _returned(world, reader, world.loaded[reader])
    else:
        raise ValueError(f"no such step: {reader} {step}")


async def _write(backend: CacheBackend, key: str, world: _World, writer: str, step: str) -> None:
    if step == "fence":
        world.at_work.add(writer)
        await backend.fence(key, writer)
    elif step == "commit":
        world.database += 1
        world.committed[writer] = world.database
    elif step == "offer":
        await backend.offer(key, writer, entry_of(world.committed[writer]))
    elif step == "ack":
        world.at_work.discard(writer)
        world.visible = max(world.visible, world.committed[writer])
    elif step == "dies":
        world.at_work.discard(writer)
    else:
        raise ValueError(f"no such step: {writer} {step}")


def _returned(world: _World, reader: str, version: int) -> None:
    floor = world.floors[reader]
    if version < floor:
        raise Violation(f"{reader} got v{version}, although v{floor} was visible when it began")
    world.visible = max(world.visible, version)


def entry_of(version: int, *, body: bytes = b"{}", owner: str = "acme") -> Entry:
    """An entry with a long life, for tests."""
    lifetimes = Lifetimes(jitter=0.0)
    document = Document(version=version, owner=owner, body=body, status="moving", poll_after=2)
    return lifetimes.entry(document, 1_700_000_000_000)
