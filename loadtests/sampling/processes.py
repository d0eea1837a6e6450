"""Processor time and memory of a process and its children."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process and its children have used.

    Attributes:
        cpu_seconds: their processor time since they started, children that have ended included.
        resident_bytes: their resident memory. Memory that they share counts for each of them.
    """

    cpu_seconds: float
    resident_bytes: int


def usage(pid: int) -> Usage | None:
    """Return the usage of a process and its children; None if it has ended."""
    cpu = 0.0
    resident = 0
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    for process in processes:
        # A child may end between the list and here; its time is then among its parent's.
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu += times.user + times.system + times.children_user + times.children_system
            resident += process.memory_info().rss
    return Usage(cpu_seconds=cpu, resident_bytes=resident)


def busy_seconds() -> float:
    """Return the processor time that all programs of the machine have used since it started."""
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times[:8]) - waiting)  # later fields are parts of earlier ones
