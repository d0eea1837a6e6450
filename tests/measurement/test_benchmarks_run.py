"""The benchmarks work, which says nothing about how fast anything is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from benchmarks import __main__ as benchmarks
from benchmarks import (
    instructions,
    long_poll_quickstart,
    long_poll_scale,
    outage,
    results,
    tables,
)
from benchmarks.__main__ import SECTIONS
from benchmarks.handwritten import Jobs
from benchmarks.nginx import nginx_program
from benchmarks.peers import routes, table
from benchmarks.results import NoResults
from benchmarks.shutdown import __main__ as shutdown
from benchmarks.suites import polls, writers
from loadtests.restart import __main__ as restart
from tests.measurement.in_process import Command

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> tuple[int, str]:
    child = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = child.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # so that it ends its servers
        said, _ = child.communicate(timeout=60)
    return child.returncode, said


def test_a_quick_run_measures_everything_and_draws_it(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, long: bool
) -> None:
    services = polls.OURS if long else ("null", "memory")
    only = SECTIONS if long else [name for name in SECTIONS if name not in {"keys", "operations"}]
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(tables, "PLOTS", tmp_path / "plots")
    status, said, complained = command.run(
        benchmarks.main,
        *("--quick", "--seconds", "0.05", "--driver", "processes", "--write"),
        *("--only", ",".join(only), "--services", ",".join(services)),
    )
    assert status == 0, said + complained  # whether anything holds is not asked here
    assert "RESULTS.md stays as it is" in complained
    # Only what is not under version control is written.
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "quick.json"]
    measured = results.load(tmp_path / "kept" / "quick.json")
    assert tables.page(measured) in said
    assert "HOLD" not in said
    assert {one.name for one in measured.sections} == {
        *(
            "polls-one",
            "polls-many",
            "connections",
            "observed",
            "embedded",
            "wire",
            "lookups",
            "calls",
        ),
        *("gets-at-once", "gets-alone", "updates", "writers"),
        *(("keys", "operations") if long else ()),
    }
    one = measured.find("polls-one")
    for subject in {"null", "memory", polls.PLAIN, polls.PARSER, polls.HANDWRITTEN}:
        assert one.find(subject).median > 0
    for subject in {*services, polls.PLAIN, polls.HANDWRITTEN}:
        assert measured.find("polls-many").find(subject).median > 0
    if nginx_program() is not None:
        assert one.find(polls.NGINX).median > 0
    for name in ("null", "redis", "postgres"):
        assert measured.find("updates").facts[f"{name}_statements_per_update"] == 1
    for name in (*writers.BACKENDS, writers.BARE, writers.NOTIFYING, writers.TRIGGERED):
        assert measured.find("writers").find(name, 2).median > 0
    tables.write(replace(measured, quick=False))
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| Progress update, redis: SQL statements | = 1 | 1 for" in page
    scaled = "keys" if long else "connections"
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert drawn >= {"summary-throughput.svg", "summary-latency.svg", f"{scaled}-scale.svg"}
    assert all(f"plots/{name}" in page for name in drawn)
    # The page of the project shows one of them.
    shown = re.findall(r"\(benchmarks/plots/(.*?)\)", (ROOT / "README.md").read_text())
    assert shown
    assert set(shown) <= drawn


def test_finished_sections_are_kept_when_a_later_one_fails(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NoResults("nothing to see")

    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmarks, "gets", fails)
    status, _, complained = command.run(benchmarks.main, "--quick", "--only", "calls,gets")
    assert status == 2
    assert "nothing to see" in complained
    (kept,) = tmp_path.iterdir()
    assert kept.name == "latest.unfinished.json"
    assert str(kept) in complained
    assert [one.name for one in results.load(kept).sections] == ["calls"]


@pytest.mark.parametrize(
    ("main", "options", "reason"),
    [
        (benchmarks.main, "--turns -1", "'-1' is no whole number of at least 1"),
        (benchmarks.main, "--seconds 0", "'0' is no number above 0"),
        (benchmarks.main, "--driver wrks", "invalid choice: 'wrks' (choose from"),
        (outage.main, "--rounds 0", "'0' is no whole number of at least 1"),
        (outage.main, "--polls 0", "'0' is no number above 0"),
        (long_poll_quickstart.main, "--updates 0", "'0' is no whole number of at least 1"),
        (long_poll_scale.main, "--held 0", "'0' is no whole number of at least 1"),
        (long_poll_scale.main, "--seconds 0", "'0' is no number above 0"),
        (shutdown.main, "--rounds 0", "'0' is no whole number of at least 1"),
        (restart.main, "--clients 0", "--processes and --clients must be at least 1"),
    ],
)
def test_a_command_that_would_measure_nothing_is_refused(
    main: Callable[[Sequence[str]], int],
    options: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(options.split())
    assert refused.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        "benchmarks --quick --only polls",
        "benchmarks.outage",
        "benchmarks.long_poll_quickstart",
        "benchmarks.long_poll_scale --held 10 --jobs 2",
        "benchmarks.shutdown --polls 2 --streams 1",
        "loadtests.open_loop.against_locust --pollers 2 --jobs 1 --database sqlite",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in (
                "loadtests.open_loop --pollers 2 --jobs 1 --database sqlite",
                "loadtests.restart",
            )
        ),
    ],
)
def test_nothing_is_left_behind_by_a_command_that_sigterm_ends(arguments: str) -> None:
    with tempfile.TemporaryDirectory(prefix="test-") as place:
        Path(place).chmod(0o711)  # PostgreSQL may run as another account
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments.split()],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": place},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with child:
            try:
                started = wait_for_a_server(child)
            finally:
                child.terminate()
            said, _ = child.communicate(timeout=90)
        assert child.returncode == 128 + signal.SIGTERM, said
        assert psutil.wait_procs(started, timeout=60)[1] == []
        assert list(Path(place).iterdir()) == []


def wait_for_a_server(child: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that a command has started, once one of them listens."""
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        found = psutil.Process(child.pid).children(recursive=True)
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.net_connections():
                    return found
        time.sleep(0.05)
    raise AssertionError("it has started no server")


