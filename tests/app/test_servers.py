"""The servers that people know run `app.main:app`, and end in order with requests held open."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI

from app.devservers import free_port
from tests.app import servers
from tests.app.connections import Connection, connected
from tests.app.process import Process, clean_environment
from tests.app.servers import PYTHON, at_port, ended, start
from tests.app.test_shutdown import check_stream, check_wait, external, hold, rest

ROOT = Path(__file__).parents[2]
LIMIT = 20  # seconds; held requests would last longer

UVICORN = (*PYTHON, "uvicorn", "app.main:app", "--port", "{port}")
GUNICORN = (
    *(*PYTHON, "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "app.main:app"),
    *("-b", "127.0.0.1:{port}", "--graceful-timeout", "60"),
)
FASTAPI = (*PYTHON, "fastapi_cli", "run", "--port", "{port}")
SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn, 2 workers": (*UVICORN, "--workers", "2", "--timeout-worker-healthcheck", "60"),
    "uvicorn, h11": (*UVICORN, "--http", "h11", "--loop", "asyncio"),
    "uvicorn, a factory": (
        *(*PYTHON, "uvicorn", "--factory", "app.main:from_environment", "--port", "{port}"),
    ),
    "gunicorn": GUNICORN,
    "gunicorn, 2 workers": (*GUNICORN, "-w", "2"),
    "gunicorn, preloaded": (*GUNICORN, "-w", "2", "--preload"),
    "hypercorn": (
        *(*PYTHON, "hypercorn", "app.main:from_environment()", "--bind", "127.0.0.1:{port}"),
        *("--graceful-timeout", "60"),
    ),
    "granian": (*PYTHON, "granian", "--interface", "asgi", "--port", "{port}", "app.main:app"),
    "fastapi run": FASTAPI,
    "fastapi run, a path": (*FASTAPI, str(ROOT / "app" / "main.py")),
}
SETTINGS = """
JOBCACHE_VAR_DIR=data
JOBCACHE_RENDERER=simulated
JOBCACHE_PREFX=misspelt
"""


@contextmanager
def served(
    directory: Path, command: tuple[str, ...], *, anew: bool = False, **environment: str
) -> Iterator[Process]:
    """Run a server in a directory with a `.env`, and the package where `fastapi run` looks."""
    (directory / ".env").write_text(SETTINGS)
    (directory / "app").symlink_to(ROOT / "app")
    with servers.served(directory, command, anew=anew, **environment) as process:
        yield process


async def held(process: Process, expected: int) -> None:
    """Wait until the workers hold so many requests."""
    held = 0
    async with asyncio.timeout(LIMIT):
        while held < expected:
            probe = await Connection.open(process.port)  # whichever worker it comes to
            stats = (await probe.request("GET", "/api/v2/cache/stats")).json()
            await probe.aclose()
            held = stats["held"]["waits"] + stats["held"]["streams"]


@pytest.mark.parametrize(
    "server",
    [
        *("uvicorn", "uvicorn, h11", "gunicorn", "gunicorn, preloaded"),
        # In short runs `test_shutdown_of_servers.py` covers these.
        pytest.param("uvicorn, 2 workers", marks=pytest.mark.long),
        pytest.param("gunicorn, 2 workers", marks=pytest.mark.long),
        pytest.param("hypercorn", marks=pytest.mark.long),
        pytest.param("granian", marks=pytest.mark.long),
        pytest.param("fastapi run", marks=pytest.mark.long),
        pytest.param("fastapi run, a path", marks=pytest.mark.long),
    ],
)
async def test_a_server_ends_in_order_with_requests_held_open(tmp_path: Path, server: str) -> None:
    with served(tmp_path, SERVERS[server], anew=True, JOBCACHE_BACKEND="null") as process:
        job_id = await asyncio.to_thread(external, process)
        version = process.http.get(f"/api/v2/jobs/{job_id}").json()["version"]
        async with connected([process.port] * 12) as connections:
            await hold(connections, 6, job_id, version)
            await held(process, 12)
            process.http.close()
            process.child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(LIMIT):
                received = await asyncio.gather(*map(rest, connections))
            await asyncio.to_thread(process.child.wait, LIMIT)
        log = process.log.read_text()
    for answer in received[:6]:
        check_stream(answer, version)
    for answer in received[6:]:
        check_wait(answer, version)
    assert "Traceback" not in log
    assert (tmp_path / "data" / "jobcache.db").exists(), ".env is read"
    assert "JOBCACHE_PREFX is not a setting; did you mean JOBCACHE_PREFIX?" in log


async def test_a_server_that_has_served_enough_ends_without_a_signal(tmp_path: Path) -> None:
    command = (*UVICORN, "--limit-max-requests", "60")
    with served(tmp_path, command) as process:
        job_id = await asyncio.to_thread(external, process)
        version = process.http.get(f"/api/v2/jobs/{job_id}").json()["version"]
        async with connected([process.port] * 4) as connections:
            await hold(connections, 2, job_id, version)
            await held(process, 4)
            deadline = time.monotonic() + LIMIT
            while process.child.poll() is None:
                assert time.monotonic() < deadline, process.log.read_text()
                try:
                    await asyncio.to_thread(process.http.get, "/healthz")
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
            received = await asyncio.gather(*map(rest, connections))
    for answer in received[:2]:
        check_stream(answer, version)
    for answer in received[2:]:
        check_wait(answer, version)


async def test_over_a_unix_socket_it_ends_in_order_as_well(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = (*PYTHON, "uvicorn", "app.main:app", "--uds", str(path))
    child = start(tmp_path, command, tmp_path / "log.txt")
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            async with asyncio.timeout(3 * LIMIT):
                while True:
                    try:
                        if (await http.get("/readyz")).status_code == 200:
                            break
                    except httpx.TransportError:
                        await asyncio.sleep(0.02)
            body = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}
            job_id = (await http.post("/api/v2/jobs", json=body)).json()["id"]
            while (await http.get(f"/api/v2/jobs/{job_id}")).json()["status"] != "storyboard_ready":
                await asyncio.sleep(0.02)
            async with http.stream("GET", f"/api/v2/jobs/{job_id}/events") as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                child.send_signal(signal.SIGTERM)
                async with asyncio.timeout(LIMIT):
                    [line async for line in lines]  # ends, and is complete
        await asyncio.to_thread(child.wait, LIMIT)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    "server",
    [
        *("uvicorn", "uvicorn, a factory", "gunicorn", "gunicorn, preloaded", "fastapi run"),
        # uvicorn's parent pings a worker that has ended, and waits for its health check's timeout.
        pytest.param("uvicorn, 2 workers", marks=pytest.mark.long),
        pytest.param("uvicorn, h11", marks=pytest.mark.long),
        pytest.param("gunicorn, 2 workers", marks=pytest.mark.long),
    ],
)
def test_a_wrong_setting_is_one_line_and_ends_the_server(tmp_path: Path, server: str) -> None:
    (tmp_path / "app").symlink_to(ROOT / "app")
    log = tmp_path / "log.txt"
    anew = server == "uvicorn, 2 workers"  # which starts Python again by itself
    status, said = ended(
        start(tmp_path, at_port(SERVERS[server], free_port()), log, anew=anew, JOBCACHE_TTL="soon"),
        log,
    )
    if server != "uvicorn, 2 workers":  # the parent ends as if all was well
        assert status != 0
    assert "JOBCACHE_TTL=soon: " in said
    assert "Traceback" not in said


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    url = f"postgresql://u:s3cret@127.0.0.1:{free_port()}/d"
    log = tmp_path / "log.txt"
    status, said = ended(start(tmp_path, at_port(UVICORN, free_port()), log, DATABASE_URL=url), log)
    assert status == 3
    assert "The service cannot start: " in said
    assert "Traceback" not in said
    assert "s3cret" not in said


def test_an_option_that_the_driver_refuses_is_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [part.format(port=free_port()) for part in UVICORN],
        cwd=tmp_path,
        env=clean_environment() | {"DATABASE_URL": "sqlite:///x.db?timeout=long"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 3
    assert result.stderr.startswith(
        "DATABASE_URL=sqlite+aiosqlite:///x.db: the driver refuses it: "
    )
    assert result.stderr.count("\n") == 1


def test_importing_the_module_does_nothing_and_the_app_is_made_once(tmp_path: Path) -> None:
    program = (
        "import logging, os\n"
        "import app.main\n"
        "assert not logging.root.handlers and not os.listdir('.')\n"
        "assert 'app' in dir(app.main)\n"
        "from app.main import app as made\n"
        "assert made is app.main.app\n"
        "assert not hasattr(app.main, 'application')\n"
        "print(type(made).__mro__[1].__name__, os.listdir('.'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=clean_environment() | {"JOBCACHE_BACKEND": "null"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == f"{FastAPI.__name__} ['var']\n"


@pytest.mark.parametrize("insecure", [False, True])
def test_without_keys_other_servers_answer_on_loopback_only(
    tmp_path: Path, *, insecure: bool
) -> None:
    addresses = [
        each.address
        for found in psutil.net_if_addrs().values()
        for each in found
        if each.family.name == "AF_INET" and not each.address.startswith("127.")
    ]
    environment = {"JOBCACHE_INSECURE": "1"} if insecure else {}
    with served(tmp_path, FASTAPI, **environment) as process:
        for address in addresses:
            url = f"http://{address}:{process.port}"
            for path in ("/api/v2/jobs/1", "/healthz", "/docs"):
                headers = {"Host": "localhost"}
                status = httpx.get(f"{url}{path}", headers=headers).status_code
                assert (status == 403) is not insecure
        assert process.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("server", ["uvicorn", "uvicorn, h11", "gunicorn"])
def test_a_body_behind_an_upgrade_is_never_another_request(tmp_path: Path, server: str) -> None:
    with served(tmp_path, SERVERS[server]) as process:
        job_id = external(process)
        inner = f"POST /api/v2/jobs/{job_id}/cancel HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for path in ("/healthz", f"/api/v2/jobs/{job_id}"):
            for upgrade in (b"h2c", b"websocket", b"TLS/1.0"):
                head = (
                    b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %b\r\n"
                    b"Content-Length: %d\r\n\r\n" % (path.encode(), upgrade, len(inner))
                )
                with socket.create_connection(("127.0.0.1", process.port), 0.3) as client:
                    client.sendall(head)
                    received = b""
                    with suppress(TimeoutError):  # a WebSocket is answered once it has failed
                        received += client.recv(65536)
                    with suppress(OSError):  # it may be closed before the body has been sent
                        client.sendall(inner)
                        while piece := client.recv(65536):
                            received += piece
                assert received.count(b"HTTP/1.1 ") <= 1, received
                assert process.http.get(f"/api/v2/jobs/{job_id}").json()["status"] == "rendering"


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_a_database_of_another_revision_is_one_line(tmp_path: Path, server: str) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('0001')")
        database.commit()
    log = tmp_path / "log.txt"
    command = at_port(SERVERS[server], free_port())
    status, said = ended(start(tmp_path, command, log, DATABASE_URL="sqlite:///jobs.db"), log)
    assert status == 3
    assert "The service cannot start: The database is too old: it is at revision 0001" in said
    assert "`python -m app db upgrade`" in said
    assert "Traceback" not in said
