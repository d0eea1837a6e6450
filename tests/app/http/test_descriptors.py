"""The limit on open files is raised as far as that is needed and allowed."""

from __future__ import annotations

import logging
import os
import resource
from contextlib import ExitStack

import pytest

from app.http.descriptors import SpareDescriptor, affordable_connections, allow_connections

INFINITE = resource.RLIM_INFINITY


class Limits:
    """Stands in for the limits of the process, which its other tests need."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.now = soft, hard
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.now)
        monkeypatch.setattr(resource, "setrlimit", self.set)

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        self.now = limits


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (1024, 100_000, 6000),
        (1024, INFINITE, 6000),
        (1024, 4096, 4096),
        (8000, 100_000, 8000),
        (INFINITE, INFINITE, INFINITE),
    ],
)
def test_the_limit_is_raised_if_needed_and_allowed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    raised: int,
) -> None:
    limits = Limits(monkeypatch, soft, hard)
    with caplog.at_level(logging.WARNING, "app"):
        allow_connections(5000)
    assert limits.now == (raised, hard)
    said = ["only 4096 files may be open: 3968 connections are accepted, not 5000"]
    assert [line.partition(" (")[0] for line in caplog.messages] == (said if raised == 4096 else [])


@pytest.mark.parametrize(
    ("soft", "accepted"), [(INFINITE, 5000), (8000, 5000), (1024, 896), (64, 32), (1, 1)]
)
def test_some_descriptors_stay_free(
    monkeypatch: pytest.MonkeyPatch, soft: int, accepted: int
) -> None:
    Limits(monkeypatch, soft, INFINITE)
    assert affordable_connections(5000) == accepted


def test_a_spare_descriptor_that_another_thread_has_taken_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError("too many open files")

    spare = SpareDescriptor()
    with ExitStack() as stack:
        stack.callback(spare.close)
        with monkeypatch.context() as full, spare.given_up():
            full.setattr(os, "open", refuse)
        with spare.given_up():
            assert spare._held is None
        assert spare._held is not None
    assert spare._held is None
