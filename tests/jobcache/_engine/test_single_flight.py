"""Sharing calls: who shares with whom, and what a cancellation does not do."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from jobcache._engine.single_flight import SingleFlight


class Calls:
    """A call that reports when it begins, and ends when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.gate.wait()
        return number


async def turns(count: int = 5) -> None:
    """Let everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_callers_that_ask_before_a_call_begins_share_it() -> None:
    flights: SingleFlight[int] = SingleFlight()
    call = Calls()
    call.gate.set()
    results = await asyncio.gather(*(flights.share("k", call) for _ in range(100)))
    assert call.begun == 1
    assert sorted(results) == [(1, False)] + [(1, True)] * 99
    assert len(flights) == 0


async def test_no_caller_joins_a_call_that_has_begun() -> None:
    flights: SingleFlight[int] = SingleFlight()
    call = Calls()
    early = asyncio.create_task(flights.share("k", call))
    await turns()
    assert call.begun == 1
    late = [asyncio.create_task(flights.share("k", call)) for _ in range(3)]
    await turns()
    assert call.begun == 1, "the second call waits for the first to end"
    call.gate.set()
    assert await early == (1, False)
    assert await asyncio.gather(*late) == [(2, False), (2, True), (2, True)]


async def test_keys_do_not_wait_for_each_other() -> None:
    flights: SingleFlight[int] = SingleFlight()
    slow, quick = Calls(), Calls()
    quick.gate.set()
    waiting = asyncio.create_task(flights.share("slow", slow))
    assert await flights.share("quick", quick) == (1, False)
    slow.gate.set()
    assert await waiting == (1, False)


@pytest.mark.parametrize("leaves", [0, 1, 2])
async def test_cancelling_any_caller_does_not_affect_the_others(leaves: int) -> None:
    flights: SingleFlight[int] = SingleFlight()
    call = Calls()
    callers = [asyncio.create_task(flights.share("k", call)) for _ in range(3)]
    await turns()
    callers[leaves].cancel()
    await turns()
    call.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results.pop(leaves), asyncio.CancelledError)
    assert [result[0] for result in results if not isinstance(result, BaseException)] == [1, 1]


async def test_a_call_goes_on_after_all_its_callers_have_left() -> None:
    flights: SingleFlight[int] = SingleFlight()
    call = Calls()
    caller = asyncio.create_task(flights.share("k", call))
    await turns()
    caller.cancel()
    await turns()
    assert len(flights) == 1
    call.gate.set()
    await turns()
    assert len(flights) == 0


async def test_a_call_whose_callers_have_all_left_does_not_begin() -> None:
    flights: SingleFlight[int] = SingleFlight()
    call = Calls()
    first = asyncio.create_task(flights.share("k", call))
    await turns()
    second = asyncio.create_task(flights.share("k", call))
    await turns()
    second.cancel()
    await turns()
    call.gate.set()
    assert await first == (1, False)
    await turns()
    assert call.begun == 1
    assert len(flights) == 0


async def test_a_caller_after_an_abandoned_call_gets_a_call_of_its_own() -> None:
    flights: SingleFlight[int] = SingleFlight()
    call = Calls()
    first = asyncio.create_task(flights.share("k", call))
    await turns()
    gone = asyncio.create_task(flights.share("k", call))
    await turns()
    gone.cancel()
    await turns()
    late = asyncio.create_task(flights.share("k", call))
    call.gate.set()
    assert [await first, (await late)[0]] == [(1, False), 2]


async def test_an_error_is_raised_to_every_caller_and_not_kept() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def fails() -> int:
        raise LookupError("no")

    callers = [flights.share("k", fails) for _ in range(3)]
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [LookupError] * 3
    call = Calls()
    call.gate.set()
    assert await flights.share("k", call) == (1, False)


async def test_closing_ends_running_operations() -> None:
    flights: SingleFlight[int] = SingleFlight()
    call = Calls()
    running = asyncio.create_task(flights.share("k", call))
    await turns()
    waiting = asyncio.create_task(flights.share("k", call))
    await turns()
    await flights.aclose()
    results = await asyncio.gather(running, waiting, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert len(flights) == 0


async def test_a_call_that_is_cancelled_by_what_it_called_cancels_nobody() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def cancelled() -> int:
        raise asyncio.CancelledError

    waiting = asyncio.create_task(flights.share("k", cancelled))
    await turns(1)
    call = Calls()
    call.gate.set()
    following = asyncio.create_task(flights.share("k", call))
    with pytest.raises(RuntimeError, match="was cancelled by what it called"):
        await waiting
    assert (await following)[0] == 1


async def test_each_call_runs_in_the_context_of_one_of_its_callers() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    flights: SingleFlight[str] = SingleFlight()
    gate = asyncio.Event()

    async def call() -> str:
        await gate.wait()
        return request.get()

    async def ask(name: str) -> str:
        request.set(name)
        return (await flights.share("k", call))[0]

    first = asyncio.create_task(ask("first"))
    await turns()
    second = asyncio.create_task(ask("second"))
    await turns()
    gate.set()
    assert [await first, await second] == ["first", "second"]


async def test_closing_before_a_call_has_begun_ends_its_callers() -> None:
    flights: SingleFlight[int] = SingleFlight()
    waiting = asyncio.create_task(flights.share("k", Calls()))
    await asyncio.sleep(0)
    await flights.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
