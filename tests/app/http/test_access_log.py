"""The access log: one line for each response, whichever part of the service answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.http.access_log import AccessLog, LoggedApp
from app.http.forwarded import TrustedProxies
from app.http.request_context import RequestContext
from tests.app.http.test_three_ways import WAYS, three_ways
from tests.app.running import Start
from tests.app.wires import get

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
KEY = f"jc_0123456789ab_{'s3cret-_' * 5}abc"


def scope(path: str = "/healthz", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    client = ("127.0.0.1", 5)
    return {"type": "http", "method": "GET", "path": path, "headers": [*headers], "client": client}


class Written:
    """An access log, and what it has written."""

    def __init__(self, *, as_json: bool = True) -> None:
        self.pieces: list[str] = []
        self.log = AccessLog(
            TrustedProxies(), as_json=as_json, write=self.pieces.append, now=lambda: 1700000000.25
        )

    async def line(self, path: str, *headers: tuple[bytes, bytes]) -> str:
        self.log.add(scope(path, *headers), RequestContext("r", TRACE), 200, 3, 0)
        await asyncio.sleep(0)
        return self.pieces.pop()


async def test_a_line_of_json_has_all_that_is_known() -> None:
    line = await Written().line("/healthz")
    assert line.endswith("}\n")
    found = json.loads(line)
    assert found.pop("duration_ms") > 0
    assert found == {
        "timestamp": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "app.access",
        "event": "GET /healthz 200",
        "method": "GET",
        "path": "/healthz",
        "status": 200,
        "bytes": 3,
        "client": "127.0.0.1",
        "request_id": "r",
        "trace_id": TRACE,
    }


async def test_a_line_of_text_is_like_those_of_logging() -> None:
    line = await Written(as_json=False).line("/healthz")
    assert ",250 INFO app.access: GET /healthz 200, 3 bytes, " in line
    assert line.endswith(f" ms, 127.0.0.1 request_id=r trace_id={TRACE}\n")


@pytest.mark.parametrize("as_json", [True, False])
async def test_no_path_breaks_a_line_or_repeats_a_key(*, as_json: bool) -> None:
    written = Written(as_json=as_json)
    for path in (
        '/a"\n\\',
        "/ü\u2028\x1b[0m",
        "/" + "x" * 9000,
        f"/{KEY}/x",
        f"/{'y' * 1010}{KEY}",
    ):
        line = await written.line(path)
        assert line.count("\n") == 1
        assert len(line.splitlines()) == 1
        assert len(line) < 2000
        assert line.isprintable() is False
        assert line[:-1].isprintable()
        assert "s3cret" not in line
        if as_json:
            shown = json.loads(line)["path"]
            assert shown == path or "…" in shown or "***" in shown


async def test_the_client_is_the_one_that_a_trusted_proxy_names() -> None:
    written = Written()
    for value, client in ((b"203.0.113.9", "203.0.113.9"), (b'"x\n', "127.0.0.1")):
        line = await written.line("/healthz", (b"x-forwarded-for", value))
        assert json.loads(line)["client"] == client


async def test_lines_of_one_turn_are_written_together_but_never_more_than_a_pipe_keeps_whole() -> (
    None
):
    written = Written()
    for number in range(100):
        written.log.add(scope(f"/{number}"), RequestContext("r", ""), 200, 3, 0)
    assert written.pieces == []
    await asyncio.sleep(0)
    assert 1 < len(written.pieces) < 10
    assert all(len(piece.encode()) <= 4096 and piece.endswith("}\n") for piece in written.pieces)
    lines = "".join(written.pieces).splitlines()
    assert [json.loads(line)["path"] for line in lines] == [f"/{n}" for n in range(100)]


async def test_a_response_that_is_cut_off_is_a_line_as_well() -> None:
    written = Written()

    async def app(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 206, "headers": []})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        raise ConnectionError

    async def ignore(_: Any) -> None:
        pass

    with pytest.raises(ConnectionError):
        await LoggedApp(app, written.log)(scope(), ignore, ignore)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    found = json.loads(written.pieces.pop())
    assert (found["status"], found["bytes"]) == (206, 5)


async def test_a_response_to_head_has_no_bytes() -> None:
    written = Written()

    async def app(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"12345"})  # the server drops it

    async def ignore(_: Any) -> None:
        pass

    await LoggedApp(app, written.log)(scope() | {"method": "HEAD"}, ignore, ignore)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert json.loads(written.pieces.pop())["bytes"] == 0


@pytest.mark.parametrize("backend", ["memory", "redis"])
async def test_each_way_to_answer_writes_one_line_and_polls_keep_the_fast_path(
    start: Start, backend: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"JOBCACHE_BACKEND": backend, "REDIS_URL": redis_url, "JOBCACHE_PREFIX": "log:"}
    async with start(JOBCACHE_ACCESS_LOG="1", JOBCACHE_LOG_FORMAT="json", **environment) as service:
        job = await service.rendering()
        path = f"/api/v2/jobs/{job['id']}"
        async with three_ways(service) as ways:
            for request, status in (
                (get(path), 200),
                (get(path, "X-Request-Id: theirs"), 200),
                (get(path, "X-Request-Id: not one"), 200),
                (get(path, f'If-None-Match: "{job["version"]}-0"'), 304),
                (get("/api/v2/jobs/999"), 404),
            ):
                await ways.warm(request)
                for way in WAYS:
                    capsys.readouterr()
                    reached = ways.reached["protocol"]
                    port = ways.servers[way].sockets[0].getsockname()[1]
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(request)
                    async with asyncio.timeout(60):
                        head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    writer.close()
                    await asyncio.sleep(0)
                    (line,) = capsys.readouterr().err.splitlines()
                    found = json.loads(line)
                    assert found["path"] == request.split()[1].decode()
                    assert found["status"] == status
                    assert f"\r\nx-request-id: {found['request_id']}\r\n" in head
                    assert head.count("x-request-id") == 1
                    assert (found["request_id"] == "theirs") is (b"theirs" in request)
                    if "content-length" in head:
                        assert f"content-length: {found['bytes']}\r\n" in head
                    assert ways.reached["protocol"] == reached, "the protocol answers"
