"""Progress bars, as rich and tqdm draw them."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from jobcache.client import Job, ProgressBars, Snapshot
from jobcache.client.core.messages import Response
from tests.jobcache.client.job_responses import body
from tests.jobcache.client.loopback import Server, Waits, reply

LIBRARIES = ["rich", "tqdm"]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param)
    return request.param


def job(number: int, version: int, status: str = "rendering") -> Job:
    return Job.parse(body(version, status, number), None)


def snapshot(document: Any, **fields: Any) -> Snapshot:
    response = Response(200, {}, json.dumps(document).encode())
    url = "https://a.example/exports/nightly?x=1"
    return Snapshot.of(url, url, response, is_monitor=False)


def test_each_job_has_a_bar_that_moves(library: Any) -> None:
    file = io.StringIO()
    with ProgressBars(library, file=file) as bars:
        for version in (5, 40, 70):
            bars(job(7, version))
            bars(job(8, 9, "failed"))
    lines = [line for line in file.getvalue().replace("\r", "\n").splitlines() if line.strip()]
    last = [
        next(line for line in reversed(lines) if text in line)
        for text in ("job 7: rendering", "job 8: failed")
    ]
    assert "70%" in last[0]
    assert "9%" in last[1]


def test_a_document_without_progress_has_a_bar_that_ends(library: Any) -> None:
    file = io.StringIO()
    with ProgressBars(library, file=file, describe=lambda seen: f"[{seen.etag}] {seen.source}"):
        pass
    with ProgressBars(library, file=file) as bars:
        bars(snapshot({"status": "Running"}))
        assert "100%" not in file.getvalue()
        bars(snapshot({"status": "Succeeded"}).ended(is_final=True))
    assert "nightly: Succeeded" in file.getvalue()
    assert "100%" in file.getvalue()


async def test_bars_show_what_is_waited_for(server: Server, waits: Waits, library: Any) -> None:
    pending = [reply(200, {"percent": at}, retry_after="1") for at in (10, 60)]
    urls = [server.on(f"/{name}", *pending, reply(200, {"percent": 100})) for name in "ab"]
    file = io.StringIO()
    described = {"describe": lambda seen: f"[b]{seen.source[-1]}[/b]"}
    with ProgressBars(library, file=file, **described) as bars:
        await waits.call("wait_all", urls, on_progress=bars)
    assert "[b]a[/b]" in file.getvalue()
    assert file.getvalue().count("100%") >= 2


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="library must be rich or tqdm"):
        ProgressBars("curses")  # type: ignore[arg-type]
    for missing in LIBRARIES:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"need rich or tqdm; pip install 'jobcache\[progress\]'"):
        ProgressBars()
    with pytest.raises(ImportError, match="need tqdm"):
        ProgressBars("tqdm")


def test_tqdm_is_taken_where_there_is_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    file = io.StringIO()
    monkeypatch.setitem(sys.modules, "rich", None)
    with ProgressBars(file=file) as bars:
        bars(job(7, 40))
    assert "job 7: rendering  40%" in file.getvalue()
