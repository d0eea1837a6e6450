"""The load test's command: real runs with few clients and short jobs, and what can go wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from rich.console import Console

from app import settings
from app.devservers import ServerFailed
from benchmarks import process
from benchmarks.backends import NEEDS_REDIS, ONE_PROCESS_ONLY
from benchmarks.service import Service, ServiceFailed
from jobcache import SettingsError
from loadtests.__main__ import main
from loadtests.report.document import Document, from_json
from loadtests.run import command as run_command
from loadtests.run.progress import RunProgress, Schedule, in_words
from loadtests.scenario import Scenario
from loadtests.scenarios import SCENARIOS
from tests.measurement.in_process import Command
from tests.measurement.measurements import measurement

ROOT = Path(__file__).parents[2]
TINY = Scenario(
    name="tiny",
    description="Three clients poll their own jobs.",
    users=3,
    interval=0.15,
    job_seconds=1.5,
    updates=6,
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCENARIOS, "tiny", TINY)


def kept(results: Path) -> Document:
    (path,) = results.glob("*/report.json")
    return from_json(path.read_bytes())


def test_the_command_measures_backends_and_writes_a_report(
    command: Command, tmp_path: Path
) -> None:
    options = "run --scenarios tiny --backends null,memory --database sqlite --results"
    status, said, complained = command.run(main, *options.split(), str(tmp_path))
    assert status == 0, said + complained
    assert "run 2 of 2: tiny on memory" in complained
    document = kept(tmp_path)
    assert said.strip() == str(next(tmp_path.glob("*/report.html")))
    assert (document.planned, document.interrupted, document.problems) == (2, False, [])
    null, memory = document.runs
    for run in (null, memory):
        assert run.jobs == run.completed == run.ends_seen == 3
        assert run.polls == run.service.reads == run.clients.reads >= 3 * 9
        assert run.clients == run.service
        assert sum(bucket.count for bucket in run.polls_ms) == run.polls
        assert len(run.samples) >= 2
        assert run.samples[-1].cpu_seconds["service"] > run.samples[0].cpu_seconds["service"]
        assert run.samples[-1].reads == run.polls
        assert {"service", "clients"} == run.samples[0].resident_bytes.keys()
        assert run.problems == []
        assert run.updates > 0
        assert run.received_bytes > run.sent_bytes > 0
    assert null.service.hits == 0
    assert 0 < null.statements["load"] <= null.polls
    assert null.first_polls_missed == null.first_polls > 0
    assert null.inside_us["miss"]["p50"] > memory.inside_us["hit"]["p50"] > 0
    assert memory.service.hits > memory.polls * 0.8
    assert memory.statements.get("load", 0) <= memory.service.bypasses
    assert memory.first_polls > memory.first_polls_missed == 0


@pytest.mark.usefixtures("undrawn")
def test_counts_are_compared_over_all_processes_of_the_service(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many connections that neither process accepts all of them before the other one wakes up.
    monkeypatch.setitem(SCENARIOS, "shared", replace(TINY, name="shared", users=40, shared_jobs=8))
    options = "run --scenarios shared --backends tiered --workers 2 --database sqlite --results"
    status, said, complained = command.run(main, *options.split(), str(tmp_path))
    assert status == 0, said + complained
    (run,) = kept(tmp_path).runs
    assert run.clients == run.service
    assert run.polls == run.service.reads == sum(run.process_reads)
    assert len(run.process_reads) == 2
    assert all(run.process_reads)
    assert run.samples[-1].reads == run.polls


@pytest.mark.usefixtures("undrawn")
def test_backends_for_one_process_are_left_out_with_several(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = play(monkeypatch, *[GOOD] * 3)
    options = "run --scenarios tiny --workers 2 --database sqlite --results"
    _, _, complained = command.run(main, *options.split(), str(tmp_path))
    assert [call.args[1] for call in measure.call_args_list] == ["null", "redis", "tiered"]
    assert {call.kwargs["workers"] for call in measure.call_args_list} == {2}
    assert "left out memory: right with one service process only, not with 2" in complained
    assert "left out postgres: right with PostgreSQL only, not with sqlite" in complained


@pytest.mark.parametrize("backend", NEEDS_REDIS)
def test_the_service_refuses_several_processes_on_these_backends_only(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBCACHE_BACKEND", backend)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:6379")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1/jobs")
    monkeypatch.setenv("JOBCACHE_WORKERS", "2")
    refused = pytest.raises(SettingsError, match="one process only")
    with refused if backend in ONE_PROCESS_ONLY else nullcontext():
        settings.load()


@pytest.mark.usefixtures("undrawn")
def test_polls_are_answered_while_redis_hangs(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(TINY, name="broken", redis_hangs_after=0.5, redis_hangs_for=0.7, job_seconds=4)
    monkeypatch.setitem(SCENARIOS, "broken", broken)
    options = "run --scenarios broken --backends redis --database sqlite --results"
    status, said, complained = command.run(main, *options.split(), str(tmp_path))
    assert status == 0, said + complained
    (run,) = kept(tmp_path).runs
    assert [fault.text for fault in run.faults] == ["Redis hangs", "Redis answers"]
    hangs, answers = (fault.second for fault in run.faults)
    assert hangs >= 0.5
    assert answers - hangs > 0.69  # both are rounded, so that they may differ by less than 0.7
    assert run.clients == run.service
    assert run.cache_errors > 0
    assert "redis" in run.samples[-1].cpu_seconds


PROGRAM = f"""
import sys
from loadtests.__main__ import main
from loadtests.scenario import Scenario
from loadtests.scenarios import SCENARIOS
SCENARIOS["tiny"] = {TINY!r}
sys.exit(main(["run", "--scenarios", "tiny", "--backends", "memory,null,redis", *sys.argv[1:]]))
"""


def test_finished_results_are_kept_when_it_is_interrupted(tmp_path: Path) -> None:
    options = ["--database", "sqlite", "--results", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/report.json")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = wait_for_children(process.pid)
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, complained
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert (bool(gone), alive) == (True, [])
    document = kept(tmp_path)
    assert (document.interrupted, document.planned) == (True, 3)
    assert 1 <= len(document.runs) < 3
    assert document.runs[0].polls > 0
    page = Path(said.strip()).read_text("utf-8")
    assert "The test was interrupted" in page
    assert "tiny" in page


def wait_for_children(pid: int) -> list[psutil.Process]:
    """Processes of the second run: without them there is nothing that could be left behind."""
    parent = psutil.Process(pid)
    deadline = time.monotonic() + 60
    while not (children := parent.children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return children


def play(monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> Mock:
    measure = Mock(side_effect=outcomes)
    monkeypatch.setattr(run_command, "measure", measure)
    return measure


BAD = measurement("null", hits=0, misses=5, problems=["tiny on null: 3 failures"])
GOOD = measurement("memory", hits=5, misses=0)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("outcomes", "status", "complaint", "runs"),
    [
        ([GOOD, GOOD], 0, "", 2),
        ([BAD, GOOD], 1, "FAILED: tiny on null: 3 failures", 2),
        ([ServiceFailed("not ready"), GOOD], 1, "FAILED: tiny on null: not ready", 1),
        ([ServerFailed("no Redis"), GOOD], 1, "FAILED: tiny on null: no Redis", 1),
        ([ServiceFailed("a"), ServiceFailed("b")], 1, "FAILED: nothing was measured", 0),
    ],
)
def test_anything_wrong_makes_the_command_fail_and_is_kept(
    *,
    outcomes: list[Any],
    status: int,
    complaint: str,
    runs: int,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The runs after a failed one take place all the same."""
    measure = play(monkeypatch, *outcomes)
    options = "run --scenarios tiny --backends null,memory --database sqlite --results"
    found, _, complained = command.run(main, *options.split(), str(tmp_path))
    assert found == status
    assert measure.call_count == 2
    assert complaint in complained
    assert ("FAILED" in complained) == (status == 1)
    document = kept(tmp_path)
    assert len(document.runs) == runs
    assert not document.interrupted


