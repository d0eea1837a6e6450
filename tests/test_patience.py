"""Tests wait longer for a store than users do, whatever the scope of their fixtures."""

from __future__ import annotations

import pytest

from jobcache.resilience.guarded_backend import GuardedBackend


def _deadline() -> float:
    deadline: float = GuardedBackend.__init__.__kwdefaults__["deadline"]  # type: ignore[index, misc]
    return deadline


@pytest.fixture(scope="module")
def of_the_module() -> float:
    return _deadline()


def test_what_is_made_for_a_module_is_patient(of_the_module: float) -> None:
    assert of_the_module == _deadline() == 30


@pytest.mark.usual_limits
def test_tests_of_the_usual_limits_have_them() -> None:
    assert _deadline() == 0.1
