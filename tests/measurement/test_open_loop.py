"""The open-loop driver counts every poll, times it from when it was due, and notices faults."""

from __future__ import annotations

import itertools
import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtests.open_loop import against_locust, report, sweep, trial
from loadtests.open_loop.__main__ import main
from loadtests.open_loop.load import Load, Plan, Seen
from loadtests.open_loop.precise_timers import new_event_loop
from loadtests.open_loop.processors import ProcessorMeter
from loadtests.open_loop.record import Kind, summary
from loadtests.open_loop.schedule import Pacer, Planned, of_pollers, of_updates
from tests.measurement.in_process import Command

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class StubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    polled: Behaviour
    reported: Behaviour

    def do_GET(self) -> None:
        type(self).polled(self)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).reported(self)

    def log_message(self, *_: object) -> None:
        pass


def reply(request: BaseHTTPRequestHandler, version: int, how: str = "hit; ttl=3") -> None:
    request.send_response(200)
    request.send_header("ETag", f'"{version}-0"')
    request.send_header("Cache-Status", f"jobcache; {how}")
    request.send_header("Content-Length", "2")
    request.end_headers()
    request.wfile.write(b"{}")


class Stub:
    """A service that does what a test says."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), StubHandler)
        self.server.daemon_threads = True

    def load(self, polled: Behaviour, reported: Behaviour, seconds: float, plan: Plan) -> Seen:
        StubHandler.polled, StubHandler.reported = polled, reported
        with Load(self.server.server_port, dict.fromkeys(range(1, plan.jobs + 1), 1), plan) as load:
            return load.run(seconds)


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    thread = threading.Thread(target=stub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stub
    stub.server.shutdown()
    thread.join()
    stub.server.server_close()


def plan(**changes: Any) -> Plan:
    options: dict[str, Any] = {
        "pollers": 1,
        "interval": 0.05,
        "jobs": 1,
        "update_interval": None,
        "conditional": False,
    }
    return Plan(**(options | changes))


def figures_of(seen: Seen) -> dict[str, Any]:
    """Figures of a stub's run; the service's counts are the right ones."""
    figures = trial.figures_of(seen)
    usage = {"roles": {}, "others": 0.0, "stolen": 0.0}
    return {**figures, "service": {"counts": figures["counts"]}, "processors": usage}


@pytest.mark.parametrize(
    ("backend", "options"), [("memory", ["--etag"]), ("tiered", ["--noise", "1000"])]
)
def test_all_polls_are_counted_as_the_service_counts_them(
    command: Command, tmp_path: Path, backend: str, options: list[str]
) -> None:
    load = "--pollers 50 --interval 0.5 --jobs 5 --update-interval 0.5 --seconds 2"
    where = ["--database", "sqlite", "--results", str(tmp_path)]
    status, said, complained = command.run(
        main, *load.split(), "--backend", backend, *where, *options
    )
    assert status == 0, said + complained
    (path,) = tmp_path.glob(f"*-open-loop-{backend}-50.json")
    result = json.loads(path.read_text())
    polls = result["polls"]
    assert polls["planned"] == polls["sent"] == polls["answered"] > 150
    assert result["rows"]["all"]["count"] == polls["answered"]
    assert sum(row["count"] for row in result["rows"].values()) == 2 * polls["answered"]
    updates = result["updates"]
    assert updates["planned"] == updates["acknowledged"] == updates["times"]["count"] == 20
    assert updates["errors"] == {}
    assert 0 < updates["times"]["p50"] <= updates["times"]["max"]
    assert result["service"]["statements"]["write"] == 20
    counts = result["service"]["counts"]
    assert {name: result["counts"].get(name, 0) for name in counts} == counts
    assert counts["hits"] > 0
    changed = result["rows"]["first after a change"]["count"]
    assert changed + result["rows"]["during a change"]["count"] > 0
    assert (result["rows"]["304"]["count"] > 0) is (backend == "memory")
    assert 0 < result["rows"]["all"]["p50"] <= result["rows"]["all"]["max"]
    assert result["processors"]["roles"].keys() >= {"driver", "service"}
    assert result["processors"]["roles"]["driver"] > 0
    assert result["noisy"] is (result["noise_limit"] < result["processors"]["others"])
    assert f"{polls['planned']} planned, {polls['sent']} sent" in said


def test_a_run_that_polled_nothing_fails(command: Command, tmp_path: Path) -> None:
    options = "--pollers 1 --jobs 1 --no-updates --seconds 0.00001 --warm-up 0.00001 --seed 3"
    where = ["--database", "sqlite", "--results", str(tmp_path)]
    status, said, _ = command.run(main, *options.split(), *where)
    assert status == 1
    assert "nothing was measured" in said


def test_numbers_of_pollers_are_shown_side_by_side(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_LATE_MS", -1.0)  # any driver is late
    load = "--pollers 2,20 --interval 0.2 --jobs 2 --update-interval 0.2 --seconds 0.6"
    where = ["--database", "sqlite", "--results", str(tmp_path)]
    status, said, complained = command.run(
        sweep.main, *load.split(), "--backends", "memory", *where
    )
    assert status == 0, said + complained
    (path,) = tmp_path.glob("*.json")
    few, many = json.loads(path.read_text())["trials"]
    assert few["polls"]["answered"] < many["polls"]["answered"]
    assert f"| memory | 20 | {many['polls']['answered'] / many['took']:.0f} | " in said
    assert [len(each["doubts"]) > 0 for each in (few, many)] == [True, True]
    assert "memory, 20 pollers: THE DRIVER WAS THE BOTTLENECK" in said
    drawn = path.with_suffix(".svg").read_text()
    for words in ("pollers", "memory p99", "statements/s", "% of polls that are hits"):
        assert words in drawn


def test_finished_trials_are_kept_when_a_sweep_is_interrupted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(plan: Plan, *arguments: Any) -> dict[str, Any]:
        if plan.pollers > 2:
            raise KeyboardInterrupt
        return trial_run(plan, *arguments)

    trial_run = trial.run
    monkeypatch.setattr(trial, "run", run)
    load = "--pollers 2,20 --interval 0.2 --jobs 2 --seconds 0.4 --backends memory"
    where = ["--database", "sqlite", "--results", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        command.run(sweep.main, *load.split(), *where)
    (path,) = tmp_path.glob("*.json")
    assert [each["plan"]["pollers"] for each in json.loads(path.read_text())["trials"]] == [2]


def test_a_run_without_a_hit_has_no_time_of_one() -> None:
    figures = {"service": {"hit_us": {"count": 0, "p50": 0.0}}}
    assert report._hits(figures) == []
    figures = {"service": {"hit_us": {"count": 7, "p50": 12.4}}}
    assert report._hits(figures) == ["Inside the service: p50 of a hit 12 µs."]


def test_wrong_options_are_explained(command: Command) -> None:
    with pytest.raises(SystemExit):
        command.run(main, "--backend", "disk")


@pytest.mark.parametrize("run", [main, sweep.main])
def test_more_pollers_than_files_are_refused(
    capsys: pytest.CaptureFixture[str], run: Callable[[list[str]], int]
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("any number of files may be open here")
    with pytest.raises(SystemExit):
        run(["--pollers", str(hard)])
    assert f"{hard} files may be open" in capsys.readouterr().err


def test_the_time_of_a_poll_counts_from_when_it_was_due(stub: Stub) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.05)
        reply(request, 1)

    # Ten polls are due within the time of two responses, and wait for each other.
    seen = stub.load(slow, slow, 0.1, plan(interval=0.01))
    assert seen.planned >= 8
    assert seen.record.answered == seen.record.sent == seen.planned
    slowest = summary(seen.record.seconds[Kind.HIT])["max"]
    assert slowest is not None
    assert slowest > 0.8 * (50 * seen.planned - 100)


def test_a_version_that_goes_backwards_is_noticed(stub: Stub) -> None:
    versions = itertools.chain([3, 5, 4], itertools.repeat(6))
    seen = stub.load(lambda request: reply(request, next(versions)), reply_1, 0.5, plan())
    assert seen.record.backwards == 1
    assert report.failures(figures_of(seen)) == [
        "1 times a poller received an older version than before"
    ]


def reply_1(request: BaseHTTPRequestHandler) -> None:
    reply(request, 1)


def test_a_version_older_than_acknowledged_is_noticed(stub: Stub) -> None:
    updating = plan(update_interval=0.5)
    seen = stub.load(reply_1, lambda request: reply(request, 2), 0.5, updating)
    assert len(seen.updates) == 1
    assert 0 < seen.record.outdated <= seen.planned
    (failure,) = report.failures(figures_of(seen))
    assert failure == f"{seen.record.outdated} responses were older than acknowledged"


def test_polls_during_a_change_have_a_row_of_their_own(stub: Stub) -> None:
    version, polled = 1, threading.Event()

    def show(request: BaseHTTPRequestHandler) -> None:
        if version > 1:
            polled.set()
        reply(request, version)

    def change(request: BaseHTTPRequestHandler) -> None:
        nonlocal version
        version = 2
        polled.wait(10)  # a poll has seen the new version before it is acknowledged
        reply(request, version)

    seen = stub.load(show, change, 0.5, plan(pollers=20, interval=0.2, update_interval=0.5))
    rows = {kind: len(seconds) for kind, seconds in seen.record.seconds.items()}
    assert rows[Kind.CHANGING] > 0
    assert rows[Kind.OTHER] == 0
    assert sum(rows.values()) == seen.planned
    bypassing = stub.load(lambda request: reply(request, 1, "fwd=bypass"), reply_1, 0.2, plan())
    assert len(bypassing.record.seconds[Kind.CHANGING]) == bypassing.planned


def test_refusals_and_lost_connections_are_failures(stub: Stub) -> None:
    def refuse(request: BaseHTTPRequestHandler) -> None:
        request.send_error(503)  # closes the connection
        request.close_connection = True

    seen = stub.load(refuse, refuse, 0.3, plan())
    assert seen.record.errors["status 503"] == 1
    assert seen.record.errors["the connection was lost"] == 1
    assert seen.record.sent == 1 < seen.planned
    failures = report.failures(figures_of(seen))
    assert "nothing was measured: no poll was answered" in failures
    assert f"{seen.planned} polls were planned, but 1 were sent" in failures


def test_counts_that_differ_from_the_services_are_a_failure(stub: Stub) -> None:
    figures = figures_of(stub.load(reply_1, reply_1, 0.2, plan()))
    assert report.failures(figures) == []
    hits = figures["counts"]["hits"]
    figures["service"] = {"counts": {"hits": hits + 1}}
    assert report.failures(figures) == [
        f"the service has counted {hits + 1} hits, but {hits} were received"
    ]


def test_a_driver_that_is_too_busy_says_so(stub: Stub) -> None:
    sent: list[float] = []

    def send(planned: float, _: int) -> None:
        sent.append(planned)
        time.sleep(0.02)

    pacer = Pacer([Planned(0.001 * number, 0) for number in range(20)], send)
    loop = new_event_loop()
    loop.run_until_complete(pacer.run(loop.time()))
    loop.close()
    assert len(sent) == len(pacer.delays) == 20
    figures = figures_of(stub.load(reply_1, reply_1, 0.2, plan()))
    figures["delay"] = summary(pacer.delays)
    (doubt,) = report.doubts(figures, 0.1)
    assert doubt.startswith("THE DRIVER WAS THE BOTTLENECK")


def test_other_processes_make_a_run_noisy(stub: Stub) -> None:
    burn = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as burning:
        try:
            assert burning.stdout is not None
            burning.stdout.readline()
            foreign, own = ProcessorMeter({}), ProcessorMeter({"burning": burning.pid})
            time.sleep(1)
            usage, known = foreign.usage(), own.usage()
        finally:
            burning.kill()
    assert usage.others > 0.1
    assert known.roles["burning"] > 0.1
    # The same seconds, except for the time between two looks.
    assert known.others < usage.others
    figures = figures_of(stub.load(reply_1, reply_1, 0.2, plan()))
    figures["delay"] = summary([])
    assert report.doubts(figures, 0.1) == []
    figures["processors"]["others"] = usage.others
    (doubt,) = report.doubts(figures, 0.1)
    assert doubt.startswith("NOISY")


def test_the_driver_agrees_with_locust(stub: Stub) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.15)
        reply(request, 1)

    StubHandler.polled, port = slow, stub.server.server_port
    polling = plan(pollers=10, interval=0.5, jobs=2)
    driver = against_locust.by_driver(port, [1, 2], polling, 3)
    locust = against_locust.by_locust(port, [1, 2], polling, 3)
    for polled in (driver, locust):
        assert polled.failures == []
        assert polled.times["p50"] is not None
        assert polled.times["p50"] > 150
    # On a busy machine they may differ by more than the command allows.
    assert against_locust.differences(driver, locust, tolerance=150, rate=0.3) == []


def test_locust_waits_for_polls_in_progress_at_its_end(stub: Stub) -> None:
    served: list[str] = []

    def slow(request: BaseHTTPRequestHandler) -> None:
        served.append(request.path)
        time.sleep(0.4)
        reply(request, 1)

    StubHandler.polled = slow
    seconds = 0.5
    while not served:  # a busy machine has no time for a poll
        polled = against_locust.by_locust(
            stub.server.server_port, [1], plan(pollers=10, interval=0.5), seconds
        )
        seconds *= 2
    assert polled.failures == []
    assert polled.polls == len(served)


def test_what_the_driver_and_locust_disagree_in_is_said() -> None:
    polled = against_locust.Polled(100, 10.0, [], {"p50": 20.0}, 100)
    assert against_locust.differences(polled, polled, 5) == []
    other = against_locust.Polled(90, 10.0, ["refused"], {"p50": 26.0}, 91)
    assert against_locust.differences(polled, other, 5) == [
        "Locust: refused",
        "Locust has sent 90 polls, and the service counted 91",
        "10.0 polls a second, by Locust 9.0",
        "a median of 20.0 ms, by Locust 26.0 ms",
    ]
    nothing = against_locust.Polled(0, 0.0, [], {"p50": None}, 0)
    assert "the driver has measured nothing" in against_locust.differences(nothing, polled, 5)


def test_the_schedule_is_spread_and_repeatable() -> None:
    polls = of_pollers(100, 3, 30, random.Random(1))
    assert polls == of_pollers(100, 3, 30, random.Random(1)) == sorted(polls)
    assert 0.95 < len(polls) / 1000 < 1.05
    assert {number for _, number in polls} == set(range(100))
    updates = of_updates(10, 5, 10)
    assert [number for _, number in updates] == [*range(10), *range(10)]
    assert {round(b.at - a.at, 6) for a, b in itertools.pairwise(updates)} == {0.5}


def test_goals_are_judged() -> None:
    row = {"count": 9, "p50": 1.0, "p99": 24.0, "p99.9": 50.0, "max": 60.0}
    figures = {
        "rows": {"all": row, "during a change": row},
        "updates": {"acknowledged": 100},
        "service": {"statements": {"write": 100, "load": 1, "feed": 50}},
    }
    assert report.missed_goals(figures) == []
    figures["service"] = {"statements": {"write": 100, "load": 2}}
    figures["rows"] = {"all": {**row, "p99": 25.0}, "during a change": {**row, "p99": None}}
    assert report.missed_goals(figures) == [
        "p99 of the row 'all' is 25.0 ms (goal: below 25)",
        "there is no poll of the row 'during a change'",
        "102 statements for 100 updates (goal: at most 1 % more)",
    ]
