"""How many Python functions of the project one hit calls: each costs every poll some time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from benchmarks.suites.wire import REQUEST, wired

ROOT = Path(__file__).parents[3]
OURS = (f"{ROOT / 'app'}/", f"{ROOT / 'jobcache'}/")


def calls_within(work: Callable[[], object]) -> list[str]:
    """Return the names of the project's own functions that are called."""
    names: list[str] = []

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            names.append(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return names


async def test_a_hit_of_memory_calls_few_functions() -> None:
    async with wired() as connect:
        protocol, sink = connect()
        for _ in range(3):
            protocol.data_received(REQUEST)
        names = calls_within(lambda: protocol.data_received(REQUEST))
        assert sink.answers == 4
        protocol.connection_lost(None)
    print(f"{len(names)} calls of one HTTP hit on memory:", *names)  # noqa: T201 - for the reader
    assert 15 < len(names) <= 25
