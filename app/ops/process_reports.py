"""The reports of all processes of a service: what each has counted, and how it is now.

Workers know nothing of each other, whatever server has started them. They find each other in a
directory on their machine, and ask each other when somebody wants to know. So nothing is shared
while polls are answered, and the numbers are exact.

A process writes each report down before it gives it. So no sum ever goes down:

    A asks B: 100 hits      B is killed      A reads what B has written: 100 hits
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

from app.ops.membership import Membership
from jobcache.observability.metrics import add, only_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from jobcache.observability.metrics import Measurements, Metric

logger = logging.getLogger("app")

_ANSWERS_WITHIN = 1.0
"""Seconds for a process to give its report; then its last one is used."""


@dataclass(frozen=True, slots=True)
class Report:
    """The report of one process.

    Attributes:
        process: its process id.
        state: how it is now, as far as that is no number.
        measured: what it has measured since it started.
        earlier: what processes had counted that had its number before.
        number: among the processes that live at the same time.
    """

    process: int
    state: dict[str, Any]
    measured: Measurements
    earlier: Measurements = field(default_factory=dict)
    number: int = 0


@dataclass(frozen=True, slots=True)
class Reports:
    """The reports of all processes, as they are now.

    Attributes:
        own: of this process.
        others: of other processes.
        unresponsive: the last reports of processes that live and do not answer.
        total: the sum of all measurements. Of processes that have ended or do not answer it has the
            counts, and no gauges.
    """

    own: Report
    others: list[Report]
    unresponsive: list[Report]
    total: Measurements

    @property
    def answered(self) -> list[Report]:
        """The reports of all processes that have answered, in the order of their numbers."""
        return sorted([self.own, *self.others], key=lambda each: each.number)


class ProcessReports:
    """Gives the report of this process to others, and gathers theirs.

    Args:
        directory: where the processes of services find each other.
        state: returns how this process is now.
        measure: returns what this process has measured.
        metrics: what is measured.
    """

    def __init__(
        self,
        directory: Path,
        state: Callable[[], dict[str, Any]],
        measure: Callable[[], Measurements],
        metrics: Iterable[Metric],
    ) -> None:
        self._directory = directory
        self._state = state
        self._measure = measure
        self._metrics = tuple(metrics)
        self._member: Membership | None = None
        self._earlier: Measurements = {}
        self._server: asyncio.Server | None = None
        self._writing = asyncio.Lock()

    async def start(self, source_id: str) -> None:
        """Become one of the processes of this machine that use the same database.

        If that is not possible, the log says so, and this process reports for itself only.
        """
        # Another version may measure something else, so its processes report apart.
        service = f"{socket.gethostname()} {source_id} {self._metrics}"
        name = hashlib.sha256(service.encode()).hexdigest()[:16]
        try:
            self._member = await asyncio.to_thread(Membership, self._directory / name)
            inherited = self._member.inherited
            if inherited is not None:
                self._earlier = self._left_by(_read(inherited))
            await self._written()
            self._server = await asyncio.start_unix_server(self._give, sock=self._member.listener)
        except (OSError, ValueError) as error:
            logger.warning("metrics are of one process only, not of all workers: %s", error)

    async def gather(self) -> Reports:
        """Return the reports of all processes as they are now."""
        own, _ = await self._written()
        others, unresponsive, left = [], [], []
        if self._member is not None:
            member = self._member
            numbers = await asyncio.to_thread(member.others)
            for number, given in zip(
                numbers, await asyncio.gather(*map(self._ask, numbers)), strict=True
            ):
                if isinstance(given, Report):
                    others.append(given)
                    continue
                written = await asyncio.to_thread(member.read, number)
                if written is None:
                    continue
                last = _read(written)
                left.append(self._left_by(last))
                if given is _SILENT:
                    unresponsive.append(last)
        parts = [own.measured, own.earlier, *left]
        for report in others:
            parts += report.measured, report.earlier
        return Reports(own, others, unresponsive, reduce(add, parts))

    async def aclose(self) -> None:
        """Write the last report, and leave. Nothing may be counted any more."""
        if self._server is not None:
            self._server.close()
        if self._member is not None:
            await self._written()
            await asyncio.to_thread(self._member.leave)
            self._member = None

    def _left_by(self, report: Report) -> Measurements:
        left: Measurements = add(only_counts(report.measured, self._metrics), report.earlier)
        return left

    async def _written(self) -> tuple[Report, bytes]:
        """Return the report of this process, once it is written down."""
        async with self._writing:  # so that the last one that is written is the newest
            number = 0 if self._member is None else self._member.number
            report = Report(os.getpid(), self._state(), self._measure(), self._earlier, number)
            text = json.dumps(asdict(report)).encode()
            if self._member is not None:
                # A full disk is no reason to report nothing.
                with suppress(OSError):
                    await asyncio.to_thread(self._member.write, text)
        return report, text

    async def _give(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Give the report of this process to another one."""
        try:
            _report, text = await self._written()
            writer.write(text)
            await writer.drain()
        except OSError:
            pass  # it has gone
        finally:
            writer.close()

    async def _ask(self, number: int) -> Report | object:
        """Return the report of another process; `_ENDED` or `_SILENT` if it gives none."""
        if self._member is None:
            return _ENDED
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN):
                reader, writer = await asyncio.open_unix_connection(self._member.address(number))
                try:
                    text = await reader.read()
                finally:
                    writer.close()
        except (TimeoutError, BlockingIOError):
            return _SILENT
        except OSError:
            return _ENDED
        return _read(text) if text else _ENDED  # it ended meanwhile


_ENDED = object()
_SILENT = object()


def _read(text: bytes) -> Report:
    return Report(**json.loads(text))
