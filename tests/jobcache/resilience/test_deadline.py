"""Deadlines are met or missed once, and no timer outlives its waiter."""

from __future__ import annotations

import asyncio

from jobcache.resilience.deadline import Deadline, ends_within


def timers() -> list[asyncio.TimerHandle]:
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [each for each in scheduled if not each.cancelled() and "Deadline" in repr(each)]


async def test_a_deadline_whose_timer_is_cancelled_is_not_missed() -> None:
    missed = asyncio.Event()
    deadline = Deadline(60, missed.set)
    assert len(timers()) == 1
    deadline.timer.cancel()
    assert timers() == []
    deadline = Deadline(0.01, missed.set)
    while deadline._left > 1:
        await asyncio.sleep(0)
    deadline.timer.cancel()
    assert timers() == []
    await asyncio.sleep(0.01)
    assert not missed.is_set()


async def test_a_deadline_is_missed_once() -> None:
    missed: asyncio.Queue[None] = asyncio.Queue()
    Deadline(0.01, lambda: missed.put_nowait(None))
    await missed.get()
    assert timers() == []
    assert missed.empty()


async def test_a_cancelled_waiter_leaves_the_task_alone_and_no_timer() -> None:
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
