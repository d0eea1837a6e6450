"""Schedules of readers and writers: the known ones that go wrong, and a search for others.

`play` takes one schedule of the bare protocol through a backend (`known`); every backend is taken
through `GUARDS` by the conformance suite. `Explorer` runs the real `JobCache` on a backend, and
goes through the schedules of a small world: all of them, or those that a seed leads to.

    with Explorer(subject) as explorer:
        print(explorer.search(World(), seed=1, runs=1000))

`python -m jobcache.testing.simulation --help` does so from the command line.
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
