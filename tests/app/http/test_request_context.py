"""The ids of requests and traces: what is accepted, and what is made."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from app.http.request_context import read_context
from tests.app.running import Start

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def read(*headers: tuple[str, str]) -> Any:
    return read_context([(name.encode(), value.encode()) for name, value in headers])


@pytest.mark.parametrize("value", ["a", "7f3a-9", "Root=1-67891233-abcdef012345", "x" * 128])
def test_a_well_formed_id_is_used(value: str) -> None:
    assert read(("x-request-id", value)).request_id == value


@pytest.mark.parametrize(
    "values", [[], [""], ["a b"], ["a\nb"], ['"'], ["x" * 129], ["ä"], ["a", "b"], ["a", "a", "a"]]
)
def test_without_one_that_can_be_used_an_id_is_made(values: list[str]) -> None:
    made = {read(*(("x-request-id", value) for value in values)).request_id for _ in range(100)}
    assert len(made) == 100
    assert {len(each) for each in made} == {32}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", True),
        (f"cc-{TRACE}-{PARENT}-01-what-comes", True),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{TRACE.upper()}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE}-{PARENT}", False),
        (f"00-{TRACE[:-1]}-{PARENT}-01", False),
        ("", False),
    ],
)
def test_the_trace_is_read_as_the_recommendation_says(value: str, *, found: bool) -> None:
    assert read(("traceparent", value)).trace_id == (TRACE if found else "")


async def test_each_response_has_the_id_and_log_lines_about_it_have_it(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that the front refuses as well."""
    seen: list[Any] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from app.http.request_context import current  # noqa: PLC0415 - of the caller

            seen.append((record.getMessage(), current.get()))

    async with start(JOBCACHE_BACKEND="memory") as service:

        async def broken(*_: object) -> None:
            raise RuntimeError("unexpected")

        monkeypatch.setattr(service.services.jobs, "create", broken)
        handler = Seen()
        logging.getLogger("app").addHandler(handler)
        try:
            headers = {"X-Request-Id": "mine", "traceparent": f"00-{TRACE}-{PARENT}-01"}
            failed = await service.http.post(
                "/api/v2/jobs", json={"client_id": "a", "prompt": "b"}, headers=headers
            )
        finally:
            logging.getLogger("app").removeHandler(handler)
        assert failed.status_code == 500
        assert failed.headers["x-request-id"] == "mine"
        (_, context), *_ = seen
        assert context == ("mine", TRACE)
        for path, host in (("/nowhere", "localhost"), ("/healthz", "example.com")):
            refused = await service.http.get(path, headers={"Host": host})
            assert refused.status_code in {404, 421}
            assert len(refused.headers["x-request-id"]) == 32
