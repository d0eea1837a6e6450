"""The types of the public API, as a user's `mypy --strict` sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jobcache

ROOT = Path(__file__).parents[2]
USAGE = Path(__file__).with_name("typed_usage.py")


@pytest.mark.long  # `make check` does the same for each change
def test_what_users_write_has_the_documented_types() -> None:
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


@pytest.mark.long
def test_pyright_agrees(tmp_path: Path) -> None:
    # basedpyright is pyright in a wheel that brings all it needs: pyright itself downloads a part.
    settings = {
        "include": [str(USAGE)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    result = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--project", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 errors" in result.stdout


def test_the_public_names_are_few_and_all_there() -> None:
    assert len(jobcache.__all__) <= 18
    assert sorted(jobcache.__all__) == jobcache.__all__
    for name in jobcache.__all__:
        assert hasattr(jobcache, name)
