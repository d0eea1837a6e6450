"""Two services with databases of their own on one Redis: the second is refused."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
import redis as redis_client
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from app.db.database import Database
from app.db.tables import identity
from app.devservers import free_port
from jobcache.errors import NamespaceConflict
from tests.app.process import launch
from tests.app.running import Start, choosing
from tests.pairs import DATABASES

REMOTE = ["redis", "tiered"]


@pytest.mark.parametrize("backend", REMOTE)
@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_a_second_service_with_another_database_is_refused_and_a_prefix_helps(
    backend: str,
    database_url: str,
    start: Start,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    chosen = choosing(request, backend)
    other = f"sqlite+aiosqlite:///{tmp_path / 'other.db'}"
    async with start(DATABASE_URL=database_url, **chosen) as first:
        job = await first.create(prompt="The first service's job.")
        with pytest.raises(NamespaceConflict, match="set JOBCACHE_PREFIX"):
            async with start(DATABASE_URL=other, **chosen):
                pass
        async with start(DATABASE_URL=other, JOBCACHE_PREFIX="second:", **chosen) as second:
            assert (await second.http.get(f"/api/v2/jobs/{job['id']}")).status_code == 404
        async with start(DATABASE_URL=database_url, **chosen) as again:
            assert (await again.job(job["id"]))["prompt"] == "The first service's job."


@pytest.mark.parametrize("backend", REMOTE)
async def test_a_service_that_loses_its_namespace_answers_from_its_database_and_says_why(
    backend: str, start: Start, database_url: str, request: pytest.FixtureRequest
) -> None:
    chosen = choosing(request, backend)
    async with start(DATABASE_URL=database_url, **chosen) as service:
        job = await service.create()
        with redis_client.Redis.from_url(chosen["REDIS_URL"]) as raw:
            raw.flushall()
            raw.set("jobcache:source", "another database")
        async with asyncio.timeout(20):
            while (await service.stats())["statistics"]["redis_available"]:
                # An unknown job is not in the local tier, either.
                await service.http.get(f"/api/v2/jobs/{job['id'] + 1000}")
                await service.job(job["id"])
                await asyncio.sleep(0.01)
        assert "JOBCACHE_PREFIX" in (await service.stats())["message"]
        answer = await service.http.get(f"/api/v2/jobs/{job['id']}")
        assert answer.status_code == 200
        assert "fwd=bypass" in answer.headers["Cache-Status"]


@pytest.mark.parametrize("backend", REMOTE)
def test_the_command_ends_with_one_line(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chosen = choosing(request, backend)
    with redis_client.Redis.from_url(chosen["REDIS_URL"]) as raw:
        raw.set("jobcache:source", "another database")
    log = tmp_path / "log.txt"
    child = launch(tmp_path, free_port(), log, **chosen)
    try:
        assert child.wait(60) == 2
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise
    said = log.read_text().strip().splitlines()
    assert len(said) == 1, said
    assert "JOBCACHE_PREFIX" in said[0]


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_a_database_keeps_its_identity_and_no_other_has_it(
    database_url: str, tmp_path: Path
) -> None:
    first = Database(database_url)
    again = Database(database_url)
    other = Database(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
    try:
        await asyncio.gather(first.prepare_tables(), again.prepare_tables(), other.prepare_tables())
        source_id = await first.source_id()
        assert len(source_id) == 32
        assert await again.source_id() == source_id != await other.source_id()
        await first.prepare_tables()
        assert await first.source_id() == source_id
    finally:
        for database in (first, again, other):
            await database.aclose()
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        rows = (await connection.execute(sa.select(identity.c.source_id))).all()
    await engine.dispose()
    assert len(rows) == 1