def test_a_service_that_does_not_answer_has_failed(forked: None) -> None:
    """It may end in the middle of a run, and the runs after it still take place."""
    with Service({"JOBCACHE_BACKEND": "memory"}) as service:
        service.wait_until_ready()
        os.kill(service.pid, signal.SIGKILL)
        with pytest.raises(ServiceFailed, match="GET /api/v2/cache/stats was not answered"):
            service.stats()


@pytest.mark.parametrize(
    ("options", "valid"),
    [
        ("run --backends null,disk", "null, memory"),
        ("run --scenarios none", "users_1, users_10"),
        ("run --database oracle", "sqlite"),
        ("run --workers 0", "from 1 to 64"),
        ("run --workers two", "from 1 to 64"),
        ("run --workers 65", "from 1 to 64"),
        ("run --workers 2 --backends redis,memory", "choose from null, redis, tiered, postgres"),
        ("run --database sqlite --backends postgres", "choose from null, memory, redis, tiered"),
        ("walk", "run"),
        ("", "command"),
    ],
)
def test_invalid_arguments_are_refused_with_what_is_valid(
    options: str, valid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(options.split())
    assert refused.value.code == 2
    assert valid in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_quick_shows_some_scenarios_in_shorter_time(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = play(monkeypatch, *[GOOD] * 20)
    options = ["run", "--quick", "--backends=memory", "--database=sqlite"]
    command.run(main, *options, "--results", str(tmp_path))
    names = [call.args[0].name for call in measure.call_args_list]
    assert names == [name for name, each in SCENARIOS.items() if each.in_demonstration]
    assert len(names) > 2
    shown = measure.call_args_list[0].args[0]
    whole = SCENARIOS[shown.name]
    assert shown.job_seconds / shown.interval == pytest.approx(whole.job_seconds / whole.interval)
    assert shown.job_seconds < whole.job_seconds / 10
    document = kept(tmp_path)
    assert document.quick
    expected = sum(call.args[0].job_seconds for call in measure.call_args_list) * 4
    assert expected < 5 * 60


def test_each_scenario_has_the_name_of_its_file() -> None:
    files = {path.stem for path in (ROOT / "loadtests/scenarios").glob("*.py")} - {"__init__"}
    assert files == SCENARIOS.keys() - {"tiny"}
    for name, scenario in SCENARIOS.items():
        assert scenario.name == name
        assert scenario.description.endswith(".")


def test_the_remaining_time_follows_the_clock() -> None:
    now = [100.0]
    schedule = Schedule([10, 20, 30], lambda: now[0])
    assert (schedule.total, schedule.remaining()) == (60, 60)
    assert schedule.next_run() == 1
    now[0] += 4
    assert schedule.remaining() == 56
    now[0] += 40  # longer than expected
    assert schedule.remaining() == 50
    assert schedule.next_run() == 2
    now[0] += 5
    assert schedule.remaining() == 45
    assert [in_words(seconds) for seconds in (0, 59.4, 61, 600)] == [
        *("0 s", "59 s", "1 min 1 s"),
        "10 min 0 s",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_has_the_run_and_the_remaining_time(*, terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    with RunProgress(Schedule([75], lambda: 0.0), 1, console) as progress, progress.run("tiny"):
        pass
    assert "run 1 of 1: tiny" in file.getvalue()
    assert "1 min 15 s left" in file.getvalue()


@pytest.mark.usefixtures("undrawn")
def test_a_second_signal_does_not_stop_the_report(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_twice(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_command, "measure", interrupted_twice)
    before = signal.getsignal(signal.SIGTERM)
    options = ["run", "--scenarios=tiny", "--database=sqlite", "--results", str(tmp_path)]
    status, _, _ = command.run(main, *options)
    assert status == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    (path,) = tmp_path.glob("*/report.json")
    assert json.loads(path.read_text("utf-8"))["interrupted"] is True


PARENT_THAT_STAYS = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", flush=True)
child.wait()
"""


def test_a_program_that_does_not_end_is_killed_with_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers of a service would otherwise outlive it, and keep its port."""
    monkeypatch.setattr(process, "_STOP", 0.1)
    command = [sys.executable, "-c", PARENT_THAT_STAYS]
    with process.Process(command, dict(os.environ)) as parent:
        deadline = time.monotonic() + 60
        while "started" not in parent.log_tail():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        family = [psutil.Process(parent.pid), *parent.descendants()]
        assert len(family) == 2
    assert psutil.wait_procs(family, timeout=60)[1] == []
