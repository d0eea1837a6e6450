"""Processes of the first version and of this one on one Redis and one database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import redis as redis_client

from app.db.migrations.run import Migrations
from loadtests.freshness.older_version import OlderVersion
from tests.app.first_version import serving_first
from tests.app.process import NO_CERTIFICATES
from tests.app.running import Start, choosing

ROUNDS = 10


async def report(http: httpx.AsyncClient, job_id: int, percent: float) -> int:
    """Report progress; return the new version."""
    body = {"percent": percent}
    answer = await http.post(f"/api/v2/jobs/{job_id}/progress", json=body)
    assert answer.status_code == 200, answer.text
    version: int = answer.json()["version"]
    return version


async def poll(http: httpx.AsyncClient, job_id: int, **headers: str) -> httpx.Response:
    answer = await http.get(f"/api/v2/jobs/{job_id}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("backend", [pytest.param("redis", marks=pytest.mark.long), "tiered"])
async def test_each_version_serves_what_the_other_writes(
    backend: str,
    database_url: str,
    start: Start,
    first_version: OlderVersion,
    tmp_path: Path,
    *,
    request: pytest.FixtureRequest,
) -> None:
    chosen = choosing(request, backend) | {"DATABASE_URL": database_url}
    with (
        redis_client.Redis.from_url(chosen["REDIS_URL"]) as raw,
        serving_first(first_version, tmp_path, **chosen) as first,
    ):
        await Migrations(database_url).upgrade()
        async with (
            start(**chosen) as new,
            httpx.AsyncClient(base_url=first.url, timeout=60, verify=NO_CERTIFICATES) as http,
        ):
            job_id = (await new.rendering())["id"]
            key = f"job:{job_id}:progress"
            for writes, reads in ((new.http, http), (http, new.http)):
                hits = 0
                for percent in range(ROUNDS):
                    version = await report(writes, job_id, percent)
                    answer = await poll(reads, job_id)
                    async with asyncio.timeout(60):
                        # The change feed of tiered needs a moment.
                        while backend == "tiered" and answer.json()["version"] < version:
                            answer = await poll(reads, job_id)
                    assert answer.json()["version"] == version
                    # Redis may be too late for the deadlines of the first version.
                    hits += "; hit" in answer.headers["cache-status"]
                assert hits > 0, "the entry of the other version is served"

                seen = {"If-None-Match": f'"{version}-0"', "Prefer": "wait=60"}
                held = asyncio.create_task(poll(reads, job_id, **seen))
                changed = await report(writes, job_id, 50)
                assert (await held).json()["version"] == changed

                assert raw.exists(key)
                body = {"all": True}
                answer = await reads.post("/api/v2/cache/invalidate", json=body)
                assert answer.json()["purged"] > 0
                assert not raw.exists(key), "each version removes the entries of the other"
