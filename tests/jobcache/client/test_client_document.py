"""The programs of docs/client.md run, against servers that answer as the page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from tests.jobcache.client.job_responses import body
from tests.jobcache.client.loopback import Server, reply
from tests.test_documents import blocks


def run(number: int, server: Server) -> None:
    program = blocks("docs/client.md", "python")[number]
    assert "http://127.0.0.1:8000" in program
    exec(program.replace("http://127.0.0.1:8000", server.url), {})  # noqa: S102 - a program of ours


def export(server: Server, number: int, polls: int = 1) -> None:
    pending = [reply(200, {"percent": 40}, retry_after="0") for _ in range(polls)]
    server.on(f"/exports/{number}", *pending, reply(200, {"percent": 100, "rows": number}))


def test_a_url_is_waited_for(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    export(server, 7)
    run(0, server)
    assert capsys.readouterr().out == "40 %\n100 %\n{'percent': 100, 'rows': 7}\n"


def test_a_response_is_followed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    export(server, 7)
    server.on("/exports", reply(202, location="/exports/7"))
    run(1, server)
    assert capsys.readouterr().out == "{'percent': 100, 'rows': 7}\n"


def test_many_are_waited_for(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(19):
        export(server, number, number % 2)
    run(2, server)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert sum(line.endswith(" 200") for line in lines) == 19
    assert f"{server.url}/exports/19 404: nothing is here" in lines


def test_jobs_are_listed_waited_for_and_downloaded(
    server: Server,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find(request: Request) -> Response:
        assert dict(request.query_params) == {
            "client_id": "acme",
            "status": "rendering",
            "limit": "100",
        }
        items = [json.loads(body(1, job_id=number)) for number in (7, 8)]
        return reply(200, {"items": items, "next_cursor": None})

    server.on("/api/v2/jobs", find)
    for number, status in ((7, "completed"), (8, "failed")):
        ended = Response(body(2, status, number), media_type="application/json")
        server.on(f"/api/v2/jobs/{number}", ended)
    server.on("/api/v2/jobs/7/video", Response(b"film", headers={"ETag": '"a"'}))
    server.on("/api/v2/cache/stats", reply(200, {"statistics": {"hit_rate": 89.29}}))
    monkeypatch.chdir(tmp_path)
    run(3, server)
    assert sorted(capsys.readouterr().out.splitlines()) == ["7 completed", "8 failed", "89.29"]
    assert [path.name for path in tmp_path.iterdir()] == ["7.mp4"]
    assert (tmp_path / "7.mp4").read_bytes() == b"film"
