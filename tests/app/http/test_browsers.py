"""What a web page can do through the browser of somebody who can reach the service: nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import httpx
import pytest

from app import settings
from app.http.hosts import AllowedHosts, host_name, read_hosts
from app.ops.log_limit import LogLimitFilter
from jobcache import SettingsError
from tests.app.keyed import keyed
from tests.app.process import serving
from tests.app.running import Service, Start
from tests.app.wires import Wire, answer, get, job_of

JOB = "/api/v2/jobs/1"
PATHS = [JOB, "/api/v2/jobs", f"{JOB}/events", "/healthz", "/readyz", "/docs", "/nowhere"]
EVIL = "https://evil.example"

LOCAL = [
    *("localhost", "localhost:8000", "LOCALHOST", "localhost.", "localhost.:8000", "app.localhost"),
    *("127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "localhost:"),
]
FOREIGN = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
    *(
        "evillocalhost",
        "192.168.1.7",
        "0.0.0.0",  # noqa: S104
        "127.1",
        "2130706433",
        "[::2]",
        "[::ffff:1.2.3.4]",
    ),
    *(
        "localhost@evil.example",
        "localhost:8000:8000",
        "localhost:x",
        "local host",
        "",
        "[::1",
        "/",
    ),
    *(
        "localhost,evil.example",
        "http://localhost",
        "localhost..",
        "\xe9.localhost\xff",
        "*",
        "a" * 300,
    ),
]


@pytest.mark.parametrize("host", LOCAL)
def test_loopback_is_recognised_in_every_spelling(host: str) -> None:
    assert AllowedHosts(["localhost", "*.localhost", "127.0.0.1", "[::1]"]).allows(host.encode())


def test_names_and_names_below_a_name() -> None:
    hosts = AllowedHosts(read_hosts("jobs.example.com., *.Example.org, 2001:db8::5"))
    allowed = "jobs.example.com", "JOBS.example.com.:80", "a.b.example.org", "[2001:DB8:0::5]:1"
    refused = "example.org", "ajobs.example.com", "a.jobs.example.com", "aexample.org", "localhost"
    assert all(hosts.allows(host.encode()) for host in allowed)
    assert not any(hosts.allows(host.encode()) for host in refused)
    anything = AllowedHosts(["*"])
    assert anything.allows(b"anything.example:1")
    assert not anything.allows(b"any thing")
    assert host_name(b"x" * 5000) is None


async def test_without_keys_only_loopback_is_answered_for(start: Start) -> None:
    async with start() as service:
        await service.create()
        for path in PATHS:
            for host in FOREIGN:
                refused = await service.http.get(path, headers={"Host": host.encode("latin-1")})
                assert refused.status_code == 421, (path, host)
                assert refused.headers["content-type"] == "application/problem+json"
                assert refused.headers["x-content-type-options"] == "nosniff"
        for host in LOCAL:
            assert (await service.http.get(JOB, headers={"Host": host})).status_code == 200
        moved = await service.http.post(f"{JOB}/cancel", headers={"Host": "evil.example"})
        assert moved.status_code == 421
        assert (await service.job(1))["status"] != "cancelled"


async def test_the_test_client_of_starlette_is_answered_and_its_name_alone_is_not(
    start: Start,
) -> None:
    async with start() as service:
        for url, status in (("http://testserver", 404), ("http://localhost", 421)):
            transport = httpx.ASGITransport(service.http._transport.app)  # type: ignore[attr-defined]
            async with httpx.AsyncClient(transport=transport, base_url=url) as client:
                found = await client.get("/api/v2/jobs/9", headers={"Host": "testserver"})
            assert found.status_code == status


async def test_other_hosts_are_a_setting_and_with_keys_any_is(start: Start, tmp_path: Path) -> None:
    async with start(JOBCACHE_ALLOWED_HOSTS="jobs.example.com") as service:
        await service.create()
        for host, status in (
            ("jobs.example.com:80", 200),
            ("localhost", 200),
            ("example.com", 421),
        ):
            assert (await service.http.get(JOB, headers={"Host": host})).status_code == status
    async with keyed(start, tmp_path / "keys") as access:
        answered = await access.call("own", "GET", "/api/v2/jobs", headers={"Host": "any.example"})
        assert answered.status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBCACHE_ALLOWED_HOSTS", "jobs.example.com:8000"),
        ("JOBCACHE_ALLOWED_HOSTS", "https://jobs.example.com"),
        ("JOBCACHE_ALLOWED_HOSTS", "a b"),
        ("JOBCACHE_ALLOWED_HOSTS", "*.*.com"),
        ("JOBCACHE_CORS_ORIGINS", "app.example.com"),
        ("JOBCACHE_CORS_ORIGINS", "https://app.example.com/"),
        ("JOBCACHE_CORS_ORIGINS", "https://app.example.com/path"),
        ("JOBCACHE_CORS_ORIGINS", "https://*.example.com"),
        ("JOBCACHE_CORS_ORIGINS", "https://user@app.example.com"),
        ("JOBCACHE_CORS_ORIGINS", "https://app.example.com:x"),
        ("JOBCACHE_CORS_ORIGINS", "null"),
        ("JOBCACHE_CORS_ORIGINS", "https://"),
    ],
)
def test_a_wrong_list_stops_the_start(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        settings.load()


HOST_LINES = {
    b"": 400,
    b"Host: localhost\r\nHost: localhost\r\n": 400,
    b"Host: localhost\r\nHost: evil.example\r\n": 400,
    b"Host: evil.example\r\nHost: localhost\r\n": 400,
    b"Host: evil.example\r\n": 421,
    b"Host:\r\n": 421,
    b"Host: localhost\r\n": 200,
}


@pytest.mark.parametrize("lines", HOST_LINES)
async def test_polls_follow_the_same_rules_by_the_short_way(wire: Wire, lines: bytes) -> None:
    path, _ = await job_of(wire)
    sent = b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), lines)
    for short in (True, False):
        reader, writer = await wire.connect(short=short)
        for _ in range(4):
            writer.write(sent)
            async with asyncio.timeout(10):
                said = await answer(reader)
            assert said.startswith(b"HTTP/1.1 %d " % HOST_LINES[lines]), said
            assert said.count(b"x-content-type-options: nosniff\r\n") == 1
        writer.close()
    assert (wire.short > 0) is (HOST_LINES[lines] == 200)


async def test_a_request_of_http_1_0_needs_no_host(wire: Wire) -> None:
    said = await wire.say(b"GET /healthz HTTP/1.0\r\n\r\n", short=True)
    assert b" 200 " in said


async def test_a_repeated_poll_says_nothing_to_another_origin(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    sent = get(path, f"Origin: {EVIL}")
    for _ in range(4):
        writer.write(sent)
        async with asyncio.timeout(10):
            said = await answer(reader)
        assert b" 200 " in said
        assert b"access-control" not in said
    assert wire.short == 0
    writer.close()


FROM_PAGES = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
    {"Origin": ""},
]
FROM_OTHERS = [
    {},
    {"Origin": "http://localhost"},
    {"Origin": "http://LOCALHOST:80"},
    {"Origin": "https://localhost"},  # behind a proxy that speaks TLS
    {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
]


async def test_without_keys_no_page_changes_anything(start: Start) -> None:
    async with start() as service:
        job = await service.create(renderer="external")
        body = '{"client_id": "acme", "prompt": "A cat sits."}'
        for headers in FROM_PAGES:
            for path in (
                "/api/v2/jobs",
                f"{JOB}/cancel",
                f"{JOB}/fail",
                "/api/v2/cache/invalidate",
            ):
                for kind in ("text/plain", "application/json"):
                    refused = await service.http.post(
                        path, content=body, headers={"Content-Type": kind, **headers}
                    )
                    assert refused.status_code == 403, (headers, path)
                    assert "access-control-allow-origin" not in refused.headers
            assert (await service.http.get(JOB, headers=headers)).status_code == 200
        doubled = [("Origin", "http://localhost"), ("Origin", "http://localhost")]
        assert (await service.http.post(f"{JOB}/cancel", headers=doubled)).status_code == 403
        assert (await service.job(job["id"]))["status"] != "cancelled"
        assert len((await service.http.get("/api/v2/jobs")).json()["items"]) == 1
        for headers in FROM_OTHERS:
            made = await service.http.post(
                "/api/v2/jobs",
                content=body,
                headers={"Content-Type": "application/json", **headers},
            )
            assert made.status_code == 202, headers


async def test_with_keys_the_key_decides(start: Start, tmp_path: Path) -> None:
    async with keyed(start, tmp_path / "keys") as access:
        body = {"client_id": "acme", "prompt": "A cat sits."}
        made = await access.call("own", "POST", "/api/v2/jobs", json=body, headers={"Origin": EVIL})
        assert made.status_code == 202
        assert "access-control-allow-origin" not in made.headers


APP = "https://app.example.com"


async def preflight(service: Service, path: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    return await service.http.options(path, headers=headers)


@pytest.mark.parametrize("setting", [APP, f"{APP}:443, http://other.example", "*"])
async def test_pages_of_listed_origins_may(start: Start, tmp_path: Path, setting: str) -> None:
    allowed = "*" if setting == "*" else APP
    async with keyed(start, tmp_path / "keys", JOBCACHE_CORS_ORIGINS=setting) as access:
        service, origin = access.service, {"Origin": APP}
        job = await service.rendering()
        path = f"/api/v2/jobs/{job['id']}"
        tag = f'"{job["version"]}-0"'
        asked = await preflight(service, path, APP)
        assert asked.status_code == 200, "and without a key"
        assert asked.headers["access-control-allow-origin"] == allowed
        assert "POST" in asked.headers["access-control-allow-methods"]
        for caller, headers, status in (
            ("own", {}, 200),
            ("own", {"If-None-Match": tag}, 304),
            ("own", {"If-None-Match": tag, "Prefer": "wait=0"}, 304),
            ("stranger", {}, 404),
            ("none", {}, 401),
        ):
            for _ in range(3):
                answer = await access.call(caller, "GET", path, headers={**origin, **headers})
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == allowed
                shown = answer.headers["access-control-expose-headers"].lower()
                for name in ("etag", "retry-after", "location", "cache-status", "age"):
                    assert name in shown.split(", ")
                assert "preference-applied" in shown
        # What a cache keeps of an answer to nobody's page is not for another's.
        plain = await access.call("own", "GET", path)
        assert "origin" in ", ".join(plain.headers.get_list("vary")).lower()
        assert "access-control-allow-credentials" not in plain.headers


async def test_pages_of_other_origins_may_not(start: Start) -> None:
    async with start(JOBCACHE_CORS_ORIGINS=APP) as service:
        await service.create()
        for origin in (EVIL, "null", f"{APP}.evil.example", "http://app.example.com", f"{APP}:444"):
            for path in (JOB, "/nowhere"):
                asked = await preflight(service, path, origin)
                assert asked.status_code == 400
                assert "access-control-allow-origin" not in asked.headers
                answer = await service.http.get(path, headers={"Origin": origin})
                assert "access-control-allow-origin" not in answer.headers
            refused = await service.http.post(f"{JOB}/cancel", headers={"Origin": origin})
            assert refused.status_code == 403
        page = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
        moved = await service.http.post(f"{JOB}/cancel", headers=page)
        assert moved.status_code == 200
        assert moved.headers["access-control-allow-origin"] == APP


async def test_there_is_no_preflight_unless_an_origin_is_listed(start: Start) -> None:
    async with start() as service:
        asked = await preflight(service, "/api/v2/jobs", EVIL)
        assert asked.status_code == 405
        assert not [name for name in asked.headers if name.startswith("access-control")]
        assert "vary" not in asked.headers


async def test_every_answer_forbids_guessing_its_type(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(JOBCACHE_STREAM_SECONDS="0.05") as service:
        job = await service.create()
        await service.until(job["id"], "storyboard_ready")
        for method, path in [("GET", path) for path in PATHS] + [
            ("HEAD", JOB),
            ("GET", f"{JOB}/storyboard"),
            ("GET", f"{JOB}/video"),
            ("POST", "/api/v2/jobs"),
            ("DELETE", JOB),
            ("OPTIONS", JOB),
            ("GET", "/openapi.json"),
        ]:
            got = await service.http.request(method, path)
            assert got.headers.get_list("x-content-type-options") == ["nosniff"], (method, path)

        async def fails(*_: object, **__: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(service.services.jobs, "page", fails)
        got = await service.http.get("/api/v2/jobs")
        assert (got.status_code, got.headers["x-content-type-options"]) == (500, "nosniff")


def test_malformed_requests_do_not_fill_the_log(tmp_path: Path) -> None:
    with serving(tmp_path, JOBCACHE_RENDERER="simulated") as service:
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
                connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
                while connection.recv(4096):
                    pass
        assert service.http.get("/healthz").headers["x-content-type-options"] == "nosniff"
    assert service.log.read_text().count("Invalid HTTP request received.") < 20


def test_what_is_left_out_is_counted() -> None:
    now = 0.0
    limit = LogLimitFilter(("Invalid",), 10, lambda: now)

    def said(message: str) -> str | None:
        record = logging.LogRecord("x", logging.WARNING, "", 1, message, (), None)
        return record.getMessage() if limit.filter(record) else None

    assert said("Invalid thing") == "Invalid thing"
    assert [said("Invalid thing") for _ in range(5)] == [None] * 5
    assert said("Another thing") == "Another thing"
    now = 11.0
    assert said("Invalid thing") == "Invalid thing (5 more since the last such line)"
    now = 22.0
    assert said("Invalid thing") == "Invalid thing"


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost{}", "localhost", 200),
        ("http://localhost:8000{}", "evil.example", 200),
        ("http://[::1]:8000{}", "evil.example", 200),
        ("http://evil.example{}", "localhost", 421),
        ("http://evil.example:80{}", "evil.example", 421),
        ("HTTP://EVIL.example{}", "localhost", 421),
    ],
)
async def test_a_url_in_absolute_form_names_the_host(
    wire: Wire, target: str, host: str, status: int
) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    request = f"GET {target.format(path)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for _ in range(3):
        writer.write(request)
        async with asyncio.timeout(10):
            assert (await answer(reader)).startswith(b"HTTP/1.1 %d " % status)
    writer.close()


WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        WEBSOCKET,
    ],
)
async def test_what_never_reaches_the_application_forbids_it_too(
    wire: Wire, request_: bytes
) -> None:
    reader, writer = await wire.connect(short=True)
    writer.write(request_)
    async with asyncio.timeout(10):
        said = await answer(reader)
    assert said.startswith(b"HTTP/1.1 4")
    assert said.count(b"x-content-type-options: nosniff\r\n") == 1
    writer.close()
