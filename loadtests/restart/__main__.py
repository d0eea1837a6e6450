"""Restart the processes of the service in turn while clients wait.

python -m loadtests.restart --backend redis --clients 60
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from app.devservers import PostgresServer, RedisServer
from benchmarks.backends import NEEDS_REDIS
from benchmarks.machine import surroundings
from benchmarks.process import exit_at_sigterm
from loadtests.restart.run import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.restart.run import Report

_JOBS = 12


def main(arguments: Sequence[str]) -> int:
    """Run it; return 1 if a client noticed more than a lost connection, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.restart",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    shared = [name for name, needs_redis in NEEDS_REDIS.items() if needs_redis]
    parser.add_argument("--backend", choices=shared, default=shared[-1])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=5 * _JOBS, help=f"over {_JOBS} jobs")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.clients < 1:
        parser.error("--processes and --clients must be at least 1")
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer())
        settings = {
            "JOBCACHE_BACKEND": options.backend,
            "DATABASE_URL": postgres.url(),
            "REDIS_URL": stack.enter_context(RedisServer()).url,
        }
        waiting = max(1, options.clients // _JOBS)
        report = asyncio.run(
            run(settings, processes=options.processes, jobs=_JOBS, waiting=waiting)
        )
    around = ", ".join(f"{name} {text}" for name, text in surroundings().items())
    sys.stdout.write(f"{options.backend}: {as_text(report)}\nTaken with: {around}.\n")
    return 1 if complaints(report) else 0


def complaints(report: Report) -> list[str]:
    """Return the reasons why it is a failure, as sentences."""
    found = list(report.failures)
    for status, took in report.endings:
        if status != 0:
            found.append(f"a process ended with {status} after {took:.1f} s")
    return found


def as_text(report: Report) -> str:
    """Return the report as text."""
    delays = sorted(report.delays)
    late = f"{statistics.median(delays):.3f} s median, {delays[-1]:.3f} s at most" if delays else ""
    took = ", ".join(f"{seconds:.1f}" for _, seconds in report.endings)
    lines = [
        f"{report.clients} clients, {len(report.delays)} saw the end of their jobs ({late})",
        f"{report.versions} versions in {report.requests} requests, {report.reconnects} sent again",
        f"{report.connections} connections; {report.retried} requests of workers sent again",
        f"{len(report.endings)} processes ended, in {took} s",
        *(f"FAILED: {complaint}" for complaint in complaints(report)),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))
