"""Polling endpoints keep to their OpenAPI document for requests that Schemathesis generates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.devservers import free_port
from benchmarks.asgi import Uvicorn

ROOT = Path(__file__).parents[3]
CONFIGURATION = """
suppress-health-check = ["all"]
request-timeout = 30
warnings = false

[cache]
enabled = false

[generation]
database = "none"
max-examples = {examples}

[dictionaries.exports]
values = [1, 2, 3]

[parameters]
"path.export_id" = {{ dictionary = "exports", probability = 0.6 }}
"""


def test_schemathesis_finds_no_answer_outside_the_document(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, *, long: bool
) -> None:
    """To replay a failure, pass `--randomly-seed=`."""
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.format(examples=50 if long else 5))
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    seed = request.config.getoption("randomly_seed", default=1)
    port = free_port()
    application = "tests.jobcache.http.contract_application:app"
    command = [sys.executable, "-m", "uvicorn", application, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Uvicorn(command, port, environment) as server:
        server.wait_until_it_listens()
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
                *("run", f"http://127.0.0.1:{port}/openapi.json", "--no-color"),
                *("--seed", str(seed), "--phases", "examples,fuzzing", "--mode", "positive"),
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Tested: 3" in run.stdout
