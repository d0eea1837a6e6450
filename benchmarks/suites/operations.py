"""The cost of one operation on every backend, measured by pytest-benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from benchmarks.results import NoResults, Section, Series

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = Path(__file__).parents[2]
_KEPT = 20  # samples of each benchmark, evenly from all of its rounds
_PATIENCE = 600.0  # seconds


def operations(place: Path, *, seconds: float, rounds: int) -> Section:
    """The section.

    Args:
        place: a directory for what pytest-benchmark writes.
        seconds: of each benchmark, about.
        rounds: of each, at the least.

    Raises:
        NoResults: the benchmarks did not run.
    """
    file = place / "operations.json"
    command = [
        *(sys.executable, "-m", "pytest", "benchmarks/test_operations.py", "-q"),
        *("-p", "no:cacheprovider", "-p", "no:randomly", "--benchmark-only"),
        *(f"--benchmark-max-time={seconds}", f"--benchmark-min-rounds={rounds}"),
        f"--benchmark-json={file}",
    ]
    # A test that runs this may itself be one of a parallel run, in which nothing is measured.
    environment = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(  # noqa: S603 - our own tests
        command,
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    if done.returncode:
        raise NoResults(f"the benchmarks of operations failed:\n{done.stdout[-2000:]}")
    return section(json.loads(file.read_text("utf-8"))["benchmarks"])


def section(benchmarks: Sequence[dict[str, Any]]) -> Section:
    """The section that pytest-benchmark's results come to."""
    series = []
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        data = [1e6 * one for one in benchmark["stats"]["data"]]
        samples = data if len(data) <= _KEPT else quantiles(data, n=_KEPT + 1, method="inclusive")
        name = f"{info['operation']}, {info['backend']}"
        series.append(Series(name, "ours", "the backend as the service wires it", samples))
    series.sort(key=lambda one: one.subject)
    return Section(
        "operations",
        "One operation",
        "operations one after the other in one coroutine, by pytest-benchmark. On memcached and "
        "redis they are round trips. The backends did not take turns",
        "µs",
        more_is_better=False,
        series=series,
    )
