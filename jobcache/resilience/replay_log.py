"""The replay log: operations that a store has missed, to be replayed once it is back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SEEN = "seen"
"""The token for versions that this process has seen and not written. No lease or fence has it."""


@dataclass(slots=True, eq=False)
class PendingOperation:
    """An operation to replay. Two operations are equal only if they are the same object.

    Attributes:
        kind: what to do.
        version: of a publish; None for a withdrawal.
        refusals: how often the store has refused it.
    """

    kind: Literal["publish", "purge"]
    version: int | None = None
    refusals: int = 0


class ReplayLog:
    """Pending operations by key and token.

    Args:
        most: how many operations are kept in full. If there are more, the whole namespace has to
            be emptied. If the store cannot do that, one version of each key is kept.
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
        """Note that the source has `version`, which any process may have committed.

        A version that the store has received is not noted. Otherwise a key that is polled all the
        time would stay pending for ever, because a poll is always running:

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
        """Require that the namespace is emptied, because too many operations are pending."""
        self._pending.clear()
        self._count = 0
        self._overflows += 1
        self.everything = True
        self.empty = False

    def _merge(self, key: str) -> None:
        """Keep only the operations that `key` needs, if the namespace cannot be emptied.

        One is a publish of the highest version: it removes older entries and raises the fence
        version. Fences that are not withdrawn expire. The other is a purge, if there is one.
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
        """Remove an operation that the store has carried out."""
        self.discard(key, token, operation)
        if operation.version is not None:
            if len(self._received) >= self._most:
                self._received.clear()  # running polls may then be noted once more
            self._received[key] = max(operation.version, self._received.get(key, -1))

    def reset(self) -> None:
        """Forget which versions the store has received, because it has failed since."""
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
        """Note that the namespace was emptied. Operations that were missed meanwhile stay."""
        self.everything = mark != self._overflows
        self.empty = not (self.everything or self._pending)
