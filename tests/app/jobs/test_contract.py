"""The service keeps to its own OpenAPI document for all requests that Schemathesis generates."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.devservers import PostgresServer
from tests.app.process import Process, serving
from tests.app.running import Start

ROOT = Path(__file__).parents[3]
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
SHORT = {"max-examples = 20 ": "max-examples = 4 ", "max-examples = 100 ": "max-examples = 20 "}
"""What becomes of the examples of each operation, unless it is a long run."""
PHASES = {
    "memory on SQLite": ("--phases", "examples,coverage", "--mode", "negative"),
    "redis on PostgreSQL": ("--phases", "examples,fuzzing,stateful"),
}
"""By kind, unless it is a long run, in which each has all, and all modes.

The coverage phase takes its time for texts that match a pattern; fuzzing makes them, too."""

OPERATIONS = {
    "POST /api/v2/jobs",
    "GET /api/v2/jobs",
    "GET /api/v2/jobs/{job_id}",
    "GET /api/v2/jobs/{job_id}/events",
    "GET /api/v2/jobs/{job_id}/storyboard",
    "GET /api/v2/jobs/{job_id}/video",
    "POST /api/v2/jobs/{job_id}/approve",
    "POST /api/v2/jobs/{job_id}/render",
    "POST /api/v2/jobs/{job_id}/cancel",
    "POST /api/v2/jobs/{job_id}/progress",
    "POST /api/v2/jobs/{job_id}/complete",
    "POST /api/v2/jobs/{job_id}/fail",
    "GET /api/v2/cache/stats",
    "POST /api/v2/cache/invalidate",
    "GET /metrics",
    "GET /healthz",
    "GET /readyz",
    "GET /openapi.json",
}
"""The contract's table of endpoints, written down apart from the code."""


async def described(start: Start) -> dict[str, Any]:
    async with start() as service:
        document: dict[str, Any] = (await service.http.get("/openapi.json")).json()
    return document


async def test_the_document_has_the_endpoints_of_the_contract_and_no_other(start: Start) -> None:
    paths = (await described(start))["paths"]
    found = {f"{method.upper()} {path}" for path in paths for method in paths[path]}
    heads = {f"HEAD {operation[4:]}" for operation in OPERATIONS if operation.startswith("GET ")}
    assert found == OPERATIONS | heads


async def test_every_link_and_reference_of_the_document_leads_somewhere(start: Start) -> None:
    document = await described(start)
    operations = [each for path in document["paths"].values() for each in path.values()]
    named = {operation["operationId"]: operation for operation in operations}
    assert len(named) == len(operations), "each has a name of its own"
    links = [
        link
        for operation in operations
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert links
    for link in links:
        parameters = {each["name"] for each in named[link["operationId"]]["parameters"]}
        assert link["parameters"].keys() <= parameters
    schemas = set(document["components"]["schemas"])
    references = json.dumps(document).split('"#/components/schemas/')[1:]
    assert {reference.partition('"')[0] for reference in references} <= schemas
    assert "HTTPValidationError" not in schemas, "422 is a problem document, too"


def prepare(process: Process, videos: Path, database_url: str) -> None:
    """Jobs 1 to 5, so that there is something to ask for: one of each kind of answer."""
    film = process.rendering()
    assert film == 1
    process.until(film, "completed")
    videos.mkdir(exist_ok=True)
    (videos / "1.mp4").write_bytes(b"0123456789" * 10)
    process.rendering(renderer="external")
    for fields in ({"renderer": "external", "prompt": "A long story. " * 120}, {}, {}):
        body = {"client_id": "acme", "prompt": "A cat sits.", **fields}
        job = process.http.post("/api/v2/jobs", json=body).raise_for_status().json()
        process.until(job["id"], "storyboard_ready")
    process.http.post("/api/v2/jobs/5/cancel").raise_for_status()
    asyncio.run(_lose_storyboard(database_url, 5))
    process.http.post("/api/v2/cache/invalidate", json={"all": True}).raise_for_status()


async def _lose_storyboard(database_url: str, job_id: int) -> None:
    # As of a job that was cancelled before it had one, for which this would have to race.
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        nothing = "UPDATE jobs SET storyboard = NULL, storyboard_version = NULL WHERE id = :id"
        await connection.execute(text(nothing), {"id": job_id})
    await engine.dispose()


@pytest.mark.parametrize("kind", ["memory on SQLite", "redis on PostgreSQL"])
def test_schemathesis_finds_no_answer_outside_the_contract(
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    *,
    long: bool,
) -> None:
    """To replay a failure: the seed is pytest-randomly's, `--randomly-seed=`; without it, 1."""
    configuration = tmp_path / "schemathesis.toml"
    text = CONFIGURATION.read_text()
    for full, short in SHORT.items():
        assert full in text
        text = text if long else text.replace(full, short)
    configuration.write_text(text)
    seed = request.config.getoption("randomly_seed", default=1)
    monkeypatch.delenv(
        "COVERAGE_PROCESS_CONFIG", raising=False
    )  # it would halve the number of examples
    environment = {
        "JOBCACHE_BACKEND": "memory",
        "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}",
        "JOBCACHE_RENDERER": "simulated",
        "JOBCACHE_SIMULATED_SECONDS": "0.2",
        "JOBCACHE_SIMULATED_UPDATES": "2",
        "JOBCACHE_STREAM_SECONDS": "0.1",  # or nobody would see the end of one
    }
    if kind == "redis on PostgreSQL":
        server: PostgresServer = request.getfixturevalue("postgres")
        server.create_database("contract")
        url: str = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as raw:
            raw.flushall()
        environment |= {
            "JOBCACHE_BACKEND": "redis",
            "DATABASE_URL": server.url("contract"),
            "REDIS_URL": url,
        }
    with serving(tmp_path, **environment) as process:
        prepare(process, tmp_path / "var" / "videos", environment["DATABASE_URL"])
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
            *("run", f"{process.url}/openapi.json", "--no-color"),
            *("--seed", str(seed)),
            *(() if long else PHASES[kind]),
        ]
        run = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert "Tested: " in run.stdout
        log = process.log.read_text()
    assert "Traceback" not in log
