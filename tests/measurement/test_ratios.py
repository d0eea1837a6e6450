"""The command that turns benchmark results into a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ratios

BACKENDS = {"null": 1000.0, "memory": 6000.0, "redis": 2600.0}


def polls(server: str, rates: list[float], workload: str = "a job each") -> dict[str, Any]:
    return {
        "server": server,
        "database": "none" if server == "constant bytes" else "postgres",
        "workload": workload,
        "polls_per_second": rates,
        "generator_busy": [0.2] * len(rates),
    }


def results(**rates: list[float]) -> dict[str, Any]:
    steady = {name: [rate] * 3 for name, rate in BACKENDS.items()} | rates
    series = [polls("constant bytes", [25000.0] * 3)]
    series += [polls(name, values) for name, values in steady.items()]
    series += [polls(name, [3000.0] * 3, "one job") for name in steady]
    operation = {"operation": "get, hit", "backend": "memory", "operations_per_round": 500}
    return {
        "surroundings": {"machine": "a fast one", "commit": "abc"},
        "benchmarks": [
            {"extra_info": operation, "stats": {"median": 0.0006}},
            {"extra_info": {"polls": series}, "stats": {"median": 11.0}},
        ],
    }


def run(place: Path, document: object) -> int:
    path = place / "results.json"
    path.write_text(json.dumps(document))
    return ratios.main([str(path)])


def test_kept_promises_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, results()) == 0
    said = capsys.readouterr().out
    assert "| get, hit | 1.2 |" in said
    assert (
        "| a job each | memory | PostgreSQL | 6000 (6000 to 6000) | 6.00 (6.00 to 6.00) |" in said
    )
    assert "25000 (25000 to 25000) answers/s" in said
    assert "machine a fast one, commit abc" in said
    assert "FAILED" not in said


@pytest.mark.parametrize(("backend", "rate"), [("memory", 2900.0), ("redis", 1900.0)])
def test_a_broken_promise_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, rate: float
) -> None:
    assert run(tmp_path, results(**{backend: [rate] * 3})) == 1
    assert f"FAILED: {backend} is {rate / 1000:.2f} x null" in capsys.readouterr().out


def test_the_ratio_is_taken_turn_by_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that slows down for everybody changes nothing."""
    slowing = results(null=[1000, 500, 100], memory=[4000, 2000, 400], redis=[2500, 1250, 250])
    assert run(tmp_path, slowing) == 0
    assert "4.00 (4.00 to 4.00)" in capsys.readouterr().out


def test_one_bad_turn_decides_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, results(memory=[6000, 100, 6000])) == 0


@pytest.mark.parametrize("document", [[], {"benchmarks": []}, {"benchmarks": [{"extra_info": {}}]}])
def test_results_that_do_not_tell_are_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], document: object
) -> None:
    assert run(tmp_path, document) == 2
    assert "results.json: " in capsys.readouterr().err


def test_a_missing_backend_is_no_success(tmp_path: Path) -> None:
    document = results()
    series = document["benchmarks"][1]["extra_info"]["polls"]
    document["benchmarks"][1]["extra_info"]["polls"] = [
        one for one in series if one["server"] != "redis"
    ]
    assert run(tmp_path, document) == 2


def test_a_missing_file_is_no_success(tmp_path: Path) -> None:
    assert ratios.main([str(tmp_path / "nowhere.json")]) == 2
