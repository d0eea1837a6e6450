"""A load that hangs is answered in time, and holds up no other poll."""

from __future__ import annotations

import asyncio

import pytest

from tests.app.running import Start


@pytest.mark.parametrize("backend", ["null", "memory"])
async def test_a_poll_whose_load_hangs_gets_retry_after(
    start: Start, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(JOBCACHE_BACKEND=backend, JOBCACHE_LOAD_TIMEOUT="0.2") as service:
        job = await service.rendering()
        path = f"/api/v2/jobs/{job['id']}"
        await service.services.cache.invalidate(f"job:{job['id']}:progress")
        store = service.services.jobs._store

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(store, "load", hang)
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*(service.http.get(path) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [503] * 3
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        assert (await service.http.get(path)).status_code == 200
        assert (await service.stats())["statistics"]["read_errors"] == 3
