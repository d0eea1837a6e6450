"""Schedules of readers and writers: known ones that go wrong, and an explorer that finds others.

`play` takes a backend through one schedule of the bare protocol; the conformance suite plays all of
`GUARDS`. `Explorer` runs the real `JobCache` on a backend. It plays the schedules of a small
simulation: all of them, or a random choice that a seed determines.

    with Explorer(subject) as explorer:
        print(explorer.search(Simulator(), seed=1, runs=1000))

`python -m jobcache.testing.simulation --help` does the same from the command line.
"""

from jobcache.testing.invariants import Violation
from jobcache.testing.scenarios import GUARDS, entry_of, play
from jobcache.testing.simulation.configuration import FAULTS, Components, Simulator
from jobcache.testing.simulation.explorer import Explorer, Finding, Report

__all__ = [
    "FAULTS",
    "GUARDS",
    "Components",
    "Explorer",
    "Finding",
    "Report",
    "Simulator",
    "Violation",
    "entry_of",
    "play",
]
