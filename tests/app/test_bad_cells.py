"""Cells with bad bodies, and very large documents, cost no answer over HTTP."""

from __future__ import annotations

import gzip
import zlib

import pytest
import redis as redis_client
from sqlalchemy import text

from tests.app.running import Start, choosing


def spoil(url: str, key: str, encoding: str, body: bytes) -> None:
    """Replace the body of a cell, and its checksum."""
    with redis_client.Redis.from_url(url) as raw:
        cell = raw.get(key)
        assert isinstance(cell, bytes), key
        header = cell[: cell.index(b"\n")].split(b"|")
        header[6], header[7] = encoding.encode(), b"%08x" % zlib.crc32(body)
        raw.set(key, b"|".join(header) + b"\n" + body, px=60_000)


BODIES = {
    "no gzip": ("gzip", b"rubbish"),
    "gzip cut short": ("gzip", gzip.compress(b"[" * 5000)[:-5]),
    "no JSON": ("identity", b"rubbish"),
    "another JSON": ("gzip", gzip.compress(b'[{"ids": 7}]')),
    "no list": ("identity", b'{"ids": ["1"], "complete": true}'),
    "half a list": ("identity", b'{"ids": [1]}'),
}


@pytest.mark.parametrize(
    ("backend", "bad"),
    [
        *(("tiered", bad) for bad in BODIES),
        ("redis", "no gzip"),
        *(pytest.param("redis", bad, marks=pytest.mark.long) for bad in BODIES if bad != "no gzip"),
    ],
)
async def test_a_cell_with_a_bad_body_is_loaded_again(
    request: pytest.FixtureRequest, start: Start, backend: str, bad: str
) -> None:
    environment = choosing(request, backend)
    async with start(**environment) as service:
        job = await service.rendering()
        paths = {
            f"job:{job['id']}:progress": f"/api/v2/jobs/{job['id']}",
            "jobs:acme": "/api/v2/jobs?client_id=acme",
            f"job:{job['id']}:storyboard": f"/api/v2/jobs/{job['id']}/storyboard",
        }
        batch = f"/api/v2/jobs?ids={job['id']}"
        for key, path in paths.items():
            if "list" in bad and key != "jobs:acme":
                continue
            right = (await service.http.get(path)).json()
            together = (await service.http.get(batch)).json()
            spoil(environment["REDIS_URL"], key, *BODIES[bad])
            service.services.cache.backend.clock_set_back(0)  # type: ignore[attr-defined] # forget
            for _ in range(3):
                again = await service.http.get(batch)
                assert again.status_code == 200
                assert again.json() == together
                answer = await service.http.get(path)
                assert answer.status_code == 200, answer.text
                assert answer.json() == right
                plain = await service.http.get(path, headers={"accept-encoding": "identity"})
                assert plain.json() == right


@pytest.mark.parametrize(
    "backend",
    [
        *("null", "tiered"),
        *(pytest.param(backend, marks=pytest.mark.long) for backend in ("memory", "redis")),
    ],
)
async def test_a_document_of_65_mib_is_served(
    request: pytest.FixtureRequest, start: Start, backend: str
) -> None:
    async with start(**choosing(request, backend)) as service:
        job = await service.create(renderer="external")
        await service.until(job["id"], "storyboard_ready")
        large = b'{"scenes": "' + bytes([97]) * (65 * 1024 * 1024) + b'"}'
        async with service.services.database.transaction() as connection:
            await connection.execute(
                text("UPDATE jobs SET storyboard = :large WHERE id = :id"),
                {"large": large.decode(), "id": job["id"]},
            )
        await service.services.cache.invalidate(f"job:{job['id']}:storyboard")
        for accepted in ("gzip", "identity"):
            headers = {"accept-encoding": accepted}
            path = f"/api/v2/jobs/{job['id']}/storyboard"
            answer = await service.http.get(path, headers=headers)
            assert answer.status_code == 200
            assert answer.content == large
        stats = await service.stats()
        assert stats["statistics"]["errors"] == 0
