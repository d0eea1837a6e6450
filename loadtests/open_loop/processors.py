"""The processor time of the processes of a run, and of all others on the machine."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Usage:
    """The processor time of some seconds, in cores: 1.0 is one core that was busy all the time.

    Attributes:
        roles: of the processes of the run, by role; "driver" is this process.
        others: of all other processes, and of the kernel for nobody in particular.
        stolen: of other virtual machines on the same hardware.
    """

    roles: Mapping[str, float]
    others: float
    stolen: float

    @property
    def foreign(self) -> float:
        """The cores that did not work for the run."""
        return self.others + self.stolen


class ProcessorMeter:
    """Measures processor time from its creation on.

    Args:
        roles: the first process of each role; its descendants are part of the role.
    """

    def __init__(self, roles: Mapping[str, int]) -> None:
        self._roles = dict(roles)
        self._began = time.perf_counter()
        self._before = self._look()

    def usage(self) -> Usage:
        """Return the use of processors since the meter was created."""
        after = self._look()
        took = time.perf_counter() - self._began
        grown = {name: (after[name] - self._before[name]) / took for name in after}
        busy, stolen = grown.pop("*busy"), grown.pop("*stolen")
        return Usage(grown, max(0.0, busy - sum(grown.values())), stolen)

    def _look(self) -> dict[str, float]:
        times = psutil.cpu_times()
        own = psutil.Process(os.getpid()).cpu_times()
        return {
            # Time of guests is part of `user`. Most kernels charge interrupts to the process that
            # was interrupted as well, so without them the others would seem to use less. On the
            # kernels that do not, those of the load's own packets seem to be the others'.
            "*busy": sum(
                float(getattr(times, name, 0.0))
                for name in ("user", "nice", "system", "irq", "softirq")
            ),
            "*stolen": float(getattr(times, "steal", 0.0)),
            "driver": float(own.user + own.system),
            **{role: sum(_family(process)) for role, process in self._roles.items()},
        }


def _family(process: int) -> Iterator[float]:
    """Yield the processor seconds of a process, its descendants, and those that have ended."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process)
        for member in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                yield float(times.user + times.system)
                yield float(times.children_user + times.children_system)
