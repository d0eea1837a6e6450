"""Counts and times of a run, by fault, and the findings that break a promise."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from loadtests.freshness.checker import Kind, is_excused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadtests.freshness.checker import Finding

Phase = Literal["before", "during", "after"]
_OF_ONE_CLIENT = {Kind.BACKWARD, Kind.MIN_VERSION}
PHASES: tuple[Phase, ...] = ("before", "during", "after")
_MOST_EXAMPLES = 10  # findings of a fault that are kept in words


@dataclass(frozen=True, slots=True)
class Scope:
    """The present fault of a run, and its phase.

    Attributes:
        fault: its name; empty between faults.
        phase: before it, while it lasts, or after it was healed.
        bound: seconds for which the promise allows something old to be shown; None: not at all.
        lag: the same, of any promise, for the feed of changes may lag by that; None: there is none.
        spared: the number of a process that `bound` is not for, since it is the one cut off,
            and reads nothing it is not sure of.
        source_away: whether 503 is a right answer.
        two_sources: whether two databases answer, so that a client which moves from one process to
            another may find that the database itself has gone back.
    """

    fault: str = ""
    phase: Phase = "before"
    bound: float | None = None
    lag: float | None = None
    spared: int | None = None
    source_away: bool = False
    two_sources: bool = False

    def bound_for(self, process: int | None) -> float | None:
        """Return the bound for the responses of a process; None if they must be fresh."""
        bound = None if process is not None and process == self.spared else self.bound
        bounds = [each for each in (bound, self.lag) if each is not None]
        return max(bounds, default=None)


@dataclass(slots=True)
class Tally:
    """The counts of one fault, including the calm before and after it.

    Attributes:
        reads: versions of jobs that were checked: by a poll each, or many at once by their ids.
        batched: of the reads, those by ids.
        not_modified: of the reads, those answered 304.
        listed: jobs checked in lists, which are read past the cache; no reads.
        unknown_writes: of the writes, those nobody knows the outcome of.
        stale_marked: reads answered by an entry past its freshness, for the database was away.
        value_reads: reads of values without a version that were checked.
        value_changes: changes of such values whose invalidation was acknowledged.
        older_reads: of the reads, those that processes of an older version have answered.
        older_hits: of the hits, those of such processes.
        older_writes: of the writes, those through such processes.
        statuses: of reads answered neither 200 nor 304.
        bounded: findings that a bounded promise allows.
        worst: the greatest age, in seconds, of anything stale where a bound allowed it, by phase.
        bound: what it may be at most; None where the promise is fresh.
        examples: the first violations, in words.
        times: of polls, in seconds, by phase.
        back: seconds from the end of the fault until all processes used their caches, at most.
        away: about how many seconds breakers were open, all processes together, by phase.
    """

    injected: int = 0
    reads: int = 0
    batched: int = 0
    not_modified: int = 0
    listed: int = 0
    writes: int = 0
    unknown_writes: int = 0
    hits: int = 0
    stale_marked: int = 0
    value_reads: int = 0
    value_changes: int = 0
    older_reads: int = 0
    older_hits: int = 0
    older_writes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    violations: Counter[Kind] = field(default_factory=Counter)
    bounded: Counter[Kind] = field(default_factory=Counter)
    worst: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    bound: float | None = None
    examples: list[str] = field(default_factory=list)
    times: dict[Phase, array[float]] = field(
        default_factory=lambda: {phase: array("f") for phase in PHASES}
    )
    back: float = 0.0
    away: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def judge(
        self, findings: Iterable[Finding], scope: Scope, process: int | None, at: str
    ) -> list[Finding]:
        """Sort findings into violations and what a bounded promise allows; return the violations.

        Args:
            findings: of one answer.
            scope: the fault whose promise counts.
            process: who answered; None if it was no process.
            at: what else is known of the answer, in words.
        """
        bound = scope.bound_for(process)
        violations = []
        for finding in findings:
            # Where the feed may lag, a client stays with one process or sends its minimum version.
            step_back = finding.kind is Kind.BACKWARD and scope.lag is not None
            excused = is_excused(finding, bound) and not step_back
            # How old the response may be is judged by what others had seen.
            if excused or (scope.two_sources and finding.kind in _OF_ONE_CLIENT):
                self.bounded[finding.kind] += 1
            else:
                self.violations[finding.kind] += 1
                violations.append(finding)
                if len(self.examples) < _MOST_EXAMPLES:
                    age = "" if finding.age is None else f", {finding.age:.3f} s later"
                    self.examples.append(
                        f"{finding.kind}: job {finding.job_id}: {finding.detail}{age} ({at})"
                    )
            if finding.age is not None and bound is not None:
                self.worst[scope.phase] = max(self.worst[scope.phase], finding.age)
        return violations


def total(tallies: Sequence[Tally]) -> Tally:
    """Return the sum of several tallies."""
    whole = Tally()
    for one in tallies:
        for name in (
            *("injected", "reads", "batched", "not_modified", "listed", "writes", "unknown_writes"),
            *("hits", "stale_marked", "unanswered", "value_reads", "value_changes"),
            *("older_reads", "older_hits", "older_writes"),
        ):
            setattr(whole, name, getattr(whole, name) + getattr(one, name))
        whole.back = max(whole.back, one.back)
        whole.statuses += one.statuses
        whole.violations += one.violations
        whole.bounded += one.bounded
        for phase in PHASES:
            whole.worst[phase] = max(whole.worst[phase], one.worst[phase])
            whole.times[phase].extend(one.times[phase])
            whole.away[phase] += one.away[phase]
    return whole
