"""Memory and processor time of a process."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path


def resident(process: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = Path(f"/proc/{process}/statm").read_text("ascii").split()[1]
    return int(pages) * resource.getpagesize()


def processor_seconds(process: int) -> float:
    """Return the processor time of all threads of a process, in seconds.

    The resolution is a nanosecond if the kernel provides it, otherwise a hundredth of a second.
    """
    with suppress(OSError, ValueError, IndexError):
        tasks = Path(f"/proc/{process}/task").iterdir()
        return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks) / 1e9
    ticks = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
