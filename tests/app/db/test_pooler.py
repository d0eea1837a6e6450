"""The service behind PgBouncer in transaction mode, without a setting that says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from app.db.connections import Pooler
from app.db.database import Database
from app.db.migrations.run import Migrations
from app.db.revisions import HEAD
from app.devservers import PgBouncerServer, PostgresServer
from app.devservers.programs import pgbouncer_program
from app.ops.readiness import Readiness
from jobcache import SettingsError
from tests.app.db.test_database import closed
from tests.app.process import serving
from tests.app.running import Service, Start
from tests.installed import require_program


@pytest.fixture(autouse=True)
def readiness_is_checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once per second, or a test would have to wait for it."""
    monkeypatch.setattr(Readiness.__init__, "__defaults__", (0.0, time.monotonic))


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def pooled_url(
    pgbouncer: PgBouncerServer, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """An empty database, through the pooler."""
    name = tmp_path_factory.mktemp("pooled", numbered=True).name
    postgres.create_database(name)
    return pgbouncer.url(name)


async def transitions(service: Service, number: int) -> None:
    """A job from its creation to its end, polled after each step."""
    job = await service.rendering(client_id=f"client-{number}")
    for percent in range(0, 100, 20):
        reported = await service.post(f"{job['id']}/progress", percent=percent)
        polled = await asyncio.gather(*(service.job(job["id"]) for _ in range(5)))
        assert polled == [reported] * 5
        listed = await service.http.get(f"/api/v2/jobs?client_id=client-{number}")
        assert listed.json()["items"] == [reported]
        page = await service.http.get("/api/v2/jobs?status=rendering&limit=5")
        assert page.status_code == 200, page.text
    done = await service.post(f"{job['id']}/complete")
    assert await service.job(job["id"]) == done


@pytest.mark.parametrize(
    "backend_environment",
    [
        *("null", "tiered"),
        *(pytest.param(backend, marks=pytest.mark.long) for backend in ("memory", "redis")),
    ],
    indirect=True,
)
async def test_concurrent_polls_and_transitions_succeed(
    start: Start, pooled_url: str, backend_environment: dict[str, str]
) -> None:
    """More at once than the pooler has connections: it swaps them between all statements."""
    async with start(DATABASE_URL=pooled_url, **backend_environment) as service:
        await asyncio.gather(*(transitions(service, number) for number in range(12)))
        assert service.services.database.connections.pooled
        assert (await service.http.get("/readyz")).status_code == 200


async def test_two_services_do_not_meet_in_each_others_statements(
    start: Start, pooled_url: str
) -> None:
    environment = {"DATABASE_URL": pooled_url, "JOBCACHE_BACKEND": "null"}
    async with start(**environment) as one, start(**environment) as another:
        await asyncio.gather(
            *(transitions(each, number) for number, each in enumerate([one, another] * 4))
        )


async def test_connections_that_are_killed_cost_no_request_that_could_be_repeated(
    start: Start, pooled_url: str, postgres: PostgresServer
) -> None:
    direct = Database(postgres.url())
    async with start(DATABASE_URL=pooled_url, JOBCACHE_BACKEND="null") as service:
        job = await service.rendering()
        stop = asyncio.Event()
        statuses = set()

        async def poll() -> None:
            while not stop.is_set():
                answer = await service.http.get(f"/api/v2/jobs/{job['id']}")
                statuses.add(answer.status_code)
                answer = await service.http.post(
                    f"/api/v2/jobs/{job['id']}/progress", json={"percent": 1}
                )
                statuses.add(answer.status_code)

        pollers = [asyncio.create_task(poll()) for _ in range(10)]
        for _ in range(20):
            await direct.read(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = :name"
                ),
                "test",
                name=service.services.database.connections.engine.url.database,
            )
            await asyncio.sleep(0.02)  # between kills, not instead of a condition
        stop.set()
        await asyncio.gather(*pollers)
        assert statuses <= {200, 503}
        assert (await service.job(job["id"]))["status"] == "rendering"
    await closed(direct)


