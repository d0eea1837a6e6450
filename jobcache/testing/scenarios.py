"""Schedules of readers and writers, played step by step on a real backend.

Each schedule below is the shortest one that goes wrong if one guard of the protocol is missing. An
exhaustive search over readers, writers, deaths and evictions has printed them. A backend that keeps
the contract survives all of them.

    Rn miss / load / publish / return    a reader finds nothing, asks the source, publishes, answers
    Rn hit                             a reader is served from the cache
    Wn fence / commit / publish / ack    a writer's steps;  Wn dies: it takes no further step
    evict                              the cell is lost, as it may be at any time

Documents without a version are changed by `Wn commit` and announced by a purge:

    Rn expired                         a reader finds an entry that is past its freshness
    purge                              all commits so far are acknowledged after that
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jobcache.lifetimes import Lifetimes
from jobcache.protocol.document import Document
from jobcache.protocol.entry import UNVERSIONED
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

UNVERSIONED_GUARDS = {
    "an unversioned publish never replaces the entry of another load": (
        "R0 miss -> R0 load -> W0 commit -> purge -> R1 miss -> R1 load -> R1 publish -> R1 return"
        " -> R0 publish -> R0 return -> R2 hit"
    ),
    "an unversioned publish is not stored in an empty cell": (
        "R0 miss -> R0 load -> W0 commit -> purge -> R0 publish -> R0 return -> R1 hit"
    ),
    "an unversioned publish replaces only the entry that its reader saw": (
        "R0 miss -> R0 load -> R0 publish -> R0 return -> R1 expired -> R1 load -> W0 commit"
        " -> purge -> R2 miss -> R2 load -> R2 publish -> R2 return -> R1 publish -> R1 return"
        " -> R3 hit"
    ),
    "an unversioned publish removes the entry of another load": (
        "R0 miss -> R0 load -> W0 commit -> R1 miss -> R1 load -> R0 publish -> R0 return"
        " -> R1 publish -> R1 return -> R2 hit"
    ),
    "an unversioned publish removes the leases of others": (
        "R0 miss -> R0 load -> W0 commit -> R1 miss -> R1 load -> R1 publish -> R1 return"
        " -> R0 publish -> R0 return -> R2 hit"
    ),
}
"""The same for documents without a version. In the first one, entries with a constant version would
count as the same version: prolonged, and the old one is served."""


@dataclass
class _Simulator:
    database: int = 1
    visible: int = 1
    fence_lost: bool = False
    min_versions: dict[str, int] = field(default_factory=dict)
    seen_tokens: dict[str, str] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)
    committed: dict[str, int] = field(default_factory=dict)
    at_work: set[str] = field(default_factory=set)


async def play(
    backend: CacheBackend,
    key: str,
    schedule: str,
    evict: Callable[[str], Awaitable[None]],
    *,
    unversioned: bool = False,
    committed: Callable[[str, str], Awaitable[None]] | None = None,
) -> None:
    """Play one schedule on the cell `key`, which must be empty.

    Args:
        backend: the backend to play it on.
        key: whose cell.
        schedule: steps joined by " -> ".
        evict: makes the backend lose a key's cell, whatever it holds.
        unversioned: whether readers publish entries without a version.
        committed: called with the key and the writer at each commit, if the transaction tells the
            backend of it.

    Raises:
        Violation: a read returned less than was visible when it began, or the cell ends up with
            an older entry than was committed although no writer is left that could replace it.
    """
    simulator = _Simulator()
    for step in schedule.split(" -> "):
        if step == "evict":
            simulator.fence_lost |= bool(simulator.at_work)
            await evict(key)
        elif step == "purge":
            await backend.purge([key])
            simulator.visible = simulator.database
        elif step.startswith("R"):
            await _read(backend, key, simulator, *step.split(), unversioned=unversioned)
        else:
            await _write(backend, key, simulator, *step.split())
            if committed is not None and step.endswith(" commit"):
                await committed(key, step.split()[0])
    entry = await backend.get(key)
    held = simulator.database if entry is None else version_in(entry)
    if held < simulator.database and not simulator.at_work and not simulator.fence_lost:
        raise Violation(f"v{held} stays in the cache and hides v{simulator.database}")


async def _read(
    backend: CacheBackend,
    key: str,
    simulator: _Simulator,
    reader: str,
    step: str,
    *,
    unversioned: bool,
) -> None:
    if step in {"hit", "miss", "expired"}:
        simulator.min_versions[reader] = simulator.visible
        entry = await backend.get(key)
        if step == "expired":
            simulator.seen_tokens[reader] = reader if entry is None else entry.token
        elif entry is not None:
            _returned(simulator, reader, version_in(entry))
        elif step == "miss":
            await backend.lease(key, reader)
    elif step == "load":
        simulator.loaded[reader] = simulator.database
    elif step == "publish":
        version = simulator.loaded[reader]
        entry = unversioned_entry_of(reader, version) if unversioned else entry_of(version)
        await backend.publish(key, simulator.seen_tokens.get(reader, reader), entry)
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


def unversioned_entry_of(token: str, version: int = 1) -> Entry:
    """Return the unversioned entry of a load, for tests. Its body is a number, its version there.

    Args:
        token: of the load.
        version: the number of changes that the load has seen.
    """
    entry = entry_of(1, body=b"%d" % version, owner="")
    return replace(
        entry, version=UNVERSIONED, status="", poll_after=None, keep_ms=60_000, token=token
    )


def version_in(entry: Entry) -> int:
    """Return the version that an entry for tests stands for."""
    return int(entry.encoded_body) if entry.version == UNVERSIONED else entry.version
