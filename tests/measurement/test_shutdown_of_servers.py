"""Servers that hold long polls and event streams end by themselves, with complete responses."""

from __future__ import annotations

import asyncio
import sys

import pytest

from benchmarks.shutdown import __main__ as command
from benchmarks.shutdown.servers import SERVERS, Server
from benchmarks.shutdown.trial import Trial, take

POLLS, STREAMS = 10, 2
PATIENCE = 55.0  # seconds; each server's own limit on its end is longer, and so are held requests


async def test_each_server_ends_in_order_with_requests_held(subtests: pytest.Subtests) -> None:
    async with asyncio.TaskGroup() as group:  # they wait more than they work
        tasks = {
            server: group.create_task(
                take(server, polls=POLLS, streams=STREAMS, patience=PATIENCE, patient=True)
            )
            for server in SERVERS
        }
    trials = {server.name: {"both": [task.result()]} for server, task in tasks.items()}
    sys.stdout.write("\n".join(command.table(trials, PATIENCE)) + "\n")
    for server, task in tasks.items():
        with subtests.test(server.name):
            check(server, task.result())


def check(server: Server, trial: Trial) -> None:
    assert trial.seconds is not None, f"it did not end by itself: {trial.log}"
    assert trial.complete == trial.held == POLLS + STREAMS
    assert "Traceback" not in trial.log
    if server.name not in {"granian", "hypercorn"}:  # they do not say so, or not always
        assert trial.closing == POLLS, "a client would send its next request, and lose it"


def trial(seconds: float | None, complete: int = 3) -> Trial:
    return Trial(seconds, complete, closing=0, held=3, log="")


def test_the_command_finds_what_is_wrong() -> None:
    idle = [trial(0.5), trial(0.1), trial(0.2)]
    assert command.holds({"idle": idle, "both": [trial(0.6), trial(9.0), trial(0.5)]})
    assert not command.holds({"idle": idle, "both": [trial(0.1), trial(0.71), trial(0.72)]})
    assert not command.holds({"idle": idle, "both": [trial(0.1), trial(0.1, 2), trial(0.1)]})
    assert not command.holds({"idle": idle, "both": [trial(None)]})


def test_the_table_shows_what_was_cut_off() -> None:
    trials = {"granian": {"idle": [trial(0.125)], "both": [trial(None, 1), trial(None)]}}
    assert command.table(trials, 8)[2] == "| granian | 0.12 | >8, 2 of 6 cut off |"
