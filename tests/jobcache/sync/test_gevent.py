"""`jobcache.sync` where gevent or eventlet has patched the standard library.

Patching lasts as long as a process, so each test starts one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import redis as redis_client

from tests.app.process import clean_environment

ROOT = Path(__file__).parents[3]


def run(*arguments: str, limit: float = 90) -> str:
    """Run Python with these arguments; return its standard output."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", *arguments],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


# Early: before jobcache is imported.
PATCHES: list[tuple[str, dict[str, bool]]] = [
    ("early", {}),
    ("late", {}),
    ("early", {"thread": False}),
    ("late", {"thread": False, "queue": False}),
    ("late", {"queue": False}),
    ("early", {"select": False, "socket": False}),
]


@pytest.mark.parametrize(
    ("backend", "when", "patched"),
    [
        # Each way to patch with a backend of its own, and each that goes by sockets early and late.
        ("memory", *PATCHES[0]),
        ("redis", *PATCHES[1]),
        ("tiered", *PATCHES[2]),
        ("tiered", *PATCHES[3]),
        ("memory", *PATCHES[4]),
        ("memory", *PATCHES[5]),
        ("redis", *PATCHES[0]),
        *(
            pytest.param(backend, *PATCHES[which], marks=pytest.mark.long)
            for backend, which in [("memory", 1), ("memory", 2), ("memory", 3), ("tiered", 1)]
        ),
    ],
)
def test_greenlets_share_a_cache_and_do_not_hold_each_other_up(
    redis_url: str, backend: str, when: str, patched: dict[str, bool]
) -> None:
    if backend != "memory":
        with redis_client.Redis.from_url(redis_url) as raw:
            raw.flushall()
    url = redis_url.replace("127.0.0.1", "localhost")  # which has to be resolved
    program = "tests/jobcache/sync/greenlets.py"
    assert run(program, when, json.dumps(patched), backend, url) == "all is well\n"


DJANGO = """
import sys
from gevent import monkey
monkey.patch_all()
import gevent
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
)
django.setup()
from django.db import connection, transaction
from jobcache import CacheSettings, Document
from jobcache.sync import JobCache

cache = JobCache(CacheSettings(backend="memory"))

def query(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None

def load():
    version = query("SELECT version FROM jobs")
    return Document(version, "acme", b"v%d" % version)

query("CREATE TABLE jobs (version INTEGER)")
query("INSERT INTO jobs VALUES (1)")
reading = [gevent.spawn(cache.read, "k", load) for _ in range(10)]
print({each.get(timeout=20).entry.version for each in reading})
with cache.write(transaction.atomic()) as write:
    version = query("UPDATE jobs SET version = version + 1 RETURNING version")
    write.fence("k")
    write.publish("k", Document(version, "acme", b"v2"))
print(cache.read("k", load).outcome.value, cache.read("k", load).entry.version, load().version)
"""


def test_the_orm_of_django_works_in_a_load_and_beside_it(tmp_path: Path) -> None:
    assert run("-c", DJANGO, str(tmp_path / "jobs.db")) == "{1}\nhit 2 2\n"


EVENTLET = """
import sys
patch = f"import eventlet; eventlet.monkey_patch({sys.argv[2]})"
if sys.argv[1] == "early":
    exec(patch)
from jobcache import CacheSettings, Document, JobCacheError
from jobcache.sync import JobCache
if sys.argv[1] == "late":
    exec(patch)
if sys.argv[1] == "made":
    cache = JobCache(CacheSettings(backend="memory"))
    exec(patch)
try:
    if sys.argv[1] in ("early", "late"):
        cache = JobCache(CacheSettings(backend="memory"))
    cache.read("k", lambda: Document(1, "acme", b""))
except JobCacheError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("when", "patched"),
    [
        ("early", ""),
        ("late", "thread=False"),
        ("made", ""),
        *(
            pytest.param(when, patched, marks=pytest.mark.long)
            for when, patched in [("early", "thread=False"), ("late", ""), ("made", "thread=False")]
        ),
    ],
)
def test_eventlet_is_refused_with_one_clear_error(when: str, patched: str) -> None:
    printed = run("-W", "ignore", "-c", EVENTLET, when, patched, limit=60)
    assert printed == (
        "UnsupportedRuntime jobcache.sync does not work under eventlet.monkey_patch(), which leaves"
        " no thread for its event loop; use threads, processes or gevent instead\n"
    )


def test_where_nothing_is_patched_neither_library_is_imported_or_refused() -> None:
    program = """
import sys
from jobcache import CacheSettings, Document
from jobcache.sync import JobCache
if sys.argv[1:]:
    import gevent, gevent.monkey, eventlet
with JobCache(CacheSettings(backend="memory")) as cache:
    print(cache.read("k", lambda: Document(1, "acme", b"")).outcome.value)
assert sys.argv[1:] or not {"gevent", "eventlet"} & sys.modules.keys()
"""
    assert run("-c", program) == "miss\n"
    assert run("-W", "ignore", "-c", program, "imported") == "miss\n"