async def test_a_pooler_that_is_restarted_costs_no_request(
    start: Start, postgres: PostgresServer
) -> None:
    require_program(pgbouncer_program)
    postgres.create_database("restarted")
    with PgBouncerServer(postgres) as pooler:
        async with start(DATABASE_URL=pooler.url("restarted"), JOBCACHE_BACKEND="null") as service:
            job = await service.rendering()
            pooler.stop()
            refused = await service.http.get(f"/api/v2/jobs/{job['id']}")
            assert refused.status_code == 503
            assert (await service.http.get("/readyz")).status_code == 503
            pooler.start()
            reported = await service.post(f"{job['id']}/progress", percent=5)
            assert await service.job(job["id"]) == reported
            assert (await service.http.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("pooler", "options", "pooled"),
    [
        ("auto", "", False),
        ("none", "", False),
        ("transaction", "", True),
        ("auto", "&pgbouncer=true", True),
    ],
)
async def test_a_direct_connection_keeps_prepared_statements_unless_it_may_not(
    postgres_url: str, pooler: Pooler, options: str, *, pooled: bool
) -> None:
    database = Database(postgres_url + options, pooler=pooler)
    for _ in range(3):
        await database.read(text("SELECT 1"), "test")
    assert database.connections.pooled is pooled
    kept = await database.read(text("SELECT count(*) FROM pg_prepared_statements"), "test")
    assert (kept != [(0,)]) is not pooled
    await closed(database)


async def test_nothing_that_is_prepared_stays_on_the_connections_of_the_pooler(
    start: Start, pooled_url: str, postgres: PostgresServer
) -> None:
    async with start(DATABASE_URL=pooled_url, JOBCACHE_BACKEND="null") as service:
        await transitions(service, 1)
        kept = await service.services.database.read(
            text("SELECT count(*) FROM pg_prepared_statements"), "test"
        )
        assert kept == [(0,)]


async def test_an_address_that_moves_to_a_pooler_is_noticed(
    start: Start, small: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require_program(pgbouncer_program)
    with PgBouncerServer(small, settings={"listen_port": "5432"}) as pooler:
        address = tmp_path_factory.mktemp("a") / "s"
        address.symlink_to(small.socket_directory)
        async with start(
            DATABASE_URL=f"postgresql://postgres@/postgres?host={address}",
            JOBCACHE_BACKEND="null",
        ) as service:
            await transitions(service, 1)
            assert not service.services.database.connections.pooled
            address.unlink()
            address.symlink_to(pooler.socket_directory)
            small.stop()
            small.start()
            await asyncio.gather(*(transitions(service, number) for number in range(2, 10)))
            assert service.services.database.connections.pooled


def test_two_processes_share_the_pooler(
    pooled_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("processes")
    environment = {
        "DATABASE_URL": pooled_url,
        "JOBCACHE_BACKEND": "null",
        "JOBCACHE_RENDERER": "simulated",
        "JOBCACHE_SIMULATED_SECONDS": "0.2",
    }
    with (
        serving(directory, **environment) as one,
        serving(directory, **environment) as another,
    ):
        jobs = [one.rendering() for _ in range(3)] + [another.rendering() for _ in range(3)]
        for job_id in jobs:
            assert one.until(job_id, "completed") == another.until(job_id, "completed")
        assert "Traceback" not in one.log.read_text() + another.log.read_text()


async def test_new_tables_are_created_through_a_pooler_and_others_not_migrated(
    pooled_url: str,
) -> None:
    migrations = Migrations(pooled_url)
    await migrations.upgrade()
    await migrations.upgrade()
    with pytest.raises(SettingsError, match="a migration needs one session, and this is a pooler"):
        await migrations.downgrade("-1")
    assert await migrations.current() == HEAD
