"""One line at the start says what serves, from where, and where to look at it: all of it works."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.app.process import Process, launch, serving
from tests.app.test_servers import UVICORN, served

LINE = re.compile(
    r"INFO app: listening on (?P<where>[^;]*?): page (?P<page>\S+), API (?P<api>\S+),"
    r" statistics (?P<statistics>\S+); backend (?P<backend>.*), database (?P<database>.*),"
    r" (?P<workers>\d+ workers?)$",
    re.MULTILINE,
)


def line(log: str) -> dict[str, str]:
    (found,) = LINE.finditer(log)  # once, whatever the number of workers
    return found.groupdict()


def check_pages(found: dict[str, str], http: httpx.Client) -> None:
    assert "<title>jobcache</title>" in http.get(found["page"]).text
    assert "swagger" in http.get(found["api"]).text
    assert "statistics" in http.get(found["statistics"]).json()


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - not to be reached by that name
        ("::", "[::1]"),
        ("localhost", None),
    ],
)
def test_the_urls_can_be_opened(tmp_path: Path, host: str, where: str | None) -> None:
    environment = {"JOBCACHE_HOST": host, "JOBCACHE_INSECURE": "1", "JOBCACHE_VAR_DIR": "a b"}
    log = tmp_path / "log.txt"
    child = launch(tmp_path, 0, log, **environment)
    process = Process(child, 0, log)
    try:
        found = wait_for_line(process)
        assert found["backend"] == "memory"
        assert found["database"] == "sqlite+aiosqlite:///a b/jobcache.db"
        assert found["workers"] == "1 worker"
        if where is not None:
            assert re.fullmatch(rf"http://{re.escape(where)}:[1-9]\d*/", found["page"])
        with httpx.Client(timeout=60) as http:  # a request waits until the start is complete
            check_pages(found, http)
    finally:
        process.stop()


def wait_for_line(process: Process) -> dict[str, str]:
    while not LINE.search(process.log.read_text()):
        assert process.child.poll() is None, process.log.read_text()
    return line(process.log.read_text())


@pytest.mark.parametrize("backend", ["redis", pytest.param("tiered", marks=pytest.mark.long)])
def test_it_names_the_backend_and_the_workers_once_and_no_secret(
    tmp_path: Path, backend: str, redis_url: str
) -> None:
    url = redis_url.replace("redis://", "redis://default:@", 1) + "?client_name=s3cret"
    environment = {"JOBCACHE_BACKEND": backend, "REDIS_URL": url, "JOBCACHE_WORKERS": "2"}
    (tmp_path / ".env").write_text("JOBCACHE_BACKEMD=memory\n")
    environment |= {"JOBCACHE_PREFIX": "greeting:", "JOBCACHE_PREFX": "x"}
    with serving(tmp_path, **environment) as process:
        check_pages(line(process.log.read_text()), process.http)
        process.stop()
        log = process.log.read_text()
    found = line(log)
    place = redis_url.partition("?")[0]
    assert found["backend"] == f"{backend} ({place})"
    assert found["workers"] == "2 workers"
    assert "s3cret" not in log
    for misspelt in ("JOBCACHE_BACKEMD", "JOBCACHE_PREFX"):
        assert log.count(f"{misspelt} is not a setting; did you mean ") == 1


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_it_names_postgres_without_credentials(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, DATABASE_URL=database_url) as process:
        found = line(process.log.read_text())
    assert found["database"] == "postgresql+asyncpg://"


def test_a_unix_socket_is_named_with_urls_that_work_on_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    log = tmp_path / "log.txt"
    child = launch(tmp_path, 0, log, "serve", "--uds", str(path))
    process = Process(child, 0, log)
    try:
        found = wait_for_line(process)
        assert found["where"] == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as http:
            check_pages(found, http)
    finally:
        process.stop()


def test_under_another_server_it_says_what_is_known_there(tmp_path: Path) -> None:
    with served(tmp_path, UVICORN) as process:
        log = process.log.read_text()
    expected = (
        "INFO app: serving page /, API /docs, statistics /api/v2/cache/stats;"
        " backend memory, database sqlite+aiosqlite:///data/jobcache.db\n"
    )
    assert log.count(expected) == 1
