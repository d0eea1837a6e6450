"""HTTP load generators: wrk if it is installed, otherwise processes of `benchmarks.generator`."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from benchmarks.generator import WrongAnswer, get, load
from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence

Request = tuple[str, str]
"""A path, and headers to send with it, with `\\r\\n` between them; empty: none. In them, `%d` is a
number that no other request has."""

DRIVERS = ("wrk", "processes")
"""The names of the load generators."""

_PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
_SCRIPT = Path(__file__).with_name("wrk.lua")
_PATIENCE = 30.0  # seconds beyond the requested time
_TRIES = 3  # of a run in which a busy machine let nothing through


class DriverMissing(Exception):  # noqa: N818 - says what is the matter
    """The load generator is not installed."""


@dataclass(frozen=True)
class Pace:
    """The result of one load.

    Attributes:
        per_second: answers, all of them 200 or 304.
        answers: how many.
        bytes: of one answer, head included, on average.
        latency_ms: by percentile.
        busy: the part of the time, from 0 to 1, that the generator was computing. With one thread,
            close to 1 means that the generator was the bottleneck.
    """

    per_second: float
    answers: int
    bytes: float
    latency_ms: dict[str, float]
    busy: float


class Driver(Protocol):
    """A load generator, ready for use."""

    words: str
    """What it is."""

    def load(
        self, port: int, requests: Sequence[Request], *, connections: int, seconds: float
    ) -> Pace:
        """Send the requests in turn to a port of loopback, for the given seconds.

        Raises:
            WrongAnswer: an answer was neither 200 nor 304, or there was none.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def driver(name: str = "") -> Driver:
    """Return a load generator by its name, one of `DRIVERS`, or the best that is installed.

    Raises:
        DriverMissing: it is not installed.
    """
    wrk = shutil.which("wrk")
    if name == "processes" or (not name and wrk is None):
        return Processes(min(4, max(1, (os.cpu_count() or 1) - 1)))
    if wrk is None:
        raise DriverMissing("wrk is not installed")
    return Wrk(wrk)


class Wrk:
    """wrk, with one thread."""

    def __init__(self, program: str) -> None:
        self._program = program
        said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)  # noqa: S603 - found on PATH
        version = said.stdout.partition("[")[0].removeprefix("wrk").split()
        self.words = f"wrk {version[0] if version else ''}".strip() + ", one thread"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def load(
        self, port: int, requests: Sequence[Request], *, connections: int, seconds: float
    ) -> Pace:
        """Send requests with wrk, for a whole number of seconds."""
        whole = max(1, ceil(seconds))
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            for path, headers in requests:
                file.write("\t".join([path, *headers.splitlines()]) + "\n")
            file.flush()
            command = [
                *(self._program, "-t1", f"-c{connections}", f"-d{whole}s", "-s", str(_SCRIPT)),
                *(f"http://{HOST}:{port}", "--", file.name),
            ]
            for _ in range(_TRIES):
                pace = _run_wrk(command, whole + _PATIENCE)
                if pace is not None:
                    return pace
        raise WrongAnswer(f"no answer in {whole} s, {_TRIES} times")


def _run_wrk(command: Sequence[str], limit: float) -> Pace | None:
    """Return the result of one run; None if nothing was answered, and nothing failed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)  # noqa: S603 - wrk
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said, found, told = done.stdout.partition("\nJSON ")
    if not found:
        raise WrongAnswer(f"wrk: {done.stdout[-300:]}{done.stderr[-300:]}")
    result = json.loads(told)
    if result["failed"]:
        raise WrongAnswer(
            f"wrk counted {result['failed']} failures, {result['answers']} answers\n{said[-300:]}"
        )
    if not result["answers"]:
        return None
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Pace(
        per_second=result["answers"] / result["seconds"],
        answers=result["answers"],
        bytes=result["bytes"] / result["answers"],
        latency_ms=result["latency_ms"],
        busy=computed / result["seconds"],
    )


class Processes:
    """Several processes of `benchmarks.generator`."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._stack = ExitStack()
        self.words = f"benchmarks.generator, {count} process{'es' if count > 1 else ''}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(self._count, context)
            self._pool = stack.enter_context(pool)
            for ready in [pool.submit(time.sleep, 0.05) for _ in range(self._count)]:
                ready.result()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(
        self, port: int, requests: Sequence[Request], *, connections: int, seconds: float
    ) -> Pace:
        """Send requests from all processes, and add up their results."""
        raw = [get(path, header) for path, header in requests]
        each = [len(range(number, connections, self._count)) for number in range(self._count)]
        under_way = [self._pool.submit(load, port, raw, seconds, count) for count in each if count]
        loads = [future.result() for future in under_way]
        latencies = sorted(latency for one in loads for latency in one.latencies_ms)
        answers = sum(one.answers for one in loads)
        at = (max(0, ceil(len(latencies) * percent / 100) - 1) for percent in _PERCENTS)
        return Pace(
            per_second=sum(one.per_second for one in loads),
            answers=answers,
            bytes=sum(one.received for one in loads) / answers,
            latency_ms={f"{p:g}": latencies[i] for p, i in zip(_PERCENTS, at, strict=True)},
            busy=max(one.busy for one in loads),
        )
