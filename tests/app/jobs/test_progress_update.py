"""A progress update does its own work while the cache or the database does theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.jobs import documents
from app.jobs.schemas import JobBody
from tests.app.running import choosing, starting


async def test_the_document_is_made_while_the_fence_is_on_its_way(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with starting(tmp_path)(**choosing(request, "memory")) as service:
        job = await service.rendering()
        backend = service.services.cache.backend
        fence, fenced, made = backend.fence, asyncio.Event(), asyncio.Event()
        versions: list[int] = []

        async def slow_fence(key: str, token: str) -> None:
            await fence(key, token)
            await fenced.wait()

        def counted(**fields: Any) -> JobBody:
            versions.append(fields["version"])
            made.set()
            return JobBody(**fields)

        monkeypatch.setattr(backend, "fence", slow_fence)
        monkeypatch.setattr(documents, "JobBody", counted)
        report = service.services.jobs.report_progress(job["id"], 50.0, "", "", worker=True)
        update = asyncio.create_task(report)
        try:
            async with asyncio.timeout(30):
                await made.wait()
            assert not update.done()
        finally:
            fenced.set()
        assert versions == [(await update).version]
