"""`pytest benchmarks` works as users of pytest-benchmark expect it to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# The clock moves on by the same step in each operation, and by very little when it is read.
WITH_A_CLOCK = """
import asyncio
import pytest
from benchmarks.one_operation import OneOperation

class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-9
        return self.now

clock = Clock()

@pytest.mark.benchmark(timer=clock, min_time=0.01, max_time=0.1)
def test_clock(benchmark):
    tasks = []

    async def operation():
        tasks.append(asyncio.current_task().get_name())
        clock.now += 0.002
        await asyncio.sleep(0)
        return "done"

    with asyncio.Runner() as runner:
        assert OneOperation(benchmark, runner)("clock", operation) == "done"
    # Starting a task, or an event loop, is no part of an operation.
    assert 0 < 2 * len(set(tasks)) < len(tasks)
"""

Run = tuple[int, str]


class Commands:
    """Runs pytest on benchmarks of `place`, with the storage of pytest-benchmark there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def run(self, *arguments: str) -> Run:
        command = [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly"),
            *("--benchmark-storage", str(self.place / "saved"), "--benchmark-max-time=0.001"),
            *("--benchmark-min-rounds=2", "--benchmark-group-by=group", *arguments),
        ]
        # This test may itself be one of a parallel run, in which nothing is measured.
        environment = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        return done.returncode, done.stdout + done.stderr

    def saved(self) -> Path:
        (file,) = (self.place / "saved").rglob("0001_*.json")
        return file

    def tamper(self, change: dict[str, Any], mean: float) -> None:
        """Change the saved machine, and the mean of each benchmark."""
        file = self.saved()
        document = json.loads(file.read_text())
        document["machine_info"] |= change
        for benchmark in document["benchmarks"]:
            benchmark["stats"]["mean"] = mean
        file.write_text(json.dumps(document))


OPERATIONS = "benchmarks/test_operations.py"
MISS = ("-k", "test_get_miss and null", OPERATIONS)


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_figures_are_of_one_operation_and_are_kept(commands: Commands) -> None:
    file = commands.place / "with_a_clock.py"
    file.write_text(WITH_A_CLOCK)
    report = commands.place / "results" / "found.json"
    status, said = commands.run(
        *(str(file), OPERATIONS, "-k", "null or clock"),
        *("--benchmark-save=first", f"--benchmark-json={report}"),
    )
    assert status == 0, said
    found = {one["name"]: one for one in json.loads(report.read_text())["benchmarks"]}
    measured = found.pop("test_clock")["stats"]
    assert measured["iterations"] > 1
    for figure in ("min", "max", "mean"):
        assert measured[figure] == pytest.approx(0.002, rel=0.01)
    for one in found.values():
        assert one["extra_info"]["backend"] == "null"
        assert one["group"] == one["extra_info"]["operation"]
        assert f"benchmark '{one['group']}': 1 tests" in said
        assert one["stats"]["mean"] > 0
    assert json.loads(commands.saved().read_text())["surroundings"]["commit"]


def test_a_comparison_judges_and_another_machine_is_a_warning(commands: Commands) -> None:
    status, said = commands.run(*MISS, "--benchmark-compare", "--benchmark-save=first")
    assert status == 0, said
    assert "Can't compare" in said  # with nothing

    commands.tamper({"node": "another machine"}, mean=3600.0)
    plot = commands.place / "plots" / "found"
    status, said = commands.run(
        *(*MISS, "--benchmark-compare=0001", "--benchmark-compare-fail=mean:5%"),
        f"--benchmark-histogram={plot}",
    )
    assert status == 0, said
    assert "machine_info is different" in said
    assert "another machine" in said
    assert "(0001_first)" in said
    (drawn,) = plot.parent.glob("*.svg")
    assert "<svg" in drawn.read_text()

    commands.tamper({}, mean=1e-12)
    status, said = commands.run(
        *MISS, "--benchmark-compare=0001", "--benchmark-compare-fail=mean:5%"
    )
    assert status != 0
    assert "Performance has regressed" in said


@pytest.mark.parametrize("backend", ["memory"])
def test_a_poll_of_a_real_service_is_an_operation(commands: Commands, backend: str) -> None:
    report = commands.place / "found.json"
    status, said = commands.run(
        "benchmarks/test_polls.py", "-k", backend, f"--benchmark-json={report}"
    )
    assert status == 0, said
    found = json.loads(report.read_text())["benchmarks"]
    assert {one["group"] for one in found} == {"HTTP poll", "HTTP poll, 304"}
    assert {one["extra_info"]["backend"] for one in found} == {backend}
