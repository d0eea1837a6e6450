"""Fixtures of the tests of benchmarks and load tests."""

from __future__ import annotations

import os

import pytest

from benchmarks import asgi, service
from loadtests.freshness import cluster
from loadtests.report import files
from tests.app.first_version import first_version
from tests.app.forked_process import ForkedProcess
from tests.app.forking import can_fork
from tests.measurement.in_process import Command

__all__ = ["command", "first_version", "forked", "undrawn"]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services are forked where possible: they start without importing everything again."""
    if can_fork(os.environ):
        for module in (asgi, service, cluster):
            monkeypatch.setattr(module, "Process", ForkedProcess)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no plots: to draw them takes longer than a short run."""
    monkeypatch.setattr(files, "draw", lambda _: {})


@pytest.fixture
def command(forked: None, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)
