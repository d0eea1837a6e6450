"""The code of docs/workers.md runs on each of its queues, over a real broker."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.app.process import clean_environment
from tests.test_documents import blocks

RUN = '''
import json, time
from celery.contrib.testing.worker import start_worker
from dramatiq import Worker
from rq import SimpleWorker

import exports, on_celery, on_dramatiq, on_rq

def load():
    raise AssertionError("the poll is not a hit")

def polled(export_id):
    return exports.cache.read(f"export:{export_id}", load).json()["percent"]

def finished(export_id):
    """Whether it is, and published, too."""
    query = "SELECT id, percent, version FROM exports WHERE id = ?"
    def load():
        with exports.transaction() as connection:
            return exports.document(*connection.execute(query, (export_id,)).fetchone())
    result = exports.cache.read(f"export:{export_id}", load)
    return result.json()["percent"] == 100 and result.outcome == "hit"

ended = {}
with start_worker(on_celery.queue, perform_ping_check=False, loglevel="ERROR"):
    on_celery.make.delay(1)
    on_celery.send_again.delay()
    while not finished(1):
        time.sleep(0.01)
ended["celery"] = polled(1)

with exports.transaction() as connection:
    connection.execute("INSERT INTO exports VALUES (2, 0, 1, '', 0), (3, 60, 9, 'dead', 1)")
on_rq.send_again()
on_rq.send_again()
assert on_rq.queue.count == 2
SimpleWorker([on_rq.queue], connection=on_rq.redis).work(burst=True, logging_level="ERROR")
ended["rq"] = [polled(2), polled(3)]

with exports.transaction() as connection:
    connection.execute("INSERT INTO exports VALUES (4, 0, 1, '', 0)")
on_dramatiq.send_again()
worker = Worker(on_dramatiq.broker, worker_threads=1, worker_timeout=100)
worker.start()
on_dramatiq.broker.join("exports")
worker.join()
worker.stop()
ended["dramatiq"] = polled(4)

exports.work(4)  # a message that arrives twice
try:
    exports.report(4, "a worker without a claim", 10)
except exports.ClaimLost:
    ended["refused"] = polled(4)
print(json.dumps(ended))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for code in blocks("docs/workers.md", "python"):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None
        (tmp_path / name[1]).write_text(code)
    return tmp_path


def test_each_queue_makes_its_exports(folder: Path, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushall()
    database = folder / "exports.db"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE exports (id INTEGER PRIMARY KEY, percent, version, worker, claimed_until)"
        )
        connection.execute("INSERT INTO exports VALUES (1, 0, 1, '', 0)")
    connection.close()
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env=clean_environment()
        | {"REDIS_URL": redis_url, "BROKER_URL": redis_url, "DATABASE": str(database)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "celery": 100,
        "rq": [100, 100],
        "dramatiq": 100,
        "refused": 100,
    }