class Stored(Jobs):
    """One job, without a database."""

    def __init__(self) -> None:
        self.loads = 0

    async def body(self, job_id: int) -> bytes:
        self.loads += 1
        return b'{"id":%d,"version":7}' % job_id


@pytest.mark.parametrize("name", ["cachetools", "cachetools, bytes"])
async def test_a_peer_loads_a_job_once(name: str) -> None:
    app, stored = FastAPI(), Stored()
    routes._MAKERS[name](app, stored, "")
    async with AsyncClient(transport=ASGITransport(app), base_url="http://peer") as client:
        answers = [await client.get("/jobs/3") for _ in range(3)]
    assert [answer.json() for answer in answers] == [{"id": 3, "version": 7}] * 3
    assert stored.loads == 1


def test_every_peer_has_a_route_and_the_absent_ones_are_named() -> None:
    assert routes._MAKERS.keys() == table.ROUTES.keys()
    absent = {one.subject: one.reason for one in table.absent()}
    for package in table.MODULES:
        assert (package in absent) != (package in table.versions()), package
    assert all("Error" in reason for reason in absent.values())


VALGRIND = """#!/bin/sh
test "$1" = --tool=callgrind || exit 3
shift 2
"$@" || exit 4
echo "==7== Collected : 123456789" >&2
"""


def test_the_count_of_a_run_is_what_valgrind_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a path that runs; valgrind itself takes ten seconds, and is run by the long tests."""
    stand_in = tmp_path / "valgrind"
    stand_in.write_text(VALGRIND)
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert instructions.counted("decode", 1) == 123456789
    monkeypatch.setitem(instructions.PATHS, "none", instructions.PATHS["decode"])
    with pytest.raises(instructions.NoCount, match="none failed"):
        instructions.counted("none", 1)  # nothing that the program knows


@pytest.mark.long
def test_one_run_under_valgrind_is_counted() -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    assert instructions.counted("decode", 1) > 1000


@pytest.mark.long
def test_instructions_are_counted(tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    file = tmp_path / "kept.json"
    only = ("--only", "decode", "--scale", "0.1", "--file", str(file))
    status, said = run("benchmarks.instructions", *only, "--store")
    assert status == 0, said
    assert 1000 < json.loads(file.read_text())["instructions"]["decode"] < 1_000_000


@pytest.mark.parametrize("path", instructions.PATHS)
async def test_every_path_of_which_instructions_are_counted_runs(path: str) -> None:
    await instructions.PATHS[path][0](2)


def test_a_long_poll_of_the_quickstart_is_answered_after_each_change(command: Command) -> None:
    status, said, complained = command.run(long_poll_quickstart.main, "--updates", "3")
    assert status in {0, 1}, complained  # however long it took
    assert "on memory, 3 updates" in said
    assert "| from acknowledgement to answer |" in said
