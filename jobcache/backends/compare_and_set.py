"""A base class for stores that can read a cell and replace it if nobody has changed it since.

Many stores offer that under different names: `gets` and `cas` in memcached, an `UPDATE … WHERE` in
SQL, a condition in DynamoDB, a revision in etcd. A subclass implements `read`, `compare_and_set`
and `delete`; the seven operations of a `CacheBackend` are built from them:

    read the cell -> decide, with `jobcache.protocol.cell`, what becomes of it -> write it,
    if it is still as it was read; otherwise start again

So each operation is one atomic step for its key, although the store runs none of our code. The
decision is a pure function of the cell, and a write that was refused has changed nothing.

A cell carries its deadline in its bytes, as wall-clock time:

    <deadline in ms since the epoch>|<the cell, as in `jobcache.protocol.codec`>

Stores expire cells late, early by a second, or not at all. And with a time to live alone, each
write of a fence would give it a new deadline. So the time to live that is passed to the store only
lets it delete cells that are no longer read.

Rejected: a lock per key, in the store or in the process. Its holder may die or hang, and then all
other callers wait until the lock expires.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from jobcache.errors import CacheContended, CacheError, UnreadableCell
from jobcache.protocol import cell as transitions
from jobcache.protocol.cell import Effect, Fence, Lease, Unreadable
from jobcache.protocol.codec import Decoder, encode
from jobcache.protocol.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.protocol.backend import LeaseResult, PublishResult
    from jobcache.protocol.cell import Cell, CellStep

Token = TypeVar("Token")
Result = TypeVar("Result")

_INCARNATION = "cas"
"""The incarnation id of every cell. A store that returns with old cells needs another check."""
_DEADLINE_DIGITS = 16
_SPARE_SECONDS = 10.0
"""How much longer than its deadline the store keeps a cell: clocks of hosts differ."""


def wall_clock_ms() -> int:
    """Return the milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class CellTooLarge(CacheError):  # noqa: N818 - names the thing found
    """The store does not take a cell of this size. The entry in it will not be cached."""


class _Held(NamedTuple, Generic[Token]):
    """A cell as it was read: its content, its deadline and the token of its bytes."""

    cell: Cell
    deadline_ms: int
    token: Token | None


