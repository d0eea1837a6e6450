"""The types of the public API, as a user's `mypy --strict` sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jobcache

ROOT = Path(__file__).parents[2]
USAGE = Path(__file__).with_name("typed_usage.py")


def test_what_users_write_has_the_documented_types() -> None:
    # With the project's settings: so the cache of `make check` serves this run, too.
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(USAGE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no issues found in 1 source file" in result.stdout


def test_the_public_names_are_few_and_all_there() -> None:
    assert len(jobcache.__all__) <= 18
    assert sorted(jobcache.__all__) == jobcache.__all__
    for name in jobcache.__all__:
        assert hasattr(jobcache, name)
