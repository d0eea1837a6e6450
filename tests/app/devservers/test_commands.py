"""Commands of the development servers: their output, and why they fail."""

from __future__ import annotations

import sys

import pytest

from app.devservers.process import ServerFailed, run


def test_a_command_gives_its_output_or_the_reason_of_its_failure() -> None:
    assert run([sys.executable, "-c", "print('done')"]) == "done"
    with pytest.raises(ServerFailed, match="ended with status 3:\nno room"):
        run([sys.executable, "-c", "print('no room'); raise SystemExit(3)"])
    with pytest.raises(ServerFailed, match="/no/such/program cannot be run"):
        run(["/no/such/program"])
