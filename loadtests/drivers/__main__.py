"""Run a driver: `python -m loadtests.drivers stampede --port 8000 --report FILE ...`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.arguments import count, positive
from loadtests.drivers import dashboards, leaving_clients, stampede, streams, writers
from loadtests.drivers.session import DriverFailed, Options, Session
from loadtests.pollers.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

DRIVERS = {
    "stampede": stampede.drive,
    "dashboards": dashboards.drive,
    "streams": streams.drive,
    "leaving_clients": leaving_clients.drive,
    "writers": writers.drive,
}
"""All drivers by name; the results of each are those of the Locust test."""


def main(arguments: Sequence[str]) -> int:
    """Run a driver and write its results; return 1 if it could not do its work."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.drivers", description=__doc__)
    parser.add_argument("driver", choices=DRIVERS)
    parser.add_argument("--port", type=count, required=True, help="of the service")
    parser.add_argument("--users", type=count, required=True)
    parser.add_argument("--jobs", type=count, required=True)
    parser.add_argument("--poll-interval", type=positive, required=True, help="seconds")
    parser.add_argument("--job-seconds", type=positive, required=True)
    parser.add_argument("--job-updates", type=count, required=True)
    parser.add_argument("--report", type=Path, required=True, help="file for the results, as JSON")
    options = parser.parse_args(arguments)
    record = Record()
    session = Session(
        options.port,
        record,
        Options(
            users=options.users,
            jobs=options.jobs,
            interval=options.poll_interval,
            job_seconds=options.job_seconds,
            updates=options.job_updates,
        ),
    )
    failures: tuple[Exception, ...] = ()
    try:
        asyncio.run(DRIVERS[options.driver](session))
    except* (DriverFailed, OSError) as failed:
        failures = failed.exceptions
    if failures:
        sys.stderr.write(f"{failures}\n")
        return 1
    options.report.write_text(json.dumps(record.report(), indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
