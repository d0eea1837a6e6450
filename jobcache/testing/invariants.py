"""The invariants that must hold in every schedule, and their one exception.

A read is *stale* if it returns less than the highest version that a writer had acknowledged, or a
finished read had returned, before this read began. A commit is *hidden* if the cell holds an older
entry although no writer is at work. No read may be stale and no commit hidden.

The exception is a version from which the store was *cut off*. All of these are true of it:

- Its writer's fence did not stand at the commit: it never reached the store, or was lost.
- No publish of this version, or of a newer one, has been carried out since.
- The process that should have published it could not: the publish failed, the process died, or
  nobody knows whether the commit happened.

Such a version counts from the moment when the store learns of it. Until then others may be served
an older version, for one lifetime at most (`docs/promises.md`).

Behind a guard:

- A guard may refuse a publish without asking the store. So a publish has failed if the cache
  counted an error meanwhile.
- The process itself remembers: a version that was acknowledged or returned in a process counts for
  reads of that process at once and always.
- The guard repeats failed operations. Once all are done, a failed publish excuses no hidden commit.

With two tiers, the local tier lags behind the remote one:

- A version that was acknowledged or returned in a process counts for its reads at once, so that
  nobody there steps backward. Any other version counts once the process was given reports of all
  changes of the cell that were made before that version was seen.
- While its feed is not live, a process does not rely on reports. Every version counts then as it
  would without a local tier. A read that is under way when the feed is live again may be answered
  as if it had begun then.
- All of this holds of what the local tier would serve, whether or not somebody reads just then.
  Once all reports are delivered, the local tier hides no more than the remote tier may.

The transition table, which runs beside the backend, says whether a fence stands. The backend is not
asked: a fence that is missing by mistake excuses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Violation(AssertionError):  # noqa: N818 - what the checker is there to report
    """A read was stale, a commit stays hidden, or a caller was left in the lurch."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One version in the source.

    Attributes:
        version: which.
        fenced: whether its writer's fence stood.
        cut_off: whether its writer has become unable to tell the store.
    """

    version: int
    fenced: bool
    cut_off: Callable[[], bool]


class Invariants:
    """The versions that each process has seen, and the least that may be returned to it.

    Args:
        remembers: whether what was seen in a process counts for its own reads, whatever counts for
            those of others.
    """

    def __init__(self, *, remembers: bool) -> None:
        self._remembers = remembers
        self._commits: list[Commit] = []
        self._fenced: set[int] = {1}  # version 1 is there from the beginning
        self._visible = 1
        self._seen: dict[str, int] = {}  # by process, cut off or not
        self._told = 1
        self._untold: set[int] = set()  # seen by somebody who could not tell the store

    @property
    def visible(self) -> int:
        """The highest version that counts for everybody."""
        return self._visible

    def min_version(self, process: str, heard: int | None = None) -> int:
        """The least that a read which begins now in `process` may return.

        Args:
            process: its name.
            heard: what was visible before the first change that it has yet to be told of; None if
                there is no such change, or nobody to tell it.
        """
        own = self._seen.get(process, 1) if self._remembers else 1
        return max(self._visible if heard is None else heard, own)

    def committed(self, commit: Commit) -> None:
        """The source has a new version."""
        self._commits.append(commit)
        if commit.fenced:
            self._fenced.add(commit.version)

    def told(self, version: int) -> None:
        """The store has carried out a publish of `version`."""
        self._told = max(self._told, version)
        heard = {seen for seen in self._untold if seen <= version}
        self._untold -= heard
        self._visible = max(self._visible, *heard, 1)

    def seen(self, process: str, version: int, *, refused: bool) -> None:
        """A caller in `process` was given `version`; `refused`: its publish failed."""
        self._seen[process] = max(self._seen.get(process, 1), version)
        if refused and version not in self._fenced and self._told < version:
            self._untold.add(version)
        else:
            self._visible = max(self._visible, version)

    def hidden(self, held: int) -> int | None:
        """The version that an entry of version `held` hides, now that no writer is at work."""
        for commit in reversed(self._commits):
            told = commit.fenced or self._told >= commit.version
            if held < commit.version and (told or not commit.cut_off()):
                return commit.version
        return None

    def state(self) -> Hashable:
        """What decides about the future."""
        seen = tuple(sorted(self._seen.items())) if self._remembers else ()
        commits = tuple((commit.version, commit.fenced) for commit in self._commits)
        return self._visible, seen, self._told, frozenset(self._untold), commits
