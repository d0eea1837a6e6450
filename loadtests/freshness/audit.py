"""The final audit: once all jobs are at rest, compare each process with the database."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from app.db.database import Database
from app.db.tables import RUNNABLE, jobs
from app.jobs.states import TERMINAL
from loadtests.connection import get
from loadtests.freshness.checker import Finding, Kind
from loadtests.freshness.connection import NoAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Row

    from loadtests.freshness.clients import Watch
    from loadtests.freshness.cluster import Cluster, Service
    from loadtests.freshness.connection import LastingConnection

_SETTLE = 30.0  # seconds until the service's own jobs must be at rest
_LOOK = 0.1  # seconds between two looks
_AT_ONCE = 4  # connections to each process
_COLUMNS = (jobs.c.id, jobs.c.version, jobs.c.status, jobs.c.percent, jobs.c.stage, jobs.c.message)

_PROGRESS = ("percent", "stage", "message")
_OK = 200


async def audit(watch: Watch, cluster: Cluster) -> int:
    """Compare all jobs, count differences as found between faults; return the number of responses.

    Raises:
        TimeoutError: jobs kept changing.
    """
    database = Database(cluster.postgres.url())
    try:
        deadline = time.monotonic() + _SETTLE
        while await database.read(select(jobs.c.id).where(RUNNABLE), "audit"):
            if time.monotonic() > deadline:
                raise TimeoutError("the service does not finish what it has begun")
            await asyncio.sleep(_LOOK)
        rows = {row.id: row for row in await database.read(select(*_COLUMNS), "audit")}
    finally:
        await database.aclose()
    for job_id in watch.ledger.job_ids:
        row = rows.get(job_id)
        version = None if row is None else row.version
        terminal = row is not None and row.status in TERMINAL
        findings = watch.ledger.compare(job_id, version, terminal=terminal)
        watch.tallies[""].judge(findings, watch.scope, None, "the database, in the end")
    known = set(watch.ledger.job_ids) & set(rows)
    connections = [watch.connections() for _ in range(_AT_ONCE)]
    read = 0
    for service in cluster.services:
        todo = iter(sorted(known))
        workers = [
            _compare(watch, some[service.number], service, todo, rows) for some in connections
        ]
        read += sum(await asyncio.gather(*workers))
    return read


async def _compare(
    watch: Watch,
    connection: LastingConnection,
    service: Service,
    todo: Iterator[int],
    rows: Mapping[int, Row[Any]],
) -> int:
    read = 0
    for job_id in todo:
        pending = watch.ledger.begin("audit", job_id)
        try:
            answer = await connection.send(get(f"/api/v2/jobs/{job_id}"))
        except NoAnswer as error:
            findings = [Finding(Kind.UNANSWERED, job_id, str(error))]
            watch.judge(findings, watch.scope, service, None)
            continue
        read += 1
        if answer.status == _OK:
            findings = watch.ledger.answered(pending, answer.version, answer.body)
            findings += _difference(job_id, answer.body, rows[job_id])
        else:
            findings = [Finding(Kind.REFUSED, job_id, f"{answer.status} in the end")]
        watch.judge(findings, watch.scope, service, answer)
    return read


def _difference(job_id: int, body: bytes, row: Row[Any]) -> list[Finding]:
    shown = json.loads(body)
    progress = shown["progress"]
    shows = (shown["version"], shown["status"], *(progress[name] for name in _PROGRESS))
    has = (row.version, row.status, row.percent, row.stage, row.message)
    if shows == has:
        return []
    return [Finding(Kind.DIFFERS, job_id, f"{shows} is shown, and {has} is in the database")]
