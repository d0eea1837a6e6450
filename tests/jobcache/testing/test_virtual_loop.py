"""The event loop of simulations: virtual time, and no wait."""

from __future__ import annotations

import asyncio

import pytest

from jobcache.testing.simulation.virtual_loop import VirtualLoop, at_once


async def waits() -> None:
    await asyncio.sleep(0)


async def returns() -> int:
    return 1


def test_only_an_operation_that_waits_for_nothing_can_be_run_at_once() -> None:
    assert at_once(returns()) == 1
    with pytest.raises(RuntimeError, match="waits for something"):
        at_once(waits())


def test_callbacks_run_in_order_and_their_errors_are_kept() -> None:
    loop, seen = VirtualLoop(), []

    def fail() -> None:
        raise ZeroDivisionError

    loop.call_soon(seen.append, 1)
    loop.call_soon(seen.append, 2).cancel()
    loop.call_soon(fail)
    loop.call_soon(seen.append, 3)
    loop.run_ready()
    assert seen == [1, 3]
    assert [type(error) for error in loop.errors] == [ZeroDivisionError]


def test_time_passes_only_to_the_next_timer() -> None:
    loop, seen = VirtualLoop(), []
    loop.pass_time()
    assert loop.time() == 0
    loop.call_later(5, seen.append, "late")
    loop.call_later(2, seen.append, "early")
    loop.call_later(1, seen.append, "never").cancel()
    loop.run_ready()
    assert seen == []
    loop.pass_time()
    loop.run_ready()
    assert (seen, loop.time()) == (["early"], 2)
    assert not loop.is_closed()