class CompareAndSetBackend(ABC, Generic[Token]):
    """A `CacheBackend` on a store with compare-and-set.

    The three methods have these rules in common:

    - Each is one atomic step in the store, and may be called by many callers at once.
    - Each raises `CacheUnavailable` if the store does not answer. The write may have happened then.
    - A *token* stands for the bytes that `read` returned with it. It must not come back for other
      bytes of the same key, not even after a delete: a counter that starts at 1 in each new row
      does. Use a number that the whole store counts up, or a random one for each write.

          A reads a lease, token 1; B deletes it; W writes a fence, token 1 again
          A writes its entry "if the token is still 1": the fence is gone, and W does not know

    The backend can be pinged, so `make_backend` puts it behind a `GuardedBackend`.

    Args:
        lease: seconds until a lease is lost.
        fence: seconds until a fence is lost; longer than any transaction takes.
        attempts: how often an operation starts again because another one was faster. Each time at
            least one of them has come through, so more than the callers of one key at one time.
        clock_ms: wall-clock time in milliseconds since the epoch.
    """

    name: str = "compare-and-set"
    """A short name for people."""

    def __init__(
        self,
        *,
        lease: float = 5.0,
        fence: float = 30.0,
        attempts: int = 100,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._lease_ms = round(lease * 1000)
        self._fence_ms = round(fence * 1000)
        self._attempts = attempts
        self._clock_ms = clock_ms
        self._decoder = Decoder()
        self._ping_key = f"jobcache:ping:{secrets.token_hex(8)}"

    # --- what a subclass implements ---

    @abstractmethod
    async def read(self, key: str) -> tuple[bytes, Token] | None:
        """Return the bytes stored at `key` with their token; None if there are none."""

    @abstractmethod
    async def compare_and_set(self, key: str, cell: bytes, token: Token | None, ttl: float) -> bool:
        """Store `cell` at `key` if the bytes stored there still have this token.

        Args:
            key: of 4096 bytes in UTF-8 at most.
            cell: the bytes to store. Never empty.
            token: from `read`; None: store only if nothing is stored at `key`.
            ttl: seconds after which the store may drop the cell. It may also drop it earlier, at
                the cost of a load, or never.

        Returns:
            Whether `cell` is stored now. False: nothing was changed.

        Raises:
            CellTooLarge: the store does not take so many bytes.
        """

    @abstractmethod
    async def delete(self, key: str, token: Token) -> bool:
        """Delete the bytes stored at `key` if they still have this token.

        Returns:
            Whether it was deleted. False: nothing was changed.
        """

    async def read_many(self, keys: Sequence[str]) -> Mapping[str, tuple[bytes, Token]]:
        """Return the results of `read` by key, without the keys for which that is None.

        Override this where the store can read several keys in one round trip.
        """
        found = await asyncio.gather(*(self.read(key) for key in keys))
        return {key: each for key, each in zip(keys, found, strict=True) if each is not None}

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""

    # --- the operations of a backend ---

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None if the cell is empty or holds something else.

        Raises:
            UnreadableCell: the cell is damaged, or has an unknown format.
        """
        held = self._decode(key, await self.read(key)).cell
        if isinstance(held, Unreadable):
            raise UnreadableCell(held.reason)
        return held if isinstance(held, Entry) else None

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries at `keys`."""
        unique = [*dict.fromkeys(keys)]
        if not unique:
            return {}
        found = await self.read_many(unique)
        cells = {key: self._decode(key, raw).cell for key, raw in found.items()}
        return {key: cell for key, cell in cells.items() if isinstance(cell, Entry)}

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take the lease of an empty cell, or return what the cell holds."""
        return await self._carry_out(key, lambda cell: transitions.lease(cell, token))

    async def fence(self, key: str, token: str) -> None:
        """Add the token to the fence, or replace the cell by a fence."""
        await self._carry_out(key, lambda cell: transitions.fence(cell, token))

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish a committed version, or withdraw. A cell that is too large is not kept."""
        try:
            return await self._carry_out(key, lambda cell: transitions.publish(cell, token, entry))
        except CellTooLarge:
            if entry is None:
                raise
            version_only = replace(entry, encoded_body=b"", encoding="identity", keep_ms=0)
            return await self._carry_out(
                key, lambda cell: transitions.publish(cell, token, version_only)
            )

    async def purge(self, keys: Sequence[str]) -> int:
        """Empty these cells, except for fences. Return how many cells were emptied."""
        purging = partial(self._carry_out, transition=transitions.purge)
        return sum(await asyncio.gather(*map(purging, dict.fromkeys(keys))))

    async def ping(self) -> None:
        """Write a cell under a key of this backend and delete it, which calls all three methods."""
        token = secrets.token_hex(8)
        await self.lease(self._ping_key, token)
        await self.publish(self._ping_key, token, None)

    def set_lease_time(self, seconds: float) -> None:
        """Let leases last for `seconds` at least."""
        self._lease_ms = max(self._lease_ms, round(seconds * 1000))

    def set_body_check(self, check: Callable[[str, bytes], object]) -> None:
        """Call `check` with the key and the body of each entry that is read for the first time."""
        self._decoder.check = check

    # --- one operation ---

    async def _carry_out(self, key: str, transition: Callable[[Cell], CellStep[Result]]) -> Result:
        for _ in range(self._attempts):
            held = self._decode(key, await self.read(key))
            step = transition(held.cell)
            if step.effect is Effect.NONE or await self._write(key, held, step):
                return step.result
        raise CacheContended(key, self._attempts)

    async def _write(self, key: str, held: _Held[Token], step: CellStep[Result]) -> bool:
        cell, token = step.cell, held.token
        if cell is None or isinstance(cell, Unreadable):  # no transition leaves the latter
            return token is None or await self.delete(key, token)
        now_ms = self._clock_ms()
        deadline_ms = (
            held.deadline_ms
            if step.effect is Effect.KEEP_DEADLINE
            else now_ms + self._lifetime_ms(cell)
        )
        ttl = max(0, deadline_ms - now_ms) / 1000 + _SPARE_SECONDS
        raw = b"%d|%b" % (deadline_ms, encode(cell, _INCARNATION))
        return await self.compare_and_set(key, raw, token, ttl)

    def _lifetime_ms(self, cell: Entry | Lease | Fence) -> int:
        if isinstance(cell, Entry):
            return cell.keep_ms
        return self._lease_ms if isinstance(cell, Lease) else self._fence_ms

    def _decode(self, key: str, found: tuple[bytes, Token] | None) -> _Held[Token]:
        if found is None:
            return _Held(None, 0, None)
        raw, token = found
        text, bar, rest = raw.partition(b"|")
        if not (bar and text.isdigit() and len(text) <= _DEADLINE_DIGITS):
            return _Held(Unreadable("a cell does not begin with its deadline"), 0, token)
        deadline_ms = int(text)
        if deadline_ms <= self._clock_ms():
            return _Held(None, 0, token)  # expired, although the store still has it
        try:
            return _Held(self._decoder.decode(key, rest, _INCARNATION), deadline_ms, token)
        except UnreadableCell as error:
            return _Held(Unreadable(str(error)), deadline_ms, token)
