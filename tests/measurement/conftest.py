"""Fixtures of the tests of benchmarks and load tests."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks import asgi, service
from loadtests.freshness import cluster
from tests.measurement.in_process import Command, ForkedProcess


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    if sys.platform == "linux" and "COVERAGE_PROCESS_CONFIG" not in os.environ:
        for module in (asgi, service, cluster):
            monkeypatch.setattr(module, "Process", ForkedProcess)
    return Command(capsys)
