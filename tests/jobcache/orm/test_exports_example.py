"""The example with FastAPI, SQLAlchemy and Celery: a worker's commits reach the polls."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import redis
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging

ROOT = Path(__file__).parents[3]


def _leave_logging_alone(**_: object) -> None:
    pass


@pytest.fixture
def example(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushall()
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("BROKER_URL", "memory://")
    monkeypatch.setenv("DATABASE", str(tmp_path / "exports.db"))
    sys.modules.pop("examples.exports", None)
    module = importlib.import_module("examples.exports")
    # Otherwise Celery's worker sets the level of the root logger, for all tests that follow.
    setup_logging.connect(_leave_logging_alone)
    yield module
    setup_logging.disconnect(_leave_logging_alone)
    module.blocking_cache.close()
    module.blocking_engine.dispose()


@pytest.mark.filterwarnings("default")
async def test_polls_follow_the_worker(example: ModuleType, patient: None) -> None:
    level = logging.getLogger().level
    transport = httpx.ASGITransport(example.app)
    with start_worker(example.queue, perform_ping_check=False):
        async with (
            example.app.router.lifespan_context(example.app),
            httpx.AsyncClient(transport=transport, base_url="http://exports", timeout=60) as client,
        ):
            created = await client.post("/exports")
            assert created.status_code == 202
            seen, headers = [], {"Prefer": "wait=30"}
            while not seen or seen[-1] != 100:
                poll = await client.get(created.headers["Location"], headers=headers)
                assert poll.status_code == 200
                seen.append(poll.json()["percent"])
                headers["If-None-Match"] = poll.headers["ETag"]
            assert "hit" in poll.headers["Cache-Status"]
    assert logging.getLogger().level == level
    assert seen == sorted(seen)
    assert len(seen) > 2


def test_the_example_is_short() -> None:
    lines = (ROOT / "examples" / "exports.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) < 80


def test_the_example_of_flask() -> None:
    shown = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / "flask_exports.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout.splitlines() == [
        '200 hit {"id": 1, "percent": 50}',
        '200 hit {"id": 1, "percent": 100}',
        "304 404",
    ]
