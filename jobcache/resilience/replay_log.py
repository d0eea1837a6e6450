"""The log of operations that a store has missed, by key; replayed once the store is back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SEEN = "seen"
"""The token under which versions are noted that were seen, not written. No lease and no fence can
hold it."""


@dataclass(slots=True, eq=False)
class PendingOperation:
    """An operation to replay. Compared by identity: each attempt is its own.

    Attributes:
        kind: what to do.
        version: of a publish; None for a withdrawal.
        refusals: how often a store that answers otherwise has refused it.
    """

    kind: Literal["publish", "purge"]
    version: int | None = None
    refusals: int = 0


class ReplayLog:
    """Pending operations by key and token.

    Args:
        most: operations that are kept in full. With more, either the whole namespace has to be
            emptied, or, of a store that cannot empty it, one version of each key is kept.
        can_empty: whether the store can empty its namespace.

    Attributes:
        everything: no key may be read until the namespace has been emptied.
        empty: whether every key may be read.
    """

    def __init__(self, most: int, *, can_empty: bool = True) -> None:
        self.everything = False
        self.empty = True
        self._most = most
        self._can_empty = can_empty
        self._pending: dict[str, dict[str, PendingOperation]] = {}
        self._count = 0
        self._overflows = 0
        self._received: dict[str, int] = {}  # by key, the version that the store has received

    def __len__(self) -> int:
        """Return how many operations are pending."""
        return self._count

    def __bool__(self) -> bool:
        """Return whether a key may not be read."""
        return not self.empty

    def __contains__(self, key: str) -> bool:
        """Return whether `key` may not be read for now."""
        return self.everything or key in self._pending

    @property
    def keys(self) -> int | None:
        """How many keys may not be read; None: all of them."""
        return None if self.everything else len(self._pending)

    def note(self, key: str, token: str, operation: PendingOperation) -> None:
        """Add an operation; it replaces an earlier one of the same token."""
        pending = self._pending.setdefault(key, {})
        self._count += token not in pending
        pending[token] = operation
        self.empty = False
        if self._count > self._most:
            if self._can_empty:
                self.note_everything()
            else:
                self._merge(key)

    def note_seen(self, key: str, version: int) -> None:
        """Note that the source has `version`, whoever committed it.

        A key that is polled all the time always has a poll under way, which would make it pending
        again, for ever:

            R is refused, loads v2; the store receives v2, the key is readable; R notes v2
        """
        if self._received.get(key, -1) >= version:
            return
        known = self._pending.get(key, {}).get(SEEN)
        # For the same version the operation stays the same, so that polls of a key that is being
        # replayed do not make it pending again and again.
        if known is None or known.version is None or known.version < version:
            self.note(key, SEEN, PendingOperation("publish", version))

    def note_everything(self) -> None:
        """Have the namespace emptied: there is too much to note, or to name."""
        self._pending.clear()
        self._count = 0
        self._overflows += 1
        self.everything = True
        self.empty = False

    def _merge(self, key: str) -> None:
        """Keep only what is needed to keep `key` right, where the namespace cannot be emptied.

        That is the highest version: publishing it removes what is older, and raises a standing
        fence. Fences that this leaves behind are lost when their time is up. And a purge stays.
        """
        pending = self._pending[key]
        versions = [
            operation.version
            for operation in pending.values()
            if operation.kind == "publish" and operation.version is not None
        ]
        kept = {token: each for token, each in pending.items() if each.kind == "purge"}
        if versions:
            seen = pending.get(SEEN)
            if seen is None or seen.version != max(versions):
                seen = PendingOperation("publish", max(versions))
            kept[SEEN] = seen
        elif not kept:
            return  # withdrawals alone
        self._count += len(kept) - len(pending)
        self._pending[key] = kept

    def made(self, key: str, token: str, operation: PendingOperation) -> None:
        """Remove an operation that the store has made: from now on it holds nothing older."""
        self.discard(key, token, operation)
        if operation.version is not None:
            if len(self._received) >= self._most:
                self._received.clear()  # costs those that are under way one more note
            self._received[key] = max(operation.version, self._received.get(key, -1))

    def reset(self) -> None:
        """Forget what the store has received, for it has failed since."""
        self._received.clear()

    def discard(self, key: str, token: str, operation: PendingOperation) -> None:
        """Remove an operation, unless another has taken its place."""
        pending = self._pending.get(key, {})
        if pending.get(token) is operation:
            del pending[token]
            self._count -= 1
            if not pending:
                del self._pending[key]
                self.empty = not (self.everything or self._pending)

    def all(self) -> list[tuple[str, str, PendingOperation]]:
        """Return every operation, with its key and token, as of now."""
        return [
            (key, token, operation)
            for key, pending in self._pending.items()
            for token, operation in pending.items()
        ]

    def mark(self) -> int:
        """Return a mark for `emptied`, from before the namespace is emptied."""
        return self._overflows

    def emptied(self, mark: int) -> None:
        """Note that the namespace has been emptied; what was missed meanwhile stays pending."""
        self.everything = mark != self._overflows
        self.empty = not (self.everything or self._pending)
