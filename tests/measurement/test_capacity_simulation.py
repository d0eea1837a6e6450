"""The simulation is the same for the same seed, agrees with the model, and holds stampedes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.capacity import simulation
from loadtests.capacity.events import Queue, Signal, Task, Timeline
from loadtests.capacity.model import predict
from loadtests.capacity.simulation import Counted, Scene, simulate
from loadtests.capacity.workload import BACKENDS, Workload
from tests.measurement.capacity_costs import COSTS
from tests.measurement.in_process import Command

# 300 pollers every 3 s: 100 polls/s; 50 jobs with 20 updates in 120 s: 8.3 updates/s.
LOAD = Workload(pollers=300, jobs=50, backend="redis", processes=4)
STAMPEDE = Scene(cold=True, seconds=0.6, load_seconds=0.05, connections=100)
COLD, WARM = Scene(cold=True, seconds=6.0), Scene(cold=False, seconds=60.0)


def run(scene: Scene, **changes: object) -> Counted:
    return simulate(replace(LOAD, **changes), scene, COSTS)  # type: ignore[arg-type]


def test_the_same_seed_has_the_same_outcome() -> None:
    assert run(COLD, backend="tiered") == run(COLD, backend="tiered")
    assert run(COLD, backend="tiered") != run(replace(COLD, seed=2), backend="tiered")


@pytest.mark.parametrize("backend", ["redis", "tiered"])
def test_a_warm_simulation_agrees_with_the_model(backend: str) -> None:
    found = run(WARM, backend=backend)
    rates = predict(replace(LOAD, backend=backend), COSTS).rates
    heartbeats = rates.changes - 2 * rates.updates if backend == "tiered" else 0
    assert found.polls == pytest.approx(60 * rates.polls, rel=0.02)
    assert found.updates == pytest.approx(60 * rates.updates, rel=0.02)
    assert found.scripts == pytest.approx(60 * (rates.scripts - heartbeats), rel=0.02)
    assert found.gets == pytest.approx(60 * rates.gets, rel=0.05)
    assert found.reports == pytest.approx(
        60 * 4 * (rates.changes - heartbeats) * (rates.reports > 0), rel=0.02
    )
    assert found.loads == rates.loads == 0
    assert found.failed == 0
    if backend == "tiered":
        assert found.refills == pytest.approx(60 * rates.refills, rel=0.05)


@pytest.mark.parametrize("backend", ["null", "memory"])
def test_a_warm_simulation_without_redis_agrees_with_the_model(backend: str) -> None:
    found = run(WARM, backend=backend, processes=1)
    rates = predict(replace(LOAD, backend=backend, processes=1), COSTS).rates
    # Polls at the same time share a query, and a poll during a change may need one.
    assert found.loads == pytest.approx(60 * rates.loads, rel=0.03, abs=0.005 * found.polls)
    assert found.gets == found.scripts == found.reports == found.stale == 0


@pytest.mark.parametrize(("backend", "processes"), [("redis", 20), ("tiered", 20), ("memory", 1)])
def test_leases_hold_a_stampede_back(backend: str, processes: int) -> None:
    """All pollers come at once, to processes that know nothing."""
    found = run(STAMPEDE, backend=backend, processes=processes, interval=0.05, updates=0)
    assert found.polls > 50 * processes
    assert 50 <= found.loads <= 2 * 50
    assert found.loads_of_job <= 2
    assert found.loads_of_job_and_process == 1


def test_without_leases_the_stampede_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "ATTEMPTS", dict.fromkeys(simulation.ATTEMPTS, 0))
    found = run(STAMPEDE, processes=20, interval=0.05, updates=0)
    assert found.loads_of_job > 2


def test_a_database_that_is_too_slow_fails_polls_and_is_seen() -> None:
    slow = replace(COLD, load_seconds=2.0, connections=1, patience=1.0)
    found = run(slow, updates=0)
    assert found.failed > 0
    assert found.database_wait > 0.5


def test_polls_are_never_older_than_acknowledged_where_that_is_promised() -> None:
    busy = {"updates": 2000.0, "interval": 1.0}
    for backend, processes in (("null", 4), ("memory", 1), ("redis", 4)):
        found = run(replace(COLD, seconds=2.0), backend=backend, processes=processes, **busy)
        assert found.updates > 1000
        assert found.stale == 0, backend


def test_a_cluster_divides_the_work_of_redis() -> None:
    one = simulate(replace(LOAD, interval=0.5), replace(WARM, seconds=1.0), SLOW_REDIS)
    three = simulate(replace(LOAD, interval=0.5, redis=3), replace(WARM, seconds=1.0), SLOW_REDIS)
    assert three.redis_wait < one.redis_wait / 2


def test_commands_that_are_later_than_a_process_waits_are_counted() -> None:
    load = replace(LOAD, interval=0.5)
    overloaded = replace(COSTS, redis=replace(COSTS.redis, get=0.02))
    assert simulate(load, replace(WARM, seconds=1.0), SLOW_REDIS).late == 0
    assert simulate(load, replace(WARM, seconds=1.0), overloaded).late > 100
    assert simulation.DEADLINE == 0.1


SLOW_REDIS = replace(COSTS, redis=replace(COSTS.redis, get=0.001))


def test_tasks_run_in_the_order_of_time() -> None:
    timeline, signal, seen = Timeline(), Signal(), []

    def waits() -> Task:
        seen.append("begins")
        yield 2.0
        seen.append(f"at {timeline.now:g}")
        signal.fire()

    def is_woken() -> Task:
        yield signal
        seen.append(f"woken at {timeline.now:g}")
        yield signal  # fired before: no wait
        seen.append("goes on")

    timeline.start(is_woken())
    timeline.start(waits())
    timeline.run(until=1.0)
    assert seen == ["begins"]
    timeline.run(until=3.0)
    assert seen == ["begins", "at 2", "woken at 2", "goes on"]
    assert timeline.now == 3.0


def test_a_queue_serves_in_order_and_gives_up() -> None:
    timeline = Timeline()
    queue = Queue(timeline, servers=2)
    assert [queue.add(1.0) for _ in range(4)] == [1.0, 1.0, 2.0, 2.0]
    assert queue.add(1.0, patience=1.5) is None  # its turn would come after 2 s
    assert queue.add(1.0, patience=2.5) is None  # it would be half done
    assert [queue.add(1.0) for _ in range(2)] == [3.0, 3.5]  # the other half is not done
    assert queue.longest_wait == 2.5


def test_the_command_shows_a_cold_start(command: Command, tmp_path: Path) -> None:
    COSTS.save(tmp_path / "costs.json")
    options = "--pollers 60 --jobs 20 --backend redis --processes 3 --cold --for 4"
    options += " --updates 0 --calibration"
    status, said, _ = command.run(
        main, "capacity", "simulate", *options.split(), str(tmp_path / "costs.json")
    )
    assert status == 0
    assert "60 pollers, 20 jobs, 3 processes on redis, cold, 4 s, seed 1" in said
    assert "| queries that polls caused | 20 |  |" in said
    assert "| most queries for one job | 1 |" in said
    assert "lower limit" not in said


def test_the_command_says_that_queries_after_late_commands_are_missing(
    command: Command, tmp_path: Path
) -> None:
    replace(COSTS, redis=replace(COSTS.redis, get=0.2)).save(tmp_path / "costs.json")
    options = "--pollers 60 --jobs 20 --backend redis --for 4 --calibration"
    status, said, _ = command.run(
        main, "capacity", "simulate", *options.split(), str(tmp_path / "costs.json")
    )
    assert status == 0
    assert "The queries are a lower limit" in said


def test_a_simulation_that_serves_nobody_fails(command: Command, tmp_path: Path) -> None:
    COSTS.save(tmp_path / "costs.json")
    options = "--pollers 1 --jobs 1 --interval 1000 --for 0.1 --calibration"
    status, _, _ = command.run(
        main, "capacity", "simulate", *options.split(), str(tmp_path / "costs.json")
    )
    assert status == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--for 0", "argument --for: is 0; it must be above 0"),
        ("--load-seconds -1", "argument --load-seconds: is -1; it must be above 0"),
        ("--database-connections 0", "argument --database-connections: is 0; it must be at least"),
        ("--delay -1", "argument --delay: is -1; it must be at least 0"),
        ("--seed x", "argument --seed: invalid int value: 'x'"),
        ("--pollers 0", "argument --pollers: is 0; it must be at least 1"),
    ],
)
def test_a_bad_argument_is_refused_with_what_is_valid(
    options: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["capacity", "simulate", *options.split()])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_every_backend_can_be_simulated() -> None:
    for backend in BACKENDS:
        found = run(replace(COLD, seconds=3.5), backend=backend, processes=1)
        assert found.polls > 300, backend
