"""The service of the first version, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.devservers import free_port
from loadtests.freshness.older_version import NoHistory, OlderVersion
from tests.app.process import Process, clean_environment, until_stopped


@pytest.fixture(scope="session")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> OlderVersion:
    """The code of the first version."""
    try:
        return OlderVersion(tmp_path_factory.mktemp("first"))
    except NoHistory as reason:
        pytest.fail(str(reason)) if os.environ.get("CI") else pytest.skip(str(reason))


@contextmanager
def serving_first(version: OlderVersion, var: Path, **environment: str) -> Iterator[Process]:
    """Run `app serve` of the first version."""
    port, log = free_port(), var / "log.txt"
    variables = {
        "JOBCACHE_PORT": str(port),
        "JOBCACHE_VAR_DIR": str(var),
        "PYTHONPATH": str(version.folder),
        **environment,
    }
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            cwd=version.folder,
            env=clean_environment() | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    with until_stopped(Process(child, port, log)) as process:
        yield process
