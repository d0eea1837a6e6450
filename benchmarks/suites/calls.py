"""Calls of a cached function that hit: `JobCache.cached` beside the decorators of other caches."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache

from benchmarks.backends import ready_backend
from benchmarks.interleaving import take_turns
from benchmarks.peers.table import absent
from benchmarks.results import Section
from benchmarks.suites.lookups import Subjects
from jobcache import JobCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.results import Kind

    Report = dict[str, Any]
    Call = Callable[[int], Awaitable[Report | None]]

OURS = "JobCache.cached on memory"
BARE = "cachetools.TTLCache in a coroutine"
CASHEWS = "cashews, decorated coroutine"
AIOCACHE = "aiocache, decorated coroutine"

_KEYS = 100
_KEEP = 3600  # seconds
_ENTRIES = 10_000


async def _report(report_id: int) -> Report:
    return {
        "id": report_id,
        "title": "A report that somebody reads",
        "rows": [{"name": f"row {number}", "total": number * 1.5} for number in range(8)],
    }


async def calls(*, peers: bool, operations: int, turns: int) -> Section:
    """The section. `operations` are those of a turn."""
    asked = list(islice(cycle(range(_KEYS)), operations))
    subjects: Subjects[int] = Subjects(asked)
    async with AsyncExitStack() as stack:
        cache = JobCache(await stack.enter_async_context(ready_backend("memory")))

        @cache.cached("report:{report_id}", ttl=_KEEP)
        async def ours(report_id: int) -> Report:
            return await _report(report_id)

        functions: dict[str, Call] = {OURS: ours, BARE: _by_hand()}
        missing = {one.subject for one in absent()} if peers else set(_PEERS)
        for package, (name, decorate) in _PEERS.items():
            if package not in missing:
                functions[name] = await decorate(stack)
        for name, function in functions.items():
            for number in range(_KEYS):
                assert await function(number) == await _report(number), name
            kind: Kind = "ours" if name == OURS else "limit" if name == BARE else "peer"
            subjects.awaited(name, kind, "await function(report_id)", function)
        series = await take_turns(subjects.all, turns)
    return Section(
        "calls",
        "A hit of a cached function",
        f"{operations} hits in one coroutine, {_KEYS} keys in turn, values of three fields, one of"
        " them a list of eight rows",
        "µs",
        more_is_better=False,
        reference=BARE,
        series=series,
    )


def _by_hand() -> Call:
    cache: TTLCache[str, Report] = TTLCache(_ENTRIES, _KEEP)

    async def report(report_id: int) -> Report:
        key = f"report:{report_id}"
        found = cache.get(key)
        if found is None:
            found = cache[key] = await _report(report_id)
        return found

    return report


async def _cashews(stack: AsyncExitStack) -> Call:
    from cashews import Cache  # noqa: PLC0415 - each peer may be missing

    cache = Cache()
    cache.setup("mem://", size=_ENTRIES)
    stack.push_async_callback(cache.close)
    decorated: Call = cache(ttl=_KEEP, key="report:{report_id}")(_report)
    return decorated


async def _aiocache(_: AsyncExitStack) -> Call:
    from aiocache import cached  # noqa: PLC0415

    def key(_: object, report_id: int) -> str:
        return f"report:{report_id}"

    decorated: Call = cached(ttl=_KEEP, key_builder=key)(_report)
    return decorated


_PEERS = {"cashews": (CASHEWS, _cashews), "aiocache": (AIOCACHE, _aiocache)}
