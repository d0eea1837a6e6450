"""Log lines: their formats, their level, and the ids of the request that they belong to."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app import log_format
from app.http import request_context
from app.http.request_context import RequestContext
from tests.app import servers
from tests.app.process import serving
from tests.app.test_servers import GUNICORN, UVICORN

IDS = RequestContext("r-1", "4bf92f3577b34da6a3ce929d0e0e4736")
TEXT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) [a-z.]+: ")


def record(message: str = "%s is back", *arguments: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord(
        "app", logging.WARNING, __file__, 1, message, arguments or ("it",), None
    )
    made.__dict__.update(fields)
    return made


def failed() -> logging.LogRecord:
    try:
        int('a "quoted"\nnumber')
    except ValueError:
        return record(exc_info=sys.exc_info())
    raise AssertionError


@contextmanager
def unconfigured() -> Iterator[io.StringIO]:
    """A process whose logging is not configured yet; what it writes to standard error.

    No fixture: pytest adds its own handlers after those.
    """
    names = ("app", "jobcache", "aiosqlite", "uvicorn.error", "uvicorn.access")
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    before = [(each, each.level, each.handlers) for each in loggers]
    written = io.StringIO()
    try:
        for each in loggers:
            each.handlers = []
        with redirect_stderr(written):
            yield written
    finally:
        for each, level, handlers in before:
            each.setLevel(level)
            each.handlers = handlers


def test_a_json_line_is_one_object_with_what_operators_look_for() -> None:
    made = record("two\nlines of %s", "text", color_message="blue", key="job:7")
    token = request_context.current.set(IDS)
    try:
        line = log_format.formatter("json").format(made)
    finally:
        request_context.current.reset(token)
    assert "\n" not in line
    found = json.loads(line)
    moment = datetime.fromisoformat(found.pop("timestamp"))
    assert moment.tzinfo == UTC
    assert abs(moment.timestamp() - made.created) < 0.002
    assert found == {
        "level": "warning",
        "logger": "app",
        "event": "two\nlines of text",
        "key": "job:7",
        "request_id": IDS.request_id,
        "trace_id": IDS.trace_id,
    }


def test_an_exception_is_a_string_in_json_and_follows_in_text() -> None:
    line = log_format.formatter("json").format(failed())
    assert "\n" not in line
    exception = json.loads(line)["exception"]
    assert exception.startswith("Traceback (most recent call last):\n")
    assert "\nValueError: invalid literal" in exception
    text = log_format.formatter("text").format(failed())
    assert text.splitlines()[1] == "Traceback (most recent call last):"


def test_a_line_of_text_ends_with_the_ids() -> None:
    formatter = log_format.formatter("text")
    assert formatter.format(record()).endswith(" WARNING app: it is back")
    token = request_context.current.set(IDS._replace(trace_id=""))
    try:
        assert formatter.format(record()).endswith(" WARNING app: it is back request_id=r-1")
    finally:
        request_context.current.reset(token)


def test_the_level_is_for_our_own_lines() -> None:
    """At DEBUG the driver of SQLite would log parameters."""
    with unconfigured() as written:
        log_format.configure({"JOBCACHE_LOG_LEVEL": "Debug"})
        logging.getLogger("app").debug("mine")
        logging.getLogger("jobcache").debug("the cache's")
        logging.getLogger("aiosqlite").debug("s3cret")
    lines = written.getvalue().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["mine", "the cache's"]


def test_a_higher_level_is_for_all_lines() -> None:
    with unconfigured() as written:
        log_format.configure({"JOBCACHE_LOG_LEVEL": "warning", "JOBCACHE_LOG_FORMAT": "JSON"})
        for name in ("app", "jobcache", "uvicorn.error"):
            logging.getLogger(name).info("not this")
            logging.getLogger(name).warning("this")
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["this"] * 3


@pytest.mark.parametrize("chosen", ["", "text", "json", "xml"])
def test_handlers_of_others_stay_and_have_the_format_if_one_is_chosen(chosen: str) -> None:
    others = logging.StreamHandler(io.StringIO())
    others.setFormatter(logging.Formatter("theirs: %(message)s"))
    access = logging.getLogger("uvicorn.access")
    with unconfigured():
        access.addHandler(others)
        for _ in range(2):  # a process may be configured twice
            log_format.configure({"JOBCACHE_LOG_FORMAT": chosen})
        assert access.handlers == [others]
        assert len(logging.getLogger().handlers) == 1
    line = others.format(record())
    if chosen == "json":
        assert json.loads(line)["event"] == "it is back"
    else:
        assert line.startswith("theirs: ") is (chosen != "text"), line


@pytest.mark.parametrize("server", ["serve", "uvicorn", "gunicorn"])
@pytest.mark.parametrize("chosen", ["json", "text"])
def test_every_line_of_each_server_has_the_format(tmp_path: Path, server: str, chosen: str) -> None:
    environment = {
        "JOBCACHE_LOG_FORMAT": chosen,
        "JOBCACHE_ACCESS_LOG": "1",
        "JOBCACHE_RENDERER": "simulated",
    }
    command = {"uvicorn": UVICORN, "gunicorn": GUNICORN}.get(server)
    with (
        serving(tmp_path, **environment)
        if command is None
        else servers.served(tmp_path, command, **environment)
    ) as process:
        process.http.get("/nowhere", headers={"X-Request-Id": "seen"})
        process.stop()
        lines = process.log.read_text().splitlines()
    # The process that starts gunicorn's workers has not read the service.
    lines = [line for line in lines if not line.startswith("[") or server != "gunicorn"]
    assert sum("GET /nowhere" in line and "seen" in line for line in lines) == 1 + (
        server == "uvicorn"  # its own access log
    )
    for line in lines:
        if chosen == "json":
            assert {"timestamp", "level", "logger", "event"} <= json.loads(line).keys()
        else:
            assert TEXT.match(line), line


@pytest.mark.parametrize("fast_protocol", ["0", "1"])
def test_lines_about_a_poll_that_is_no_hit_have_the_id_of_its_response(
    tmp_path: Path, fast_protocol: str
) -> None:
    environment = {
        "JOBCACHE_LOG_LEVEL": "debug",
        "JOBCACHE_LOG_FORMAT": "json",
        "JOBCACHE_FAST_PROTOCOL": fast_protocol,
        "JOBCACHE_RENDERER": "simulated",
    }
    ids = []
    with serving(tmp_path, **environment) as process:
        body = {"client_id": "acme", "prompt": "A cat sits."}
        job = process.http.post("/api/v2/jobs", json=body).json()["id"]
        process.until(job, "storyboard_ready")
        for headers in ({"X-Request-Id": "theirs"}, {}):
            process.http.post("/api/v2/cache/invalidate", json={"job_id": job})
            response = process.http.get(f"/api/v2/jobs/{job}", headers=headers)
            assert "hit" not in response.headers["Cache-Status"]
            ids.append(response.headers["X-Request-Id"])
        process.stop()
        lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    assert ids[0] == "theirs"
    loads = [line.get("request_id") for line in lines if line["event"].startswith("load of ")]
    assert loads[-2:] == ids
