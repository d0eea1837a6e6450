"""Servers that only a package of the system provides: CI must have them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from app.devservers import ServerMissing


def require_program(find: Callable[[], object]) -> None:
    """Skip the test if the program that `find` looks for is missing; in CI, fail it."""
    try:
        find()
    except ServerMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
