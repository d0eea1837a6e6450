"""The invariants that must hold in every schedule, and their one exception.

A read is *stale* if it returns less than the highest version that a writer had acknowledged, or a
finished read had returned, before this read began. A commit is *hidden* if the cell holds an older
entry although no writer is at work. No read may be stale and no commit hidden.

The exception is a version from which the store was *cut off*. All of these are true of it:

- Its writer's fence was not in the cell at the commit: it never reached the store, or was lost.
- No publish of this version, or of a newer one, has been carried out since.
- The process that should have published it could not: the publish failed, the process died, or
  nobody knows whether the commit happened.

Such a version counts from the moment at which it is published to the store. Until then readers may
get an older version, for one lifetime at most (`docs/promises.md`).

Behind a guard:

- A guard may refuse a publish without asking the store. So a publish has failed if the cache
  counted an error meanwhile.
- The process itself remembers: a version that was acknowledged or returned in a process counts for
  all later reads of that process.
- The guard repeats failed operations. Once all are done, a failed publish excuses no hidden commit.

With two tiers, the local tier lags behind the remote one:

- A version that was acknowledged or returned in a process counts for its reads at once, so that
  no caller there goes back. Any other version counts once the process has received the reports of
  all changes of the cell that were made before that version was seen.
- While its feed is not live, a process does not rely on reports. Every version counts then as it
  would without a local tier. A read that is under way when the feed is live again may be answered
  as if it had begun then.
- The same rules hold for the entry that the local tier would serve if somebody read it. Once all
  reports are delivered, the local tier hides no more than the remote tier may.

Whether the cell has a fence is taken from the transition table, which runs beside the backend, and
not from the backend: a fence that is missing by mistake is no excuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Violation(AssertionError):  # noqa: N818 - names the thing found
    """A read was stale, a commit stays hidden, or a caller was never answered."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One version in the source.

    Attributes:
        version: the version.
        fenced: whether the fence of its writer was in the cell at the commit.
        cut_off: returns whether its writer can no longer publish it to the store.
    """

    version: int
    fenced: bool
    cut_off: Callable[[], bool]


class Invariants:
    """Keep the versions that each process has seen, and the least that it may read next.

    Args:
        remembers: whether a version that was seen in a process counts for the reads of that process
            even if it does not count for other processes.
    """

    def __init__(self, *, remembers: bool) -> None:
        self._remembers = remembers
        self._commits: list[Commit] = []
        self._fenced: set[int] = {1}  # version 1 is there from the beginning
        self._visible = 1
        self._seen: dict[str, int] = {}  # by process, cut off or not
        self._published = 1
        self._unpublished: set[int] = set()  # seen by a caller whose process could not publish it

    @property
    def visible(self) -> int:
        """The highest version that counts for everybody."""
        return self._visible

    def min_version(self, process: str, reported: int | None = None) -> int:
        """Return the least version that a read which begins now in `process` may return.

        Args:
            process: its name.
            reported: the version that was visible before the first change that was not reported to
                the process yet; None if there is no such change, or no feed that it relies on.
        """
        own = self._seen.get(process, 1) if self._remembers else 1
        return max(self._visible if reported is None else reported, own)

    def committed(self, commit: Commit) -> None:
        """Note that the source has a new version."""
        self._commits.append(commit)
        if commit.fenced:
            self._fenced.add(commit.version)

    def published(self, version: int) -> None:
        """Note that the store has carried out a publish of `version`."""
        self._published = max(self._published, version)
        counting = {seen for seen in self._unpublished if seen <= version}
        self._unpublished -= counting
        self._visible = max(self._visible, *counting, 1)

    def seen(self, process: str, version: int, *, refused: bool) -> None:
        """Note that a caller in `process` got `version`; `refused`: its publish failed."""
        self._seen[process] = max(self._seen.get(process, 1), version)
        if refused and version not in self._fenced and self._published < version:
            self._unpublished.add(version)
        else:
            self._visible = max(self._visible, version)

    def hidden(self, held: int) -> int | None:
        """Return the version that an entry of version `held` hides, once no writer is at work."""
        for commit in reversed(self._commits):
            counts = commit.fenced or self._published >= commit.version or not commit.cut_off()
            if held < commit.version and counts:
                return commit.version
        return None

    def state(self) -> Hashable:
        """Return everything that the future depends on."""
        seen = tuple(sorted(self._seen.items())) if self._remembers else ()
        commits = tuple((commit.version, commit.fenced) for commit in self._commits)
        return self._visible, seen, self._published, frozenset(self._unpublished), commits
