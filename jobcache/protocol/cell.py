"""The transition table of a cell, as pure functions: the specification of every backend.

Each function takes what a cell holds and the arguments of one operation. It returns a `CellStep`:
what the cell holds afterwards, what the operation returns, and what the store has to do. Nothing
else in Python decides what becomes of a cell:

- `memory` and the stores with compare-and-set run these functions;
- the scripts on a Redis server do the same in Lua, and tests compare them with these functions;
- the simulator runs these functions beside the backend that it explores.

Time is left out. An expired cell is an empty cell, and a backend has to see to that. The only trace
of time is `Effect`, which tells a cell that keeps its deadline from one that is given a new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from jobcache.errors import UnreadableCell
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import UNVERSIONED, Entry

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Lease:
    """A cell in which one reader has noted that it is loading the key."""

    token: str


@dataclass(frozen=True, slots=True)
class Fence:
    """A cell in which writers have noted that they are about to commit.

    Attributes:
        fence_version: the highest version that the fence has seen. Nothing below it is stored.
        tokens: of the writers that have not published yet.
    """

    fence_version: int
    tokens: frozenset[str]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A cell that no backend of this version wrote. It may hide any version.

    Attributes:
        reason: why it cannot be read, for people.
    """

    reason: str


Cell = Entry | Lease | Fence | Unreadable | None
"""What a cell holds; None if it is empty."""


class Effect(Enum):
    """What a store has to do to carry out a step."""

    NONE = "none"
    """Leave the cell and its deadline as they are."""
    KEEP_DEADLINE = "keep deadline"
    """Replace what the cell holds. Its deadline stays."""
    NEW_DEADLINE = "new deadline"
    """Replace what the cell holds, even by an equal value. Its lifetime starts anew."""
    DELETE = "delete"
    """Empty the cell."""


class CellStep(NamedTuple, Generic[Result]):
    """What one operation makes of a cell.

    Attributes:
        cell: what the cell holds afterwards.
        result: what the operation returns.
        effect: what the store has to do. It does not follow from `cell`: the very entry that a
            cell holds may be published again, which starts its lifetime anew.
    """

    cell: Cell
    result: Result
    effect: Effect


def lease(cell: Cell, token: str) -> CellStep[Entry | LeaseResult]:
    """Take the lease of an empty cell; leave any other cell and return its content.

    Raises:
        UnreadableCell: the cell cannot be read. It stays as it is.
    """
    if cell is None:
        return CellStep(Lease(token), LeaseResult.ACQUIRED, Effect.NEW_DEADLINE)
    if isinstance(cell, Entry):
        return CellStep(cell, cell, Effect.NONE)
    if isinstance(cell, Fence):
        return CellStep(cell, LeaseResult.FENCED, Effect.NONE)
    if isinstance(cell, Lease):
        found = LeaseResult.ACQUIRED if cell.token == token else LeaseResult.HELD
        return CellStep(cell, found, Effect.NONE)
    raise UnreadableCell(cell.reason)


def fence(cell: Cell, token: str) -> CellStep[None]:
    """Add the token to a fence; replace anything else by a fence with this one token."""
    if isinstance(cell, Fence):
        # A writer that died must not hold up a busy key for ever: the fence keeps its deadline.
        fenced = Fence(cell.fence_version, cell.tokens | {token})
        return CellStep(fenced, None, Effect.KEEP_DEADLINE)
    version = max(cell.version, 0) if isinstance(cell, Entry) else 0
    return CellStep(Fence(version, frozenset({token})), None, Effect.NEW_DEADLINE)


def publish(cell: Cell, token: str, entry: Entry | None) -> CellStep[PublishResult]:
    """Publish a committed version, or withdraw: with None, nothing was committed."""
    if cell is None:
        return CellStep(None, PublishResult.NOTHING, Effect.NONE)
    if isinstance(cell, Entry):
        return _publish_over_entry(cell, token, entry)
    if isinstance(cell, Lease):
        return _publish_over_lease(cell, token, entry)
    if isinstance(cell, Fence):
        return _leave_fence(cell, token, entry)
    return _removed()  # unreadable: it may hold an older entry


def purge(cell: Cell) -> CellStep[bool]:
    """Empty the cell, but for a fence, which stays; return whether that dropped anything."""
    if cell is None or isinstance(cell, Fence):
        return CellStep(cell, False, Effect.NONE)  # noqa: FBT003 - the result
    return CellStep(None, True, Effect.DELETE)  # noqa: FBT003 - the result


def _publish_over_entry(cell: Entry, token: str, entry: Entry | None) -> CellStep[PublishResult]:
    if entry is None:
        return _kept(cell)
    if UNVERSIONED in {cell.version, entry.version}:
        return _publish_unversioned_over_entry(cell, token, entry)
    if cell.version > entry.version:
        return _kept(cell)
    if cell.version == entry.version:
        return _store(entry, PublishResult.PROLONGED)
    return _removed()  # and not replaced: by now an even newer version may be committed


def _publish_unversioned_over_entry(
    cell: Entry, token: str, entry: Entry
) -> CellStep[PublishResult]:
    """Publish where one of the two has no version, so nobody knows which of them is newer.

    The entry is never prolonged, and replaces another one only if its reader saw that one before
    it began to load. Such a reader publishes with the token of the entry that it saw: this entry is
    its lease. A purge removes it as it removes a lease:

        R0 leases, loads v1; v2 is committed; purge; R1 leases, stores v2; R0 publishes v1
    """
    both = cell.version == entry.version
    if both and entry.keep_ms and cell.token == entry.token:
        return _kept(cell)  # the same load: its publish is repeated
    if both and cell.token == token:
        return _store(entry, PublishResult.STORED)
    return _removed()  # it may be older than what the reader returns


def _publish_over_lease(cell: Lease, token: str, entry: Entry | None) -> CellStep[PublishResult]:
    if cell.token == token:
        return _store(entry, PublishResult.STORED)
    # The holder of this lease may have loaded an older version than `entry`.
    return _kept(cell) if entry is None else _removed()


def _leave_fence(cell: Fence, token: str, entry: Entry | None) -> CellStep[PublishResult]:
    version = cell.fence_version if entry is None else max(cell.fence_version, entry.version)
    others = cell.tokens - {token}
    if others:
        return CellStep(Fence(version, others), PublishResult.FENCED, Effect.KEEP_DEADLINE)
    if entry is None or entry.version < version:
        return _removed()
    return _store(entry, PublishResult.STORED)


def _store(entry: Entry | None, result: PublishResult) -> CellStep[PublishResult]:
    if entry is None or entry.keep_ms == 0:
        return _removed()
    return CellStep(entry, result, Effect.NEW_DEADLINE)


def _kept(cell: Cell) -> CellStep[PublishResult]:
    return CellStep(cell, PublishResult.KEPT, Effect.NONE)


def _removed() -> CellStep[PublishResult]:
    return CellStep(None, PublishResult.REMOVED, Effect.DELETE)
