"""The freshness run: every fault once, and that it sees what it is there to see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.freshness.__main__ import main
from loadtests.freshness.faults import FAULTS
from tests.measurement.in_process import Command

ROOT = Path(__file__).parents[2]
LIMIT = 600  # seconds; a quiet machine needs a seventh of it


def start(results: Path, *options: str) -> subprocess.Popen[str]:
    variables = {name: text for name, text in os.environ.items() if "COVERAGE" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", "loadtests.freshness", *options, "--results", results],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> str:
    try:
        said, complained = child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        child.terminate()  # so that it ends its servers
        said, complained = child.communicate(timeout=60)
    return said + complained


def check(command: Command, results: Path, *options: str) -> tuple[int, str]:
    """Run it in this process. Return its exit status, and all that it says."""
    status, said, complained = command.run(main, *options, "--results", str(results))
    return status, said + complained


def document(results: Path) -> dict[str, Any]:
    (path,) = results.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


SHORT = (
    *("--quick", "--processes", "2", "--pollers", "8", "--poll-pause", "0.03", "--jobs", "8"),
    *("--calm", "0.15", "--freshness", "0.5", "--idle", "1", "--reads", "1000"),
)
"""Fewer processes, and less calm and fewer reads around each fault than in a long run."""

ONE_OF_EACH_KIND = "kill-service,restart,pause,full,promote,cut,black-hole-for-one,database"
"""A process dies; Redis forgets, hangs, refuses writes, and goes back to what it had been; the
network fails all, or one; the source is away. `--long` injects every fault."""


def test_no_promise_is_broken_whatever_fails(
    command: Command, tmp_path: Path, *, long: bool
) -> None:
    status, said = check(
        command,
        tmp_path,
        *("--values", *(["--quick"] if long else [*SHORT, "--faults", ONE_OF_EACH_KIND])),
    )
    assert status == 0, said
    seen = document(tmp_path)
    assert seen["all"]["reads"] >= (100_000 if long else 1000)
    expected = {name for name, fault in FAULTS.items() if fault.needs in {"", "redis"}}
    if not long:
        expected = set(ONE_OF_EACH_KIND.split(","))
    assert expected < set(seen["faults"])
    for name in expected:
        fault = seen["faults"][name]
        assert fault["injected"] >= 1
        assert fault["reads"] > 0
        assert fault["violations"] == {}
    # In a short calm a busy machine may answer no poll.
    calm = [seen["faults"][name]["poll_ms"]["before"]["p50"] for name in expected]
    assert all(p50 > 0 for p50 in calm if p50 is not None or long)
    assert any(calm)
    assert seen["all"]["writes"] > (1000 if long else 200)
    assert seen["all"]["not_modified"] > 0
    assert seen["all"]["value_changes"] > 5
    assert seen["all"]["value_reads"] > 50
    assert seen["compared"] == (3 if long else 2) * seen["jobs"] > 0


def test_two_tiers_lag_by_no_more_than_they_may_whatever_becomes_of_their_feed(
    command: Command, tmp_path: Path, *, long: bool
) -> None:
    faults = ["feed-killed", "feed-black-hole", "hello-refused", "pause"]
    load, processes = ("--quick", "--reads", "20000"), 3
    if not long:
        # Fresh for longer than a feed may lag, or nothing old would be shown for too long.
        load, processes = (*SHORT, "--freshness", "4", "--pause", "1"), 2
        del faults[2:]
    status, said = check(
        command, tmp_path, "--values", "--backend", "tiered", *load, "--faults", ",".join(faults)
    )
    assert status == 0, said
    seen = document(tmp_path)
    assert seen["all"]["violations"] == {}
    for name in faults:
        assert seen["faults"][name]["injected"] >= 1
        assert max(seen["faults"][name]["worst"].values()) <= 2.5
    assert len(seen["lag_us"]["idle"]) == processes
    assert all(lag["count"] > 10 for lag in seen["lag_us"]["idle"])


def test_postgres_alone_keeps_the_promises_of_two_tiers(
    command: Command, tmp_path: Path, *, long: bool
) -> None:
    faults = ["kill-service", "listener-terminated", "listener-black-hole", "failover-crashed"]
    load, processes = (*SHORT, "--freshness", "4", "--pause", "1"), 2
    if long:
        faults = [name for name, fault in FAULTS.items() if fault.needs in {"", "notifications"}]
        load, processes = ("--quick", "--reads", "20000"), 3
    options = ("--values", "--backend", "postgres", "--faults", ",".join(faults))
    status, said = check(command, tmp_path, *options, *load)
    assert status == 0, said
    seen = document(tmp_path)
    assert seen["all"]["violations"] == {}
    for name in faults:
        fault = seen["faults"][name]
        assert fault["injected"] >= 1
        assert fault["reads"] > 0
        assert max(fault["worst"].values()) <= 2.5
    assert seen["all"]["hits"] > 0
    assert seen["all"]["value_changes"] > 0
    assert seen["compared"] == processes * seen["jobs"] > 0
    assert len(seen["lag_us"]["idle"]) == processes
    assert all(lag["count"] > 10 for lag in seen["lag_us"]["idle"])


@pytest.mark.long
def test_a_local_tier_that_outlives_an_interruption_is_found_out(
    command: Command, tmp_path: Path
) -> None:
    # Few polls and few changes: a poll during the interruption would replace what it outdates.
    kind = "older than acknowledged"
    options = ("--backend", "postgres", "--break", "interruption", "--faults", "listener-refused")
    load = ("--processes", "2", "--pollers", "2", "--poll-pause", "0.2", "--pause", "3")
    load = (*load, "--freshness", "30", "--calm", "3", "--idle", "0.1", "--until", kind)
    status, said = check(command, tmp_path, *options, "--quick", "--rounds", "40", *load)
    assert status == 1, said
    seen = document(tmp_path)
    assert seen["complaints"] == [], "it failed for what it saw, and for nothing else"
    assert seen["all"]["violations"][kind] > 0


@pytest.mark.parametrize(("backend", "fault"), [("tiered", "pause"), ("postgres", "database")])
def test_a_local_tier_that_is_told_nothing_is_found_out(
    command: Command, tmp_path: Path, backend: str, fault: str
) -> None:
    # Calm for longer than a feed may lag, so that what it hides is hidden for too long. The first
    # three clients send no ETags: with one, whoever asks has the process look into Redis.
    kind = "older than acknowledged"
    options = ("--backend", backend, "--break", "report", "--freshness", "20", "--calm", "30")
    load = ("--processes", "2", "--pollers", "3", "--poll-pause", "0.02", "--pause", "1")
    load = (*load, "--until", kind, "--reads", "2000")
    status, said = check(
        command, tmp_path, *options, "--quick", "--idle", "0.1", "--faults", fault, *load
    )
    assert status == 1, said
    seen = document(tmp_path)
    assert seen["complaints"] == [], "it failed for what it saw, and for nothing else"
    assert seen["all"]["violations"][kind] > 0


def test_changes_of_values_that_nobody_announces_are_found_out(
    command: Command, tmp_path: Path
) -> None:
    kind = "older than acknowledged"
    load = ("--processes", "2", "--pollers", "2", "--poll-pause", "0.02", "--jobs", "2")
    load = (*load, "--freshness", "20", "--calm", "30", "--until", kind, "--reads", "2000")
    broken = ("--values", "--break", "invalidation", "--faults", "restart", "--quick")
    status, said = check(command, tmp_path, *broken, *load)
    assert status == 1, said
    seen = document(tmp_path)
    assert seen["complaints"] == [], "it failed for what it saw, and for nothing else"
    assert seen["all"]["violations"] == {kind: seen["all"]["violations"][kind]}
    assert "value" in seen["faults"]["restart"]["findings"][0]


def test_a_cache_without_fences_is_found_out(command: Command, tmp_path: Path) -> None:
    # Few jobs, seldom changed: what a dead process has hidden stays hidden for longer.
    kind = "older than seen"
    load = (
        "--processes",
        "2",
        "--pollers",
        "8",
        "--poll-pause",
        "0.02",
        "--jobs",
        "4",
        "--pause",
        "1",
    )
    load = (*load, "--calm", "0.3", "--freshness", "5")
    options = ("--break", "fence", "--faults", "kill-service", "--rounds", "20", "--until", kind)
    status, said = check(command, tmp_path, *options, *load, "--reads", "2000")
    assert status == 1, said
    assert "BROKEN ON PURPOSE: fence" in said
    seen = document(tmp_path)
    assert seen["complaints"] == [], "it failed for what it saw, and for nothing else"
    assert seen["all"]["violations"][kind] > 0
    (explanations,) = tmp_path.glob("*.txt")
    explained = explanations.read_text()
    for part in (kind, "kill-service begins", "client sends: ", "client got: ", ": got version "):
        assert part in explained, explained


@pytest.mark.usefixtures("first_version")
@pytest.mark.parametrize("backend", ["redis", pytest.param("tiered", marks=pytest.mark.long)])
def test_processes_of_the_first_version_and_of_this_one_show_nothing_old(
    command: Command, tmp_path: Path, backend: str, *, long: bool
) -> None:
    load = ("--quick",)
    if not long:
        load = (*SHORT, "--processes", "3", "--freshness", "30", "--faults", "replace")
    status, said = check(command, tmp_path, "--older", "--backend", backend, *load)
    assert status == 0, said
    seen = document(tmp_path)
    assert seen["all"]["violations"] == {}
    assert seen["all"]["statuses"] == {}, "no poll is answered with an error"
    assert seen["faults"]["replace"]["injected"] >= 1
    assert 0 < seen["all"]["older_reads"] < seen["all"]["reads"]
    assert 0 < seen["all"]["older_writes"] < seen["all"]["writes"]
    assert 0 < seen["all"]["older_hits"] < seen["all"]["hits"]


@pytest.mark.long
@pytest.mark.usefixtures("first_version")
def test_versions_that_do_not_share_their_keys_are_found_out(
    command: Command, tmp_path: Path
) -> None:
    kind = "older than acknowledged"
    load = ("--processes", "2", "--pollers", "4", "--poll-pause", "0.02", "--jobs", "2")
    options = ("--older", "--break", "keys", "--quick", "--faults", "flush", "--calm", "30")
    status, said = check(command, tmp_path, *options, *load, "--until", kind)
    assert status == 1, said
    seen = document(tmp_path)
    assert seen["complaints"] == [], "it failed for what it saw, and for nothing else"
    assert seen["all"]["violations"][kind] > 0


@pytest.mark.parametrize("backend", ["memory", pytest.param("null", marks=pytest.mark.long)])
def test_other_backends_are_checked_as_well(
    command: Command, tmp_path: Path, backend: str, *, long: bool
) -> None:
    faults = ["kill-service", "database"] if long else ["database"]
    load = ("--quick",) if long else (*SHORT, "--processes", "1", "--reads", "500")
    status, said = check(
        command, tmp_path, "--backend", backend, *load, "--faults", ",".join(faults)
    )
    assert status == 0, said
    seen = document(tmp_path)
    assert set(seen["faults"]) == {*faults, "between, and the end"}
    assert (seen["all"]["hits"] > 0) == (backend == "memory")


@pytest.mark.parametrize(
    ("number", "moment", "status"),
    [(signal.SIGINT, "starting", {130}), (signal.SIGTERM, "round", {1})],
)
def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, moment: str, status: set[int]
) -> None:
    child = start(tmp_path, "--processes", "1", "--faults", "unreachable")
    assert child.stderr is not None
    try:
        while not child.stderr.readline().startswith(moment):
            assert child.poll() is None
        # So that servers are starting, but have not begun to serve; or polls are under way.
        time.sleep(0.2)
        family = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(number)
    finally:
        said = finish(child)
    assert child.returncode in status, said
    assert ("FAILED: interrupted" in said) == (moment == "round")
    assert family
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "--backend redis --faults restart,feed-killed",
            "feed-killed: not with these options on redis; choose from kill-service, ",
        ),
        ("--backend tiered --faults listener-cut", "listener-cut: not with these options"),
        ("--backend memory --faults cut", "choose from kill-service, database\n"),
        ("--backend redis --faults replace", "replace: not with these options"),
    ],
)
def test_faults_that_cannot_happen_are_refused_before_anything_is_started(
    options: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(options.split())
    assert refused.value.code == 2
    assert reason in capsys.readouterr().err
