"""What a store has yet to hear of, key by key: a bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SEEN = "seen"
"""The token under which versions are noted that were seen, not written. It is nobody's: no lease
and no fence can hold it."""


@dataclass(slots=True, eq=False)
class PendingOperation:
    """One thing to repeat. Compared by identity: each attempt is its own.

    Attributes:
        kind: what to do.
        version: of a publish; None for a withdrawal.
        refusals: how often a store that otherwise answers would not have it.
    """

    kind: Literal["publish", "purge"]
    version: int | None = None
    refusals: int = 0


class ReplayLog:
    """Steps by key and token.

    Args:
        most: with more steps than these they are dropped, and everything counts as missed.

    Attributes:
        everything: nothing in the store may be read until its namespace has been emptied.
    """

    def __init__(self, most: int) -> None:
        self.everything = False
        self._most = most
        self._steps: dict[str, dict[str, PendingOperation]] = {}
        self._count = 0
        self._overflows = 0
        self._heard: dict[str, int] = {}  # by key, the version the store has been told of

    def __bool__(self) -> bool:
        return self.everything or bool(self._steps)

    def __len__(self) -> int:
        """How many steps are held."""
        return self._count

    def __contains__(self, key: str) -> bool:
        """Whether `key` is not to be read for now."""
        return self.everything or key in self._steps

    @property
    def keys(self) -> int | None:
        """How many keys that concerns; None: all of them."""
        return None if self.everything else len(self._steps)

    def note(self, key: str, token: str, step: PendingOperation) -> None:
        """Remember a step; an earlier one of the same token is replaced."""
        steps = self._steps.setdefault(key, {})
        self._count += token not in steps
        steps[token] = step
        if self._count > self._most:
            self.note_everything()

    def note_seen(self, key: str, version: int) -> None:
        """Remember that the source has `version`, whoever committed it.

        Of a key that is polled all the time some poll is always under way, and would unsettle it
        again, for ever:

            R is refused, loads v2; the store is told of v2, the key is settled; R notes v2
        """
        if self._heard.get(key, -1) >= version:
            return
        known = self._steps.get(key, {}).get(SEEN)
        # Of the same version the note stays the same, so that polls of a key that is being
        # settled do not unsettle it again and again.
        if known is None or known.version is None or known.version < version:
            self.note(key, SEEN, PendingOperation("publish", version))

    def note_everything(self) -> None:
        """There is too much to remember, or to name."""
        self._steps.clear()
        self._count = 0
        self._overflows += 1
        self.everything = True

    def made(self, key: str, token: str, step: PendingOperation) -> None:
        """The store has taken the step: from now on it holds nothing older."""
        self.discard(key, token, step)
        if step.version is not None:
            if len(self._heard) >= self._most:
                self._heard.clear()  # costs those that are under way one more note
            self._heard[key] = max(step.version, self._heard.get(key, -1))

    def reset(self) -> None:
        """The store has failed: whatever it has been told of, it is to be told again."""
        self._heard.clear()

    def discard(self, key: str, token: str, step: PendingOperation) -> None:
        """The step is not to be repeated any more, unless another has taken its place."""
        steps = self._steps.get(key, {})
        if steps.get(token) is step:
            del steps[token]
            self._count -= 1
            if not steps:
                del self._steps[key]

    def all(self) -> list[tuple[str, str, PendingOperation]]:
        """Every step, with its key and token, as of now."""
        return [
            (key, token, step)
            for key, steps in self._steps.items()
            for token, step in steps.items()
        ]

    def mark(self) -> int:
        """To be given to `emptied`, from before the namespace was emptied."""
        return self._overflows

    def emptied(self, mark: int) -> None:
        """The namespace is empty; what was missed while that was done is still to be made good."""
        self.everything = mark != self._overflows
