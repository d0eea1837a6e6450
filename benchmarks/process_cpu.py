"""What a process has used: memory, and time of the processor."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path


def resident(process: int) -> int:
    """Bytes of memory that a process has in use."""
    pages = Path(f"/proc/{process}/statm").read_text("ascii").split()[1]
    return int(pages) * resource.getpagesize()


def processor_seconds(process: int) -> float:
    """Seconds of processor time that all threads of a process have had.

    To the nanosecond where the kernel tells, or else to the hundredth of a second.
    """
    with suppress(OSError, ValueError, IndexError):
        tasks = Path(f"/proc/{process}/task").iterdir()
        return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks) / 1e9
    ticks = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
