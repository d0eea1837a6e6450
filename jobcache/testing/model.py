"""The protocol of one cell as pure functions: the reference that backends are compared with.

Each function takes what the cell holds and returns what it holds afterwards, with the answer that
the operation gives. A cell is None when empty, an `int` (the version) when it holds an entry, else
a `Lease` or a `Fence`. Time is left out: a lifetime's end is an eviction, which may come any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.codec import Fence, Lease

if TYPE_CHECKING:
    Cell = int | Lease | Fence | None


def take_lease(cell: Cell, token: str) -> tuple[Cell, int | LeaseResult]:
    """An empty cell becomes the token's lease; anything else stays."""
    if cell is None or cell == Lease(token):
        return Lease(token), LeaseResult.ACQUIRED
    if isinstance(cell, Fence):
        return cell, LeaseResult.FENCED
    return cell, LeaseResult.HELD if isinstance(cell, Lease) else cell


def raise_fence(cell: Cell, token: str) -> Cell:
    """Anything becomes a fence; a standing one takes the token in."""
    if isinstance(cell, Fence):
        return Fence(cell.fence_version, cell.tokens | {token})
    return Fence(cell if isinstance(cell, int) else 0, frozenset({token}))


def publish(cell: Cell, token: str, version: int) -> tuple[Cell, PublishResult]:
    """A committed version: stored over its own lease, or as the last one out of the fence."""
    if cell is None:
        return None, PublishResult.NOTHING
    if isinstance(cell, Lease):
        return (
            (version, PublishResult.STORED)
            if cell.token == token
            else (None, PublishResult.REMOVED)
        )
    if isinstance(cell, Fence):
        fence_version, others = max(cell.fence_version, version), cell.tokens - {token}
        if others:
            return Fence(fence_version, others), PublishResult.FENCED
        return (
            (version, PublishResult.STORED)
            if version >= fence_version
            else (None, PublishResult.REMOVED)
        )
    if cell < version:
        return None, PublishResult.REMOVED
    return cell, PublishResult.PROLONGED if cell == version else PublishResult.KEPT


def withdraw(cell: Cell, token: str) -> tuple[Cell, PublishResult]:
    """Nothing was committed: the token's lease goes, or the token leaves the fence."""
    if cell is None:
        return None, PublishResult.NOTHING
    if isinstance(cell, Fence):
        others = cell.tokens - {token}
        return (
            (Fence(cell.fence_version, others), PublishResult.FENCED)
            if others
            else (None, PublishResult.REMOVED)
        )
    return (None, PublishResult.REMOVED) if cell == Lease(token) else (cell, PublishResult.KEPT)


def purge(cell: Cell) -> tuple[Cell, int]:
    """Entries and leases go; a fence stays."""
    if cell is None or isinstance(cell, Fence):
        return cell, 0
    return None, 1
