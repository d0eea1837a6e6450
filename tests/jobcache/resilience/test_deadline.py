"""Deadlines: met or missed, once; and no timer outlives who waits."""

from __future__ import annotations

import asyncio

from jobcache.resilience.deadline import Deadline, ends_within


def timers() -> list[asyncio.TimerHandle]:
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [each for each in scheduled if not each.cancelled() and "Deadline" in repr(each)]


async def test_what_is_met_cannot_be_missed_any_more() -> None:
    deadline = Deadline(60, lambda: None)
    assert len(timers()) == 1
    assert deadline.met()
    assert not deadline.met()
    assert timers() == []


async def test_what_is_missed_is_told_once_and_not_met_any_more() -> None:
    missed = asyncio.Event()
    deadline = Deadline(0.01, missed.set)
    await missed.wait()
    assert not deadline.met()
    assert timers() == []


async def test_who_waits_for_a_task_and_goes_leaves_it_alone_and_no_timer() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(ends_within(60, task))
    await asyncio.sleep(0)
    assert len(timers()) == 1
    waiting.cancel()
    await asyncio.wait({waiting})
    assert timers() == []
    assert not task.done()
    assert not await ends_within(0.01, task)
    task.cancel()
    assert await ends_within(60, task)
    assert timers() == []
