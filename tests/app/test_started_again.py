"""One application, started and stopped several times in one process, and in processes forked."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import pytest

from app import settings
from app.main import Application, create_app
from tests.pairs import DATABASES


@pytest.fixture
def application(
    backend_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Application]:
    """Makes an application on a backend, to be given the URL of its database."""

    def make(database_url: str) -> Application:
        environment = {
            **backend_environment,
            "DATABASE_URL": database_url,
            "JOBCACHE_VAR_DIR": str(tmp_path / "var"),
            "JOBCACHE_RENDERER": "simulated",
            "JOBCACHE_SIMULATED_SECONDS": "0.1",
            "JOBCACHE_SIMULATED_UPDATES": "1",
        }
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            return create_app(settings.load())

    return make


async def _run(app: Application) -> None:
    """Start it, use each of its parts, stop it."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            assert (await http.get("/readyz")).status_code == 200
            assert not app.state.services.held.shutdown.begun
            body = {"client_id": "acme", "prompt": "A cat sits."}
            made = await http.post("/api/v2/jobs", json=body)
            assert made.status_code == 202, made.text
            url = made.headers["location"]
            seen = made.headers["etag"]
            status = "pending"
            async with asyncio.timeout(60):
                while status != "storyboard_ready":  # the runner's doing
                    asked = {"if-none-match": seen, "prefer": "wait=20"}
                    poll = await http.get(url, headers=asked)
                    if poll.status_code == 200:
                        seen, status = poll.headers["etag"], poll.json()["status"]
            again = await http.get(url)
            assert again.json()["status"] == "storyboard_ready"
            stats = (await http.get("/api/v2/cache/stats")).json()["statistics"]
            assert stats["errors"] == 0
            cached = "fwd=miss" if stats["backend"] == "null" else "hit"
            assert cached in again.headers["cache-status"]


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_it_is_started_again_in_the_same_loop(
    application: Callable[[str], Application], database_url: str
) -> None:
    app = application(database_url)
    for _ in range(3):
        await _run(app)


def test_it_is_started_again_in_other_loops(
    application: Callable[[str], Application], tmp_path: Path
) -> None:
    app = application(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")
    for _ in range(3):
        asyncio.run(_run(app))


async def test_a_start_that_fails_can_be_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "missing"
    chosen = settings.Settings(
        JOBCACHE_VAR_DIR=tmp_path / "var",
        DATABASE_URL=f"sqlite+aiosqlite:///{place / 'jobs.db'}",
        JOBCACHE_RENDERER="simulated",
    )
    app = create_app(chosen)
    with pytest.raises(Exception, match="unable to open"):
        async with app.router.lifespan_context(app):
            pass
    place.mkdir()
    await _run(app)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_forked_from_one_application_each_process_has_a_name_of_its_own(tmp_path: Path) -> None:
    chosen = settings.Settings(
        JOBCACHE_VAR_DIR=tmp_path / "var",
        DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}",
        JOBCACHE_RENDERER="simulated",
        cache={"backend": "null"},
    )
    app = create_app(chosen)

    async def name() -> str:
        async with app.router.lifespan_context(app):
            made: str = app.state.services.runner._name
            return made

    def tell(connection: Connection) -> None:
        connection.send(asyncio.run(name()))

    forking = multiprocessing.get_context("fork")
    names = set()
    for _ in range(3):
        ours, theirs = forking.Pipe()
        child = forking.Process(target=tell, args=(theirs,))
        child.start()
        theirs.close()
        assert ours.poll(60), "the child does not answer"
        names.add(ours.recv())
        child.join()
    assert len(names) == 3
    assert "" not in names
