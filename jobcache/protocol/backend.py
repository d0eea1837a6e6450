"""The contract of a backend: where `JobCache` keeps its entries.

A backend keeps one *cell* for each key. A cell is empty, or holds exactly one of these:

    a lease    one reader is loading this key from the source
    a fence    writers are about to commit, or have committed, a newer version
    an entry   a committed version, safe to serve

Only the operations of `CacheBackend` change a cell. `jobcache.protocol.cell` contains the
transitions: what each operation makes of a cell. The rest of the contract is here:

- Each operation is one atomic step for its key: a critical section in a process, a script on a
  server, a read and a compare-and-set that is tried again. No operation waits for another caller.
- A backend may lose any cell at any time, by eviction, expiry or restart. Nothing old is served
  then. What a lost fence can hide is bounded by the lifetime of an entry.
- Leases, fences and entries expire. An expired cell is an empty cell.
- Each operation can be repeated with the same arguments without harm. So a client library may
  retry an operation whose outcome it does not know.
- A backend that fails raises `CacheError` and nothing else.

Versions come from the source, and are the only order that is trusted: positive integers below
2**53, raised by every committed change, in commit order. Version 0 says that the source knows no
such document. A document of which nobody counts the versions is kept in an *unversioned* entry
(`jobcache.protocol.entry`). Tokens are unique strings of ASCII letters and digits, made anew for
every load and every write.

`docs/coherence.md` explains why this is enough. A new backend shows that it keeps the contract by
passing `jobcache.testing.conformance`. `jobcache.protocol.capabilities` has the optional abilities.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobcache.protocol.entry import Entry


class LeaseResult(Enum):
    """The result of `lease` if the cell holds no entry."""

    ACQUIRED = "nothing"
    """The cell was empty or held the caller's lease, and holds the caller's lease now."""
    HELD = "lease"
    """Another reader is loading this key."""
    FENCED = "fence"
    """Writers are about to commit. A document that is loaded now must not be stored."""


class PublishResult(Enum):
    """The result of `publish`."""

    STORED = "stored"
    """The cell holds the entry, which will be served."""
    PROLONGED = "prolonged"
    """The cell held this version already; its lifetime starts anew."""
    KEPT = "kept"
    """The cell is unchanged: it holds a newer version, or there is nothing to withdraw."""
    FENCED = "fenced"
    """Other writers have not left the fence; the last of them decides."""
    REMOVED = "removed"
    """The cell is empty now: its content was withdrawn, or may have been older."""
    NOTHING = "nothing"
    """The cell was empty and stays empty: the token's lease or fence was lost."""


class CacheBackend(Protocol):
    """A store of cells. The docstring of the module says what holds for every operation."""

    @property
    def name(self) -> str:
        """A short name, such as "memory" or "redis"."""

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None if the cell is empty or holds something else.

        Raises:
            UnreadableCell: the cell is damaged, or has an unknown format. A backend that cannot
                know that here may return None; `lease` raises the error then.
            CacheUnavailable: the store did not answer.
        """

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`, without the keys that have none or an unreadable one.

        Each cell is read atomically; the batch as a whole is not.

        Raises:
            CacheUnavailable: the store did not answer.
        """

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take the lease of an empty cell; leave any other cell and return its content.

        A lease shows other readers that one of them is loading the key, and lets its holder store
        the loaded entry. It is lost after a few seconds, or after the time that was given to
        `SupportsLeaseTime`.

        Raises:
            UnreadableCell: as for `get`; the cell stays as it is.
            CacheUnavailable: the store did not answer; the lease may have been taken.
        """

    async def fence(self, key: str, token: str) -> None:
        """Serve nothing from this cell until every token has left the fence.

        A writer fences before it commits. If another writer's fence stands already, the token
        enters that fence, which keeps its deadline: otherwise a writer that died could hold up a
        busy key for ever.

        Raises:
            CacheUnavailable: the store did not answer; the fence may stand.
        """

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish a committed version, or withdraw: with None, nothing was committed.

        The entry is stored only over the lease of `token`, or by the last token that leaves a
        fence, and never over a newer version. In all other cases it only removes content that may
        be older.

        An unversioned entry is stored only over the lease of `token`, or over the unversioned entry
        whose own token is `token`: the reader found that entry before it began to load. It is never
        compared, and never prolonged. It removes every other entry, for nobody knows which of them
        is older, and is removed by every other publish. So a purge, which removes leases as well,
        is enough to keep the result of an older load out.

        An entry with `keep_ms` 0 removes in the same way, and is never stored. An entry that the
        store has no room for is not stored either; the result is then `REMOVED`.

        Raises:
            CacheUnavailable: the store did not answer; the entry may have been published.
        """

    async def purge(self, keys: Sequence[str]) -> int:
        """Empty these cells, but for fences, and return how many cells were emptied.

        Leases end as well, so a load that began before the purge stores nothing. Each cell is
        emptied atomically; the batch as a whole is not.

        Raises:
            CacheUnavailable: the store did not answer; some cells may have been emptied.
        """

    async def aclose(self) -> None:
        """Release connections and memory. Safe to call twice."""
