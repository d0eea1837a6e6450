"""The benchmark of outages runs, counts right, and its verdict can fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import outage
from benchmarks.open_loop import UNANSWERED, Poll, Side
from tests.measurement.in_process import Command

COUNTS = {"polls": 900, "errors": 0, "others": 0, "stale": 0, "longest_ms": 30.0}
ROUND = {
    "fault": "hang",
    "longest_ms": 110.0,
    "open_after_ms": 255.0,
    "p99_ms": 11.0,
    "null_p99_ms": 10.0,
    "hit_after_s": 1.2,
    "steady_after_s": 1.5,
}


SHORT, LONG = "--seconds 1 --after 10 --curt", "--seconds 2 --after 4"
LONGER = "--seconds 5 --after 30 --curt"
UNTOLD = 2
"""The status of a run in which the machine was too busy for anything to be told."""


def measure(command: Command, results: Path, times: str) -> tuple[int, str]:
    options = f"--rounds 1 {times} --polls 40 --writes 4 --jobs 4"
    status, said, complained = command.run(outage.main, *options.split(), "--results", str(results))
    return status, said + complained


def test_the_command_measures_an_outage_of_each_kind(
    command: Command, tmp_path: Path, *, long: bool
) -> None:
    """A short one, under a light load: what it finds is for a quiet machine to say."""
    for times in (LONG if long else SHORT, LONGER):
        status, said = measure(command, tmp_path, times)
        if status != UNTOLD:
            break
    assert status in {0, 1}, said
    assert "|  | limit | hang, 1 rounds | kill, 1 rounds |" in said
    (document,) = tmp_path.glob("*-outage.json")
    result = json.loads(document.read_text())
    assert [one["fault"] for one in result["rounds"]] == ["hang", "kill"]
    for side in result["sides"].values():
        assert side["errors"] == side["others"] == side["stale"] == side["unacknowledged"] == 0
        assert side["polls"] > 100
        assert side["writes"] > 10
    assert result["sides"]["null"]["hits"] == 0 < result["sides"]["redis"]["hits"]
    hang, kill = result["rounds"]
    assert hang["open_after_ms"] > outage.DEADLINE_MS
    assert hang["longest_ms"] >= outage.DEADLINE_MS
    for one in (hang, kill):
        assert 0 <= one["closed_after_s"] < one["hit_after_s"] <= one["steady_after_s"]
        assert one["compared"] > 10


def verdict(counts: dict[str, Any], *rounds: dict[str, Any]) -> list[str]:
    sides = {"null": COUNTS, "redis": COUNTS | counts}
    return outage.broken_limits({"sides": sides, "rounds": [ROUND | one for one in rounds]})


def test_the_median_of_the_rounds_keeps_a_limit() -> None:
    awful = {"longest_ms": 900.0, "open_after_ms": 900.0, "p99_ms": 90.0, "steady_after_s": None}
    assert verdict({}, {}, awful, {}) == []


@pytest.mark.parametrize(
    ("counts", "one", "words"),
    [
        ({"errors": 1}, {}, "answers that were 5xx, or none at all: 1 of 900"),
        ({"others": 2}, {}, "answers that were neither 2xx nor 5xx: 2 of 900"),
        ({"stale": 1}, {}, "answers that were stale: 1 of 900"),
        ({}, {"longest_ms": 131.0}, "hang: the longest poll took 131 ms"),
        ({}, {"open_after_ms": 301.0}, "hang: the breaker was open after 301 ms, not 300"),
        ({}, {"p99_ms": 12.5}, "hang: p99 was 1.25 x null's, not 1.2 x"),
        ({}, {"hit_after_s": 2.1}, "hang: a hit took 2.1 s, not 2 s"),
        ({}, {"steady_after_s": None}, "hang: steady hits took inf s, not 2 s"),
    ],
)
def test_each_limit_can_be_broken(counts: dict[str, Any], one: dict[str, Any], words: str) -> None:
    (sentence,) = verdict(counts, one)
    assert sentence.startswith(f"FAILED: {words}")


def test_percentiles_are_values_that_were_seen() -> None:
    values = list(range(1, 201))
    assert [outage.percentile(values, p) for p in (50, 99, 99.9, 100)] == [100, 198, 200, 200]
    assert outage.percentile([7.0], 50) == 7.0
    with pytest.raises(outage.Untold):
        outage.percentile([], 99)


def test_hits_are_steady_from_where_all_but_one_in_twenty_are() -> None:
    hits = [False, True, False, False, *[True] * 9, False, *[True] * 15]
    polls = [Poll(n, 0.5, 200, hit=hit, stale=False) for n, hit in enumerate(hits)]
    assert outage._hits(polls) == (1.5, 4.5)
    assert outage._hits(polls[:22]) == (1.5, None)
    assert outage._hits(polls[:1]) == (None, None)


class StubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    given: Iterator[tuple[int, int, str]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, version, how = next(self.given)
        body = json.dumps({"version": version}).encode()
        self.send_response(status)
        self.send_header("ETag", f'"{version}-0"')
        self.send_header("Cache-Status", f"jobcache; {how}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


async def test_an_answer_older_than_what_was_known_when_it_was_asked_for_is_stale() -> None:
    polled = [(200, 3, "fwd=miss"), (200, 3, "hit"), (200, 5, "hit"), (200, 4, "hit"), (500, 5, "")]
    StubHandler.given = iter([polled[0], (200, 4, ""), *polled[1:]])
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    port = server.server_port
    side = Side("redis", polled=port, written=[port], jobs=[7], seed=1)
    due = time.monotonic() - 60  # as if the process had been busy since then
    await side.poll(due)
    await side.write(due)
    for _ in polled[1:]:
        await side.poll(due)
    side.close()
    server.shutdown()
    thread.join()
    server.server_close()
    await side.poll(due)
    assert [poll.stale for poll in side.polls] == [False, True, False, True, False, False]
    assert [poll.hit for poll in side.polls] == [False, True, True, True, False, False]
    assert [poll.status for poll in side.polls] == [200, 200, 200, 200, 500, UNANSWERED]
    assert (len(side.writes), side.unacknowledged) == (1, 0)
    assert {poll.due for poll in side.polls} == {due}
    assert min(side.writes[0], *(poll.took for poll in side.polls)) >= 60
