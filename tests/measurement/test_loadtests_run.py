"""The load test's command, with few users and short jobs."""

from __future__ import annotations

import json
from pathlib import Path

from loadtests.__main__ import main
from tests.measurement.in_process import Command


def test_the_command_shows_backends_side_by_side(command: Command, tmp_path: Path) -> None:
    options = "--backends null,memory --database sqlite --users 3 --seconds 1.5 --interval 0.15"
    status, said, complained = command.run(
        main, *options.split(), "--updates=6", "--results", str(tmp_path)
    )
    assert status == 0, said + complained
    assert "| 3 | null | plain | " in said
    assert "| 3 | memory | plain | " in said
    (markdown,) = tmp_path.glob("*.md")
    assert markdown.read_text() == said
    (document,) = tmp_path.glob("*.json")
    null, memory = json.loads(document.read_text())["runs"]
    for run in (null, memory):
        assert run["jobs"] == run["completed"] == 3
        assert run["reads"] == run["polls"] >= 3 * 9  # 1.5 s at 0.15 s, less the first
        assert run["failures"] == {}
        assert run["changes"] > run["jobs"] * 6
        assert 0 < run["poll_ms"]["p50"] <= run["poll_ms"]["max"]
    assert null["hits"] == 0
    assert 0 < null["selects_by_polls"] <= null["reads"]
    assert null["first_polls_missed"] == null["first_polls"] > 0
    assert memory["hits"] / memory["reads"] > 0.8
    assert memory["selects_by_polls"] <= memory["bypasses"]
    assert memory["first_polls"] > 0
    assert memory["first_polls_missed"] == 0
