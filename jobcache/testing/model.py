"""The protocol of one cell as pure functions: the reference that backends are compared with.

Each function takes what the cell holds and returns what it holds afterwards, with the answer that
the operation gives. A cell is None when empty, an `int` (the version) when it holds an entry, else
a `Lease` or a `Fence`. Time is left out: a lifetime's end is an eviction, which may come any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.protocol.backend import Offered, Standing
from jobcache.protocol.codec import Fence, Lease

if TYPE_CHECKING:
    Cell = int | Lease | Fence | None


def take_lease(cell: Cell, ticket: str) -> tuple[Cell, int | Standing]:
    """An empty cell becomes the ticket's lease; anything else stays."""
    if cell is None or cell == Lease(ticket):
        return Lease(ticket), Standing.NOTHING
    if isinstance(cell, Fence):
        return cell, Standing.FENCE
    return cell, Standing.LEASE if isinstance(cell, Lease) else cell


def raise_fence(cell: Cell, ticket: str) -> Cell:
    """Anything becomes a fence; a standing one takes the ticket in."""
    if isinstance(cell, Fence):
        return Fence(cell.floor, cell.tickets | {ticket})
    return Fence(cell if isinstance(cell, int) else 0, frozenset({ticket}))


def offer(cell: Cell, ticket: str, version: int) -> tuple[Cell, Offered]:
    """A committed version: stored over its own lease, or as the last one out of the fence."""
    if cell is None:
        return None, Offered.NOTHING
    if isinstance(cell, Lease):
        return (version, Offered.STORED) if cell.ticket == ticket else (None, Offered.REMOVED)
    if isinstance(cell, Fence):
        floor, others = max(cell.floor, version), cell.tickets - {ticket}
        if others:
            return Fence(floor, others), Offered.FENCED
        return (version, Offered.STORED) if version >= floor else (None, Offered.REMOVED)
    if cell < version:
        return None, Offered.REMOVED
    return cell, Offered.PROLONGED if cell == version else Offered.KEPT


def withdraw(cell: Cell, ticket: str) -> tuple[Cell, Offered]:
    """Nothing was committed: the ticket's lease goes, or the ticket leaves the fence."""
    if cell is None:
        return None, Offered.NOTHING
    if isinstance(cell, Fence):
        others = cell.tickets - {ticket}
        return (Fence(cell.floor, others), Offered.FENCED) if others else (None, Offered.REMOVED)
    return (None, Offered.REMOVED) if cell == Lease(ticket) else (cell, Offered.KEPT)


def purge(cell: Cell) -> tuple[Cell, int]:
    """Entries and leases go; a fence stays."""
    if cell is None or isinstance(cell, Fence):
        return cell, 0
    return None, 1
