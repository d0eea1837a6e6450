"""The calibration finds the costs behind measured loads, and its verdict can fail."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.capacity import calibrate, calibration, fit, validation
from loadtests.capacity.calibration import Measured, fitted_points, held_back_points
from loadtests.capacity.laboratory import Laboratory, Point
from loadtests.capacity.model import busy, predict
from loadtests.capacity.observation import Observation
from loadtests.capacity.simulation import Scene, simulate
from loadtests.capacity.workload import BACKENDS, Workload
from tests.measurement.capacity_costs import COSTS, REDIS, SERVICE

COST = replace(SERVICE, idle=0.01, wakeup=30e-6, conditional=10e-6)
NONE = Observation(
    name="a load",
    backend="tiered",
    processes=1,
    polls=0.0,
    conditional=0.0,
    loads=0.0,
    refills=0.0,
    updates=0.0,
    changes=0.0,
    gets=0.0,
    commands=0.0,
    scripts=0.0,
    redis_bytes=0.0,
    process_cores=0.0,
    waiting=0.0,
    redis_cores=0.0,
    database_cores=0.0,
    failures=0.0,
    foreign=0.0,
)


def seen(**rates: float) -> Observation:
    """Return what would be measured if the costs were exactly these."""
    each = replace(NONE, **rates)  # type: ignore[arg-type]
    work = (
        COST.idle
        + each.polls * COST.poll
        + each.conditional * COST.conditional
        + each.loads * COST.load
        + each.refills * COST.refill
        + each.updates * COST.update
        + each.changes * COST.report
    )
    on_redis = each.gets * REDIS.get + each.scripts * REDIS.script + each.changes * REDIS.report
    return replace(
        each,
        process_cores=busy(work, each.polls + each.changes, COST.wakeup),
        redis_cores=on_redis,
        database_cores=each.loads * 100e-6 + each.updates * 400e-6,
    )


LOADS = [
    seen(polls=200, gets=200),
    seen(polls=1000, gets=900),
    seen(polls=9000, gets=9000),
    seen(polls=1000, conditional=1000),
    seen(polls=200, updates=30, changes=60, refills=20, gets=20, scripts=60),
    seen(polls=200, updates=90, changes=180, refills=90, gets=90, scripts=180),
    seen(polls=400, loads=150, changes=300, gets=150, scripts=300),
    seen(polls=200, changes=1000),
]


def test_the_fit_finds_the_costs_of_a_service() -> None:
    found = fit.service_cost(LOADS)
    for name in ("idle", "wakeup", "poll", "conditional", "load", "refill", "update", "report"):
        assert getattr(found, name) == pytest.approx(getattr(COST, name), rel=1e-6), name


def test_known_costs_are_not_fitted() -> None:
    found = fit.service_cost(LOADS, {"update": COST.update, "load": COST.load})
    assert found.refill == pytest.approx(COST.refill)
    wrong = fit.service_cost(LOADS, {"update": 1e-3})
    assert wrong.update == 1e-3
    assert wrong.refill > COST.refill


def test_a_process_that_waited_for_a_processor_had_fewer_wakeups() -> None:
    """Not counting them as wake-ups leaves the costs as they are."""
    waiting = [
        replace(
            each,
            waiting=0.5,
            process_cores=each.process_cores
            - 0.5
            * (each.polls + each.changes)
            * COST.wakeup
            / (1 + (each.polls + each.changes) * COST.wakeup),
        )
        for each in LOADS
    ]
    found = fit.service_cost([*LOADS[:4], *waiting[4:]])
    assert found.wakeup == pytest.approx(COST.wakeup, rel=1e-6)
    assert found.update == pytest.approx(COST.update, rel=1e-6)


def test_the_fit_finds_the_costs_of_redis_and_of_the_database() -> None:
    batches = [replace(each, commands=each.gets / (1 + each.polls / 1000)) for each in LOADS]
    redis = fit.redis_cost(batches, REDIS.report)
    assert redis.get == pytest.approx(REDIS.get, rel=1e-6)
    assert redis.script == pytest.approx(REDIS.script, rel=1e-6)
    assert redis.report == REDIS.report
    database = fit.database_cost(LOADS)
    assert (database.select, database.update) == pytest.approx((100e-6, 400e-6))


def test_no_cost_is_negative() -> None:
    strange = [replace(each, process_cores=0.5 - each.updates / 1000) for each in LOADS]
    found = fit.service_cost(strange)
    assert found.update == 0
    assert all(value >= 0 for value in vars(found).values())


def test_other_loads_are_held_back_than_were_fitted() -> None:
    for backend in BACKENDS:
        fitted = {(each.polls, each.jobs, each.updates) for each in fitted_points(backend)}
        held = {(each.polls, each.jobs, each.updates) for each in held_back_points(backend)}
        assert held
        assert not fitted & held
        assert max(each.jobs for each in held_back_points(backend)) <= calibration.JOBS


# --- the verdict ---

POINT = Point(name="a load", polls=900, jobs=100, updates=40)


def measured_as_predicted(backend: str = "redis") -> Observation:
    workload = Workload(
        pollers=900_000,
        interval=1000.0,
        jobs=100,
        updates=40 / 100 * 3600,
        seconds=3600.0,
        etags=0.0,
        backend=backend,
    )
    found = predict(workload, COSTS)
    rates = found.rates
    return replace(
        NONE,
        backend=backend,
        polls=900.0,
        updates=40.0,
        loads=rates.loads,
        refills=rates.refills,
        changes=rates.changes,
        gets=rates.gets,
        scripts=rates.scripts,
        redis_bytes=rates.redis_bytes,
        process_cores=found.process_cores,
        redis_cores=max(found.redis_cores, 0.03),
        database_cores=found.database_cores,
    )


def verdict(observation: Observation, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    measured = Measured(COSTS, [], [(POINT, observation)], 500)
    status = calibrate.judge(measured)
    return status, capsys.readouterr().out


@pytest.mark.parametrize("backend", ["null", "memory", "redis", "tiered"])
def test_a_right_prediction_passes(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    observation = measured_as_predicted(backend)
    costs = predict(
        Workload(
            pollers=900_000,
            interval=1000.0,
            jobs=100,
            updates=1440,
            seconds=3600.0,
            backend=backend,
        ),
        COSTS,
    )
    status, said = verdict(replace(observation, redis_cores=costs.redis_cores), capsys)
    assert status == 0, said
    assert "the largest error is 0 %" in said


@pytest.mark.parametrize(
    ("change", "quantity"),
    [
        ({"process_cores": 0.17}, "cores of a service process | 0.125 | 0.17 | -26 % TOO LARGE"),
        ({"database_cores": 0.03}, "cores of the database"),
        ({"loads": 40.0}, "queries of polls | 0 | 40 | -100 % TOO LARGE"),
        ({"gets": 0.0}, "keys read from Redis | 900 | 0 | +inf % TOO LARGE"),
        ({"scripts": 110.0}, "scripts run by Redis"),
        ({"redis_bytes": 1e6}, "bytes of Redis"),
        ({"redis_cores": 0.05}, "cores of Redis"),
    ],
)
def test_each_prediction_can_be_wrong(
    change: dict[str, float], quantity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = verdict(replace(measured_as_predicted(), **change), capsys)  # type: ignore[arg-type]
    assert status == 1
    (line,) = [line for line in said.splitlines() if quantity in line and line.startswith("|")]
    assert line.endswith("TOO LARGE |")
    assert "predictions are wrong by more than 20 %" in said


def test_an_error_below_a_fifth_passes_and_small_values_are_not_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    observation = measured_as_predicted()
    right = predict_redis(observation)
    close = replace(observation, process_cores=observation.process_cores * 1.2, redis_cores=right)
    assert verdict(close, capsys)[0] == 0
    status, said = verdict(replace(close, loads=4.0), capsys)
    assert status == 0
    assert "queries of polls | 0 | 4 | too small to judge" in said


def predict_redis(observation: Observation) -> float:
    (found,) = [
        each.predicted
        for each in validation.compare(COSTS, POINT, observation, 500)
        if each.quantity == "cores of Redis"
    ]
    return found


def test_a_validation_that_judged_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.judge(Measured(COSTS, [], [], 500)) == 1
    assert "0 of 0 quantities judged" in capsys.readouterr().out


def test_a_quick_calibration_does_not_replace_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "RESULTS", tmp_path)
    monkeypatch.setattr(calibrate, "calibrate", lambda _: Measured(COSTS, [], [], 500))
    for options, name in (
        ([], "calibration.json"),
        (["--quick"], "calibration-quick.json"),
        (["--quick", "--write", str(tmp_path / "costs.json")], "costs.json"),
    ):
        before = set(tmp_path.iterdir())
        calibrate.main(options)
        assert set(tmp_path.iterdir()) - before >= {tmp_path / name}
        assert f"The costs are in {tmp_path / name}." in capsys.readouterr().out


def test_a_noisy_calibration_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = [replace(NONE, foreign=1.0)]
    calibrate.judge(Measured(COSTS, noisy, [], 500))
    assert "NOISY: other processes used 1.00 cores on average." in capsys.readouterr().out


# --- measuring ---


def test_a_load_is_measured_with_all_its_counts(forked: None) -> None:
    """The figures are for a quiet machine to say; the counts are exact."""
    with Laboratory(4) as laboratory, laboratory.bench("tiered", processes=2) as bench:
        bench.measure(Point(name="cold", polls=80, jobs=4, processes=2), 0.3)
        cold = [service.stats()["statistics"] for service in bench.services]
        found = bench.measure(Point(name="a load", polls=40, jobs=4, updates=8, processes=2), 1.0)
        busiest = bench.measure(Point(name="busy", polls=None, jobs=4), 0.2)
    assert found.backend == "tiered"
    assert 0 < found.polls < 45
    assert 0 < found.updates < 9
    assert found.scripts > found.updates
    assert found.changes > found.updates
    assert found.process_cores > 0
    assert found.redis_cores > 0
    assert found.database_cores > 0
    assert found.redis_bytes > 0
    assert 0 < found.commands <= found.gets
    assert math.isfinite(found.waiting)
    assert busiest.polls > 5 * found.polls
    # As in the simulation: with two processes, a job is loaded twice at most.
    workload = Workload(pollers=240, jobs=4, updates=0, backend="tiered", processes=2)
    simulated = simulate(workload, Scene(seconds=1.0), COSTS)
    assert 4 <= simulated.loads <= 2 * 4
    if not any(each["errors"] for each in cold):  # as on a machine that is too busy
        assert 4 <= sum(each["database_loads"] for each in cold) <= 2 * 4
