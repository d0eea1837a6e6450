"""Runs a command of the measurements in this process, with services that are forked.

A command imports most of what the tests have imported already, and each service that it starts
imports everything once more: far more work than the short runs of the tests do themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest


class Command:
    """Runs `main` functions of modules, and returns their output."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def run(self, main: Callable[[Sequence[str]], int], *arguments: str) -> tuple[int, str, str]:
        """Return the exit status, stdout and stderr."""
        self._capture.readouterr()
        status = main(arguments)
        return (status, *self._capture.readouterr())
