"""The library with one guard taken out at a time, to show that the tests notice."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from jobcache.backends.memory import MemoryBackend
from jobcache.protocol.backend import Entry, Offered
from jobcache.protocol.codec import Fence, Lease
from jobcache.testing.simulation import GUARDS, Parts

# --- backends, by the guard that is missing ---


class NoFence(MemoryBackend):
    async def fence(self, key: str, ticket: str) -> None:
        """Writers do not fence."""


class OneFenceSlot(MemoryBackend):
    async def fence(self, key: str, ticket: str) -> None:
        cell = self._cell(key)
        await super().fence(key, ticket)
        if isinstance(cell, Fence):
            self._put(key, Fence(cell.floor, frozenset({ticket})), 30)


class FloorNotRaised(MemoryBackend):
    def _leave(self, key: str, fence: Fence, ticket: str, entry: Entry | None) -> Offered:
        offered = super()._leave(key, fence, ticket, entry)
        left = self._cell(key)
        if isinstance(left, Fence):
            self._put(key, Fence(fence.floor, left.tickets), 30)
        return offered


class StoreWithoutTicket(MemoryBackend):
    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        if self._cell(key) is None:
            return self._store_anyway(key, entry)
        return await super().offer(key, ticket, entry)

    def _store_anyway(self, key: str, entry: Entry | None) -> Offered:
        if entry is not None:
            self._put(key, entry, 600)
        return Offered.STORED


class SpareOtherLeases(MemoryBackend):
    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        cell = self._cell(key)
        if isinstance(cell, Lease) and cell.ticket != ticket:
            return Offered.KEPT
        return await super().offer(key, ticket, entry)


class SpareOlderEntry(MemoryBackend):
    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        cell = self._cell(key)
        if entry is not None and isinstance(cell, Entry) and cell.version < entry.version:
            return Offered.KEPT
        return await super().offer(key, ticket, entry)


BROKEN_MEMORY = dict(
    zip(
        GUARDS,
        (
            NoFence,
            OneFenceSlot,
            FloorNotRaised,
            StoreWithoutTicket,
            SpareOtherLeases,
            SpareOlderEntry,
        ),
        strict=True,
    )
)

# What stands in a script, and what stands there when the guard is gone.
BROKEN_SCRIPTS = dict(
    zip(
        GUARDS,
        (
            ("fence", "local done", "do return 1 end\nlocal done"),
            ("fence", "tickets = tickets .. ticket .. ','", "tickets = ',' .. ticket .. ','"),
            ("offer", "  if version > floor then", "  if false then"),
            ("offer", "  return 'nothing'", "  return store('stored')"),
            (
                "offer",
                "  if withdrawn then\n    return 'kept'",
                "  if true then\n    return 'kept'",
            ),
            ("offer", "held > version", "held ~= version"),
        ),
        strict=True,
    )
)

# --- what stands above the backend ---


@dataclass(frozen=True)
class Fault:
    """What stands in a module, and what stands there instead.

    Attributes:
        module: the module's name within `jobcache`.
        changes: pairs of a text that occurs there once, and what replaces it.
    """

    module: str
    changes: tuple[tuple[str, str], ...]

    def load(self) -> ModuleType:
        """The module so changed; the real one stays as it is."""
        name = f"jobcache.{self.module}"
        path = sys.modules[name].__file__
        assert path is not None
        text = Path(path).read_text("utf-8")
        for whole, broken in self.changes:
            assert text.count(whole) == 1, f"{name} has changed; say anew how to break it: {whole}"
            text = text.replace(whole, broken)
        module = ModuleType(name)
        module.__file__ = path
        exec(compile(text, path, "exec"), vars(module))  # noqa: S102 - the library's own source
        return module


COMMITTED = "self._ticket, self._committed()"

CACHE = {
    "acknowledges before it offers": Fault(
        "_engine.writing",
        (
            (
                f"await self._writes.offers.make_surely({COMMITTED})",
                f"self._later = asyncio.create_task(self._writes.offers.make({COMMITTED}))",
            ),
        ),
    ),
    "a reader returns before it offers": Fault(
        "cache",
        (
            (
                "await asyncio.gather(self._offers.make(ticket, sure),",
                "self._later = asyncio.gather(self._offers.make(ticket, sure),",
            ),
        ),
    ),
    "a cancelled writer does not offer after its commit": Fault(
        "_engine.writing",
        (
            (
                f"await self._writes.offers.make_surely({COMMITTED})",
                f"await self._writes.offers.make({COMMITTED})",
            ),
        ),
    ),
    "an unsure writer offers its body": Fault(
        "_engine.writing", (("unkept(entry) if key in self._unsure else entry", "entry"),)
    ),
    "an unsure reader offers nothing": Fault(
        "cache", (("for key in loaded if key not in sure}", "for key in ()}"),)
    ),
    "a writer withdraws although its commit may have happened": Fault(
        "_engine.writing",
        (
            ("                reached_commit = True\n", ""),
            (
                "        finally:\n            if not reached_commit:",
                (
                    "            reached_commit = True\n"
                    "        finally:\n            if not reached_commit:"
                ),
            ),
        ),
    ),
}
"""In `JobCache`."""

FLIGHT = {
    "a reader joins a load that has begun, as in Go": Fault(
        "_engine.single_flight",
        (
            ("            lane.boarding = None  # nobody joins what has begun\n", ""),
            (
                "                await self._land(flight)\n",
                "                await self._land(flight)\n            lane.boarding = None\n",
            ),
        ),
    ),
    "one cancelled reader cancels them all": Fault(
        "_engine.single_flight", (("await asyncio.shield(flight.landed)", "await flight.landed"),)
    ),
    "a call that has ended is never forgotten": Fault(
        "_engine.single_flight",
        (("                del self._lanes[key]\n", "                pass\n"),),
    ),
}
"""In `SingleFlight`."""

GUARD = {
    "the guard purges instead of repeating": Fault(
        "resilience.guarded_backend",
        (
            (
                "await self._backend.offer(key, ticket, _outdated(step.version))",
                "await self._backend.purge([key])",
            ),
        ),
    ),
    "the guard forgets missed offers": Fault(
        "resilience.guarded_backend", (("            self._missed.note(key, ticket, step)\n", ""),)
    ),
    "the guard reads what the store has yet to be told of": Fault(
        "resilience.guarded_backend",
        (
            ("        if key in missed:\n", "        if False:\n"),
            ("[key for key in keys if key not in self._missed]", "[*keys]"),
        ),
    ),
}
"""In `Guard`."""

OFFER_NEAR = "        await self._near.offer(key, ticket, entry)\n"


def _tiered(*changes: tuple[str, str]) -> Fault:
    return Fault("backends.tiered", changes)


TIERED = {
    "reports are ignored": _tiered(
        ("self._near.drop(keys)\n\n    def interrupted", "pass\n\n    def interrupted")
    ),
    "a cut is ignored": _tiered(
        ("self._near.drop_all()\n\n    def resumed", "pass\n\n    def resumed")
    ),
    "a fill takes no lease": _tiered(
        ("await self._near.lease(key, ticket)", "await self._near.get(key)"),
        (
            OFFER_NEAR,
            (
                "        self._near.drop((key,))\n"
                f"        await self._near.lease(key, ticket)\n{OFFER_NEAR}"
            ),
        ),
    ),
    "an answer spares an older entry": _tiered(
        (OFFER_NEAR, f"        if self._near.peek(key) is None:\n    {OFFER_NEAR}")
    ),
    "an answer spares the lease of another": _tiered(
        (
            OFFER_NEAR,
            (
                '        if getattr(self._near._cell(key), "ticket", ticket) == ticket:\n'
                f"    {OFFER_NEAR}"
            ),
        )
    ),
    "an answer is not offered while the feed is not live": _tiered(
        (OFFER_NEAR, OFFER_NEAR.replace("entry", "entry if self._feed.live else None"))
    ),
    "an answer of a lease spares what is near": _tiered(
        (
            "            self._near.drop((key,))\n        return found",
            "            pass\n        return found",
        )
    ),
    "an offer spares what is near": _tiered(
        (
            (
                "return await self._far.offer(key, ticket, entry)\n        finally:\n"
                "            self._near.drop((key,))"
            ),
            "return await self._far.offer(key, ticket, entry)\n        finally:\n            pass",
        )
    ),
    "an offer drops what is near only before": _tiered(
        (
            (
                "        try:\n            return await self._far.offer(key, ticket, entry)\n"
                "        finally:\n            self._near.drop((key,))"
            ),
            (
                "        self._near.drop((key,))\n"
                "        return await self._far.offer(key, ticket, entry)"
            ),
        )
    ),
    "an offer that fails spares what is near": _tiered(
        (
            (
                "        try:\n            return await self._far.offer(key, ticket, entry)\n"
                "        finally:\n            self._near.drop((key,))"
            ),
            (
                "        done = await self._far.offer(key, ticket, entry)\n"
                "        self._near.drop((key,))\n        return done"
            ),
        )
    ),
    "what is remembered spares what is near": _tiered(
        (
            "        self._near.drop((key,))\n        self._far.remember",
            "        self._far.remember",
        )
    ),
    "the near tier is read while the feed is not live": _tiered(
        ("self._near.peek(key) if self._feed.live else None", "self._near.peek(key)")
    ),
    "the near tier is filled while the feed is not live": _tiered(
        (
            "        if not self._feed.live:\n            self._feed.start()\n",
            "        if False:\n",
        )
    ),
}
"""In `TieredBackend`."""


def parts(fault: Fault) -> Parts:
    """Processes in which `fault` is."""
    module = fault.load()
    if fault.module == "resilience.guarded_backend":
        return Parts(guard=module.Guard)
    if fault.module == "backends.tiered":
        return Parts(tiered=module.TieredBackend)
    if fault.module == "cache":
        return Parts(cache=module.JobCache)
    cache = Fault("cache", ()).load()
    name = {"_engine.single_flight": "SingleFlight", "_engine.writing": "Writes"}[fault.module]
    setattr(cache, name, getattr(module, name))
    return Parts(cache=cache.JobCache)
