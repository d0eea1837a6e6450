"""A worker, as for Celery or RQ, that reports progress through the cache.

python examples/worker.py

It makes a hundred reports in a second, and commits a few of them. If the worker and the pollers are
in different processes, use the backend `tiered` or `redis`; nothing else changes. Needs
`pip install jobcache`.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobcache import Document
from jobcache.sync import JobCache, Throttle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobcache import ReadResult

SCHEMA = "CREATE TABLE jobs (id INTEGER PRIMARY KEY, percent INTEGER, version INTEGER)"
READ = "SELECT percent, version FROM jobs WHERE id = ?"
REPORT = (
    "UPDATE jobs SET percent = ?, version = version + 1 WHERE id = ? RETURNING percent, version"
)


class Jobs:
    """The database behind a cache. Any thread may call any method."""

    def __init__(self, database: Path, cache: JobCache) -> None:
        self.database = database
        self.cache = cache
        with self.transaction() as connection:
            connection.execute(SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end of the block, or roll back after an exception."""
        with closing(sqlite3.connect(self.database)) as connection, connection:
            yield connection

    def add(self, job_id: int) -> None:
        """Insert a new job."""
        with self.transaction() as connection:
            connection.execute("INSERT INTO jobs VALUES (?, 0, 1)", (job_id,))

    def report(self, job_id: int, percent: int) -> None:
        """Commit progress, and publish it to the pollers."""
        key = f"job:{job_id}"
        with self.cache.write(self.transaction()) as write:
            row = write.transaction.execute(REPORT, (percent, job_id)).fetchone()
            write.fence(key)
            write.publish(key, document(*row))

    def newer(self, job_id: int, version: int) -> ReadResult | None:
        """Wait for a version newer than `version`; return None if there is none for 30 s."""
        return self.cache.wait_for_newer(f"job:{job_id}", lambda: self._load(job_id), version, 30)

    def _load(self, job_id: int) -> Document | None:
        with self.transaction() as connection:
            row = connection.execute(READ, (job_id,)).fetchone()
        return None if row is None else document(*row)


def document(percent: int, version: int) -> Document:
    """Return the document that answers a poll."""
    body = b'{"percent": %d}' % percent
    return Document(version, "acme", body, "done" if percent == 100 else "moving")  # noqa: PLR2004


def work(jobs: Jobs, job_id: int) -> None:
    """Work on a job, as a task of Celery or RQ would in its own process."""
    with Throttle(partial(jobs.report, job_id), interval=0.2) as throttle:
        for percent in range(100):
            throttle.report(percent)
            time.sleep(0.01)  # the work itself
        throttle.finish(100)


def follow(jobs: Jobs, job_id: int) -> int:
    """Print each change of the job until its end; return its last version."""
    version, status = 0, ""
    while status != "done":
        result = jobs.newer(job_id, version)
        if result is not None:
            version, status = result.version, result.entry.status
            print(f"{result.body.decode()} {result.outcome}", flush=True)
    return version


def main() -> None:
    """Work on a job in a thread, and follow it."""
    with tempfile.TemporaryDirectory() as folder, JobCache.from_url("memory://") as cache:
        jobs = Jobs(Path(folder) / "jobs.db", cache)
        jobs.add(7)
        worker = threading.Thread(target=work, args=(jobs, 7))
        worker.start()
        version = follow(jobs, 7)
        worker.join()
    print(f"101 reports, {version - 1} commits")


if __name__ == "__main__":
    main()
