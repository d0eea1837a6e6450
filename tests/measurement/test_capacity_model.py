"""The capacity model: examples computed by hand, laws that hold for all loads, bad arguments."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.__main__ import main
from loadtests.capacity import coefficients
from loadtests.capacity.bottlenecks import Hardware, margin, resources
from loadtests.capacity.model import LIFETIME, Prediction, busy, predict, spread
from loadtests.capacity.workload import BACKENDS, InvalidWorkload, Workload
from tests.measurement.capacity_costs import COSTS, REDIS, SERVICE
from tests.measurement.in_process import Command

# 9,000 pollers every 3 s: 3,000 polls/s; 600 jobs with 20 updates in 120 s: 100 updates/s.
LOAD = Workload(pollers=9000, jobs=600, backend="redis")


# --- examples computed by hand ---


def test_null_sends_a_query_for_each_poll() -> None:
    found = predict(replace(LOAD, backend="null"), COSTS)
    assert found.rates.polls == found.rates.loads == 3000
    assert found.rates.gets == found.rates.scripts == found.redis_cores == found.redis_memory == 0
    assert found.database_cores == pytest.approx(3000 * 100e-6 + 100 * 400e-6)
    assert found.process_cores == pytest.approx(3000 * 50e-6 + 100 * 2e-3)  # `poll` has the query


def test_memory_sends_no_query_while_updates_come_more_often_than_entries_expire() -> None:
    found = predict(replace(LOAD, backend="memory"), COSTS)
    assert found.rates.loads == 0
    assert found.database_cores == pytest.approx(100 * 400e-6)


def test_a_job_without_updates_is_loaded_once_in_a_lifetime() -> None:
    found = predict(replace(LOAD, backend="memory", updates=0), COSTS)
    # 5 polls of each job a second: the first one after the lifetime comes 0.2 s later
    assert found.rates.loads == pytest.approx(600 / (28.5 + 0.2))
    assert LIFETIME == 28.5


def test_rare_updates_leave_room_for_loads() -> None:
    found = predict(replace(LOAD, updates=1, seconds=60.0), COSTS)
    assert found.rates.updates == 10
    assert found.rates.loads == 2 * 10  # 60 s hold two lifetimes of 28.7 s


def test_redis_reads_a_key_for_each_poll_and_runs_two_scripts_for_each_update() -> None:
    found = predict(LOAD, COSTS)
    assert (found.rates.gets, found.rates.scripts) == (3000, 200)
    assert (found.rates.changes, found.rates.reports, found.rates.refills) == (0, 0, 0)
    assert found.redis_cores == pytest.approx(3000 * 10e-6 + 200 * 20e-6)
    assert found.rates.redis_bytes == pytest.approx(3000 * (150 + 500) + 200 * 400 + 100 * 500)


def test_tiered_reads_redis_after_a_change_only_and_every_process_is_told() -> None:
    found = predict(replace(LOAD, backend="tiered", processes=2, nodes=2), COSTS)
    # 30 polls of a job between two updates reach nearly each of 4 processes
    assert found.rates.refills == pytest.approx(100 * 4 * (1 - 0.75**30))
    assert found.rates.gets == found.rates.refills
    assert found.rates.changes == 2 * 100 + 4 * 4  # fences and publishes, and heartbeats
    assert found.rates.reports == 4 * found.rates.changes
    shared = 3000 * 50e-6 + found.rates.refills * 100e-6 + 100 * 2e-3
    assert found.process_cores == pytest.approx(shared / 4 + 216 * 5e-6)
    assert found.redis_cores == pytest.approx(
        found.rates.gets * 10e-6 + 216 * 20e-6 + 4 * 216 * 1e-6
    )


def test_primaries_of_a_cluster_share_the_work_and_each_has_heartbeats() -> None:
    tiered = replace(LOAD, backend="tiered", processes=2)
    one, three = predict(tiered, COSTS), predict(replace(tiered, redis=3), COSTS)
    assert three.rates.changes - one.rates.changes == 2 * 4 * 2
    beats = 2 * 2 * 4 * (20e-6 + 2 * 1e-6)
    assert 3 * three.redis_cores == pytest.approx(one.redis_cores + beats)
    assert three.process_cores > one.process_cores


def test_cells_divide_the_load() -> None:
    whole = predict(LOAD, COSTS)
    cell = predict(replace(LOAD, pollers=90_000, jobs=6000, cells=10), COSTS)
    assert cell == whole


def test_pollers_with_etags_receive_a_body_for_each_update_only() -> None:
    found = predict(replace(LOAD, etags=0.5), COSTS)
    # an update every 6 s, a poll every 3 s: every second poll brings something new
    assert found.rates.not_modified == 3000 * 0.5 * 0.5
    assert found.rates.response_bytes == pytest.approx(750 * 200 + 2250 * (300 + 500))
    assert predict(replace(LOAD, updates=60), COSTS).rates.not_modified == 0


def test_a_poll_with_an_etag_costs_more() -> None:
    cost = replace(SERVICE, conditional=10e-6)
    costs = replace(COSTS, services=dict.fromkeys(BACKENDS, cost))
    some = predict(replace(LOAD, etags=0.5), costs).process_cores
    assert some == pytest.approx(predict(LOAD, COSTS).process_cores + 1500 * 10e-6)


def test_memory_counts_connections_and_entries_of_running_and_finished_jobs() -> None:
    found = predict(LOAD, COSTS)
    assert found.connections == 9000
    assert found.process_bytes == 100e6 + 9000 * 10e3  # redis holds no entries in the process
    entries = 600 + 600 / 120 * (3600 + 300)
    assert found.redis_memory == pytest.approx(1e6 + entries * (200 + 500))
    local = predict(replace(LOAD, backend="memory"), COSTS)
    assert local.process_bytes == pytest.approx(found.process_bytes + entries * (500 + 500))
    assert (local.entries, found.entries) == (600, 0)
    tiered = predict(replace(LOAD, backend="tiered", processes=2, pollers=1, interval=120.0), COSTS)
    assert tiered.entries == pytest.approx(600 / 600 / 2)  # one poll in the life of 600 jobs


def test_a_busy_component_pays_for_fewer_wakeups() -> None:
    assert busy(0.0, 0.0, 10e-6) == 0
    assert busy(0.0, 1000, 1e-3) == 0.5  # half of the events find it busy
    assert busy(0.5, 1000, 1e-3) == 0.75
    assert busy(1.0, 1000, 1e-3) == 1.0
    assert busy(1.5, 1000, 1e-3) == 1.5


def test_events_are_spread_over_places() -> None:
    assert spread(30, 1) == 1
    assert spread(0, 4) == 0
    assert spread(0.5, 4) == 0.5
    assert spread(2, 2) == 1.5
    assert spread(1000, 4) == pytest.approx(4)


# --- laws ---

loads = st.builds(
    Workload,
    pollers=st.integers(1, 10**7),
    interval=st.floats(0.5, 60),
    jobs=st.integers(1, 10**6),
    updates=st.floats(0, 1000),
    seconds=st.floats(1, 10_000),
    body=st.integers(1, 100_000),
    etags=st.floats(0, 1),
    backend=st.sampled_from(BACKENDS),
)
real = replace(
    COSTS,
    services=dict.fromkeys(BACKENDS, replace(SERVICE, idle=0.01, wakeup=30e-6)),
    redis=replace(REDIS, idle=0.001, wakeup=20e-6),
)


@given(loads, st.integers(1, 10**7))
def test_more_pollers_never_need_less(load: Workload, more: int) -> None:
    few, many = predict(load, real), predict(replace(load, pollers=load.pollers + more), real)
    larger = numbers(many)
    # A busier process reads the keys of several polls by one command, so Redis may even do less.
    larger["redis_cores"] = math.inf
    for name, value in numbers(few).items():
        assert larger[name] >= value * (1 - 1e-9), name


def numbers(found: Prediction) -> dict[str, float]:
    return {**asdict(found), "rates": 0.0, **asdict(found.rates)}


@given(loads.filter(lambda load: load.backend in {"null", "redis"}), st.integers(1, 100))
def test_twice_the_processes_halve_the_processor_time_of_each(load: Workload, count: int) -> None:
    """Apart from what each process does by itself, and on tiered from the feed."""
    once = predict(replace(load, processes=count), COSTS)
    twice = predict(replace(load, processes=2 * count), COSTS)
    assert twice.process_cores == pytest.approx(once.process_cores / 2)
    assert twice.rates == once.rates


@given(loads, st.integers(1, 100))
def test_null_needs_a_query_for_each_poll(load: Workload, count: int) -> None:
    found = predict(replace(load, backend="null", processes=count), real)
    assert found.rates.loads == found.rates.polls


@given(loads)
def test_a_cache_never_loads_more_than_null(load: Workload) -> None:
    found = predict(load, real)
    assert found.rates.loads <= found.rates.polls * (1 + 1e-9)


@given(loads, st.integers(1, 50))
def test_more_processes_of_tiered_are_told_more(load: Workload, count: int) -> None:
    few = predict(replace(load, backend="tiered", processes=count), real)
    many = predict(replace(load, backend="tiered", processes=count + 1), real)
    assert many.rates.reports > few.rates.reports


# --- bottlenecks ---


def first(load: Workload, hardware: Hardware) -> str:
    return resources(load, predict(load, COSTS), hardware)[0].name


@pytest.mark.parametrize(
    ("load", "hardware", "name"),
    [
        ({"updates": 0}, {}, "connections of a service process"),
        ({"processes": 8}, {"cores": 1}, "processors of a node"),
        ({"backend": "memory"}, {"entries": 600, "limit": 1.0}, "entries of a service process"),
        ({}, {"connections": 10**6}, "processor of a service process"),
        ({"backend": "null", "processes": 8}, {"database_cores": 1}, "processors of the database"),
        ({"processes": 99}, {"memory": 0.1, "cores": 99}, "memory of a node"),
        ({"processes": 8}, {"redis_memory": 0.001}, "memory of a Redis primary"),
        ({"processes": 8, "body": 90_000, "etags": 0.0, "nodes": 9}, {}, None),
        ({"processes": 8, "nodes": 99, "pollers": 400_000}, {}, "processor of a Redis primary"),
        ({"etags": 0.0, "body": 10**6, "processes": 9, "backend": "null"}, {}, "network of a node"),
    ],
)
def test_the_first_bottleneck_is_named(
    load: dict[str, object], hardware: dict[str, float], name: str | None
) -> None:
    workload = replace(LOAD, **load)  # type: ignore[arg-type]
    expected = "network of a Redis primary" if name is None else name
    assert first(workload, Hardware(**hardware)) == expected  # type: ignore[arg-type]


def test_the_margin_is_what_may_be_used_by_what_is() -> None:
    load = replace(LOAD, processes=2)  # 175 ms of 1 s in each process, 4,500 connections
    head = resources(load, predict(load, COSTS), Hardware(connections=5000))[0]
    assert head.used == 0.9
    assert margin(head, 0.7) == pytest.approx(0.7 / 0.9)
    assert margin(head, 1.0) == pytest.approx(1 / 0.9)


# --- the command ---


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.json"
    COSTS.save(path)
    return path


def test_a_calibration_is_saved_and_read(calibration: Path) -> None:
    assert coefficients.load(calibration) == COSTS


def test_the_command_names_the_first_bottleneck(command: Command, calibration: Path) -> None:
    options = "--pollers 9000 --jobs 600 --backend redis --calibration"
    status, said, _ = command.run(main, "capacity", *options.split(), str(calibration))
    assert status == 0
    assert "| polls | 3,000 |" in said
    assert "| keys read from Redis | 3,000 |" in said
    assert "| connections of a service process | 9,000 connections | 11,000 conn" in said
    assert "First bottleneck: connections of a service process, 81.8 % used" in said
    assert "DOES NOT FIT: 1.17 times as much is needed." in said
    assert "machine none, commit none" in said
    _, said, _ = command.run(
        main, "capacity", *options.split(), str(calibration), "--processes", "2"
    )
    assert "connections of a service process, 40.9 % used; 70 % may be used: margin 1.71." in said


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--pollers 0", "argument --pollers: is 0; it must be at least 1"),
        ("--interval 0", "argument --interval: is 0; it must be above 0"),
        ("--interval nan", "argument --interval: is nan; a finite number is needed"),
        ("--updates -1", "argument --updates: is -1; it must be at least 0"),
        ("--etags 2", "argument --etags: is 2; it must be from 0 to 1"),
        ("--backend memory --processes 2", "coherent for 1 process and 1 node only"),
        ("--backend disk", "choose from"),
        ("--jobs many", "argument --jobs: invalid int value: 'many'"),
        ("--redis-memory 0", "argument --redis-memory: is 0; it must be above 0"),
        ("--limit 1.5", "argument --limit: is 1.5; it must be at most 1"),
        ("--calibration nowhere.json", "`python -m loadtests capacity calibrate` writes"),
    ],
)
def test_a_bad_argument_is_refused_with_what_is_valid(
    options: str, error: str, calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [] if "--calibration" in options else ["--calibration", str(calibration)]
    with pytest.raises(SystemExit) as ended:
        main(["capacity", *options.split(), *known])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda document: document.pop("sizes"), "it has no 'sizes'"),
        (lambda document: document["database"].update(select=-1), "select is -1.0"),
        (lambda document: document["services"]["null"].update(poll="x"), "could not convert"),
        (lambda document: document.update(origin=[]), "is no calibration"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(
    change: object, error: str, calibration: Path
) -> None:
    document = json.loads(calibration.read_text())
    change(document)  # type: ignore[operator]
    calibration.write_text(json.dumps(document))
    with pytest.raises(coefficients.InvalidCalibration, match=error):
        coefficients.load(calibration)


def test_a_workload_names_its_wrong_field() -> None:
    with pytest.raises(InvalidWorkload, match="cells is 0; it must be at least 1") as caught:
        replace(LOAD, cells=0)
    assert caught.value.name == "cells"
