"""The library with one guard taken out at a time, to show that the tests notice."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from jobcache.backends.memory import MemoryBackend
from jobcache.protocol import cell
from jobcache.testing.scenarios import UNVERSIONED_GUARDS
from jobcache.testing.simulation import GUARDS, Components


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
        """Return a changed copy of the module."""
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


# --- the transition table, by the guard that is missing ---

# For each guard of the table, the text that makes it and what stands there without it.
BROKEN_TABLE = dict(
    zip(
        GUARDS,
        (
            ('one token."""\n', 'one token."""\n    return CellStep(cell, None, Effect.NONE)\n'),
            ("cell.tokens | {token}", "frozenset({token})"),
            ("max(cell.fence_version, entry.version)", "cell.fence_version"),
            (
                "        return CellStep(None, PublishResult.NOTHING, Effect.NONE)",
                (
                    "        if entry is not None and entry.keep_ms:\n"
                    "            return _store(entry, PublishResult.STORED)\n"
                    "        return CellStep(None, PublishResult.NOTHING, Effect.NONE)"
                ),
            ),
            ("_kept(cell) if entry is None else _removed()", "_kept(cell)"),
            ("cell.version > entry.version", "cell.version != entry.version"),
        ),
        strict=True,
    )
)

# What else the table decides, and a table that decides otherwise. Only the conformance suite is
# asked to find these: with some of them nothing old is served, but less is kept, or for too long.
OTHER_TABLES = {
    "a lease is exclusive": ("if cell.token == token else LeaseResult.HELD", ""),
    "a lease is its holder's": (
        "LeaseResult.ACQUIRED if cell.token == token else LeaseResult.HELD",
        "LeaseResult.HELD",
    ),
    "a fence refuses leases": (
        "return CellStep(cell, LeaseResult.FENCED, Effect.NONE)",
        "return CellStep(Lease(token), LeaseResult.ACQUIRED, Effect.NEW_DEADLINE)",
    ),
    "a lease returns the entry": (
        "return CellStep(cell, cell, Effect.NONE)",
        "return CellStep(cell, LeaseResult.HELD, Effect.NONE)",
    ),
    "a fence keeps its deadline when a token enters": (
        "CellStep(fenced, None, Effect.KEEP_DEADLINE)",
        "CellStep(fenced, None, Effect.NEW_DEADLINE)",
    ),
    "a fence keeps its deadline when a token leaves": (
        "PublishResult.FENCED, Effect.KEEP_DEADLINE",
        "PublishResult.FENCED, Effect.NEW_DEADLINE",
    ),
    "a fence has the version of the entry": (
        "max(cell.version, 0) if isinstance(cell, Entry) else 0",
        "0",
    ),
    "a fence takes a lease away": (
        "    version = max(cell.version, 0) if isinstance(cell, Entry) else 0\n",
        (
            "    if isinstance(cell, Lease):\n"
            "        return CellStep(cell, None, Effect.NONE)\n"
            "    version = max(cell.version, 0) if isinstance(cell, Entry) else 0\n"
        ),
    ),
    "every token has to leave the fence": ("    if others:\n", "    if False:\n"),
    "a token leaves the fence": ("cell.tokens - {token}", "cell.tokens"),
    "nothing below the fence's version is stored": (
        "entry is None or entry.version < version",
        "entry is None",
    ),
    "the fence's own version is stored": (
        "entry is None or entry.version < version",
        "entry is None or entry.version <= version",
    ),
    "a withdrawal from a fence stores nothing": (
        "cell.fence_version if entry is None",
        "2**53 if entry is None",
    ),
    "a withdrawal ends its lease": (
        "        return _store(entry, PublishResult.STORED)\n    # The holder",
        (
            "        return entry and _store(entry, PublishResult.STORED) or _kept(cell)\n"
            "    # The holder"
        ),
    ),
    "a withdrawal spares another's lease": (
        "_kept(cell) if entry is None else _removed()",
        "_removed()",
    ),
    "a withdrawal spares an entry": (
        "    if entry is None:\n        return _kept(cell)\n    if UNVERSIONED",
        "    if entry is None:\n        return _removed()\n    if UNVERSIONED",
    ),
    "a newer entry stays": ("cell.version > entry.version", "False"),
    "an older entry is not replaced": (
        "    return _removed()  # and not replaced",
        "    return _store(entry, PublishResult.STORED)  # and not replaced",
    ),
    "the same version starts a new lifetime": (
        "return _store(entry, PublishResult.PROLONGED)",
        "return CellStep(cell, PublishResult.PROLONGED, Effect.NONE)",
    ),
    "an entry without a lifetime is not kept": (
        "entry is None or entry.keep_ms == 0",
        "entry is None",
    ),
    "a purge spares a fence": ("cell is None or isinstance(cell, Fence)", "cell is None"),
    "a purge ends a lease": (
        "isinstance(cell, Fence):\n        return CellStep(cell, False",
        "isinstance(cell, Fence | Lease):\n        return CellStep(cell, False",
    ),
}

# The same for entries without a version.
BROKEN_UNVERSIONED_TABLE = dict(
    zip(
        UNVERSIONED_GUARDS,
        (
            # As if all had one constant version.
            ("if UNVERSIONED in {cell.version, entry.version}:", "if False:"),
            BROKEN_TABLE["an empty cell stores nothing"],
            ("both and cell.token == token", "both"),
            ("return _removed()  # it may be", "return _kept(cell)  # it may be"),
            BROKEN_TABLE["a publish removes others' leases"],
        ),
        strict=True,
    )
)

OTHER_TABLES |= {
    "the publish of an unversioned entry is repeated": (
        "both and entry.keep_ms and cell.token == entry.token",
        "False",
    ),
    "an unversioned entry without a lifetime is not kept": (
        "both and entry.keep_ms and",
        "both and",
    ),
    "a fence over an unversioned entry has version 0": ("max(cell.version, 0)", "cell.version"),
}


def broken_table(change: tuple[str, str]) -> ModuleType:
    """Return a transition table with one change, on cells of the usual classes."""
    table = Fault("protocol.cell", (change,)).load()
    for name in ("CellStep", "Effect", "Fence", "Lease", "Unreadable"):
        setattr(table, name, getattr(cell, name))
    return table


def memory_on(table: ModuleType) -> type[MemoryBackend]:
    """Return a memory backend that runs this transition table."""
    module = Fault("backends.memory", ()).load()
    module.table = table
    kind: type[MemoryBackend] = module.MemoryBackend
    return kind


# What stands in a script, and what stands there when the guard is gone.
BROKEN_SCRIPTS = dict(
    zip(
        GUARDS,
        (
            ("fence", "local done", "do return 1 end\nlocal done"),
            ("fence", "tokens = tokens .. token .. ','", "tokens = ',' .. token .. ','"),
            ("publish", "  if version > fence_version then", "  if false then"),
            ("publish", "  return 'nothing'", "  return store('stored')"),
            (
                "publish",
                "  if withdrawn then\n    return 'kept'",
                "  if true then\n    return 'kept'",
            ),
            ("publish", "held > version", "held ~= version"),
        ),
        strict=True,
    )
)

BROKEN_UNVERSIONED_SCRIPTS = dict(
    zip(
        UNVERSIONED_GUARDS,
        (
            (
                "publish",
                "  if unversioned and held_token == token then",
                "  if unversioned then",
            ),
            BROKEN_SCRIPTS["an empty cell stores nothing"],
            (
                "publish",
                "  if unversioned and held_token == token then",
                "  if unversioned then",
            ),
            (
                "publish",
                "  return remove() -- it may be older\nend\n\nlocal held",
                "  return 'kept'\nend\n\nlocal held",
            ),
            BROKEN_SCRIPTS["a publish removes others' leases"],
        ),
        strict=True,
    )
)

# --- what stands above the backend ---


COMMITTED = "self._token, self._committed()"

CACHE = {
    "acknowledges before it publishes": Fault(
        "_engine.writing",
        (
            (
                f"await self._writes.publisher.publish_shielded({COMMITTED})",
                f"self._later = asyncio.create_task(self._writes.publisher.publish({COMMITTED}))",
            ),
        ),
    ),
    "a reader returns before it publishes": Fault(
        "_engine.fetching",
        (
            (
                "await asyncio.gather(\n            self._pub",
                "asyncio.gather(\n            self._pub",
            ),
        ),
    ),
    "a cancelled writer does not publish after its commit": Fault(
        "_engine.writing",
        (
            (
                f"await self._writes.publisher.publish_shielded({COMMITTED})",
                f"await self._writes.publisher.publish({COMMITTED})",
            ),
        ),
    ),
    "an unsure writer publishes its body": Fault(
        "_engine.writing",
        (("version_only(entry) if key in self._maybe_unfenced else entry", "entry"),),
    ),
    "an unsure reader publishes nothing": Fault(
        "_engine.fetching",
        (("if lacking[key].failed}", "if False}"),),
    ),
    "a writer withdraws although its commit may have happened": Fault(
        "_engine.writing",
        (
            ("                reached_commit = True\n", ""),
            (
                "            committed = reached_commit\n",
                "            committed = reached_commit = True\n",
            ),
        ),
    ),
}
"""In `JobCache`."""

FLIGHT = {
    "a reader joins a load that has begun, as in Go": Fault(
        "_engine.single_flight",
        (
            ("            slot.pending = None  # nobody joins what has begun\n", ""),
            (
                "                await self._run(shared)\n",
                "                await self._run(shared)\n            slot.pending = None\n",
            ),
        ),
    ),
    "one cancelled reader cancels them all": Fault(
        "_engine.single_flight", (("await asyncio.shield(shared.result)", "await shared.result"),)
    ),
    "a call that has ended is never forgotten": Fault(
        "_engine.single_flight",
        (("                del self._slots[key]\n", "                pass\n"),),
    ),
}
"""In `SingleFlight`."""

GUARD = {
    "the guard purges instead of repeating": Fault(
        "resilience.recovery",
        (
            (
                "await self._backend.publish(key, token, _version_only(operation.version))",
                "await self._backend.purge([key])",
            ),
        ),
    ),
    "the guard forgets missed publishes": Fault(
        "resilience.guarded_backend", (("            self._note(key, token, operation)\n", ""),)
    ),
    "the guard reads a pending key": Fault(
        "resilience.guarded_backend",
        (
            ("        if key in self._log:\n", "        if False:\n"),
            ("[key for key in keys if key not in log]", "[*keys]"),
        ),
    ),
}
"""In `GuardedBackend`."""

UNVERSIONED_CACHE = {
    "an invalidation is cut off with its caller": Fault(
        "cache",
        (("await self._shielded.run(self.backend.purge(keys))", "await self.backend.purge(keys)"),),
    ),
    "a read without the store removes nothing": Fault(
        "_engine.publishing",
        (
            (
                "await self.publish(token, {key: version_only(it) for key, it in entries.items()})",
                "pass",
            ),
        ),
    ),
}
"""In `JobCache`, where documents have no version."""

UNVERSIONED_GUARD = {
    "the guard forgets missed purges": Fault(
        "resilience.guarded_backend",
        (
            (
                '                self._note(key, "", PendingOperation("purge"))\n',
                "                pass\n",
            ),
        ),
    ),
}
"""In `GuardedBackend`, where documents have no version."""

PUBLISH_LOCAL = "        await self._local.publish(key, token, entry)\n"


def _tiered(*changes: tuple[str, str]) -> Fault:
    return Fault("backends.tiered", changes)


TIERED = {
    "reports are ignored": _tiered(
        ("self._local.drop(keys)\n\n    def interrupted", "pass\n\n    def interrupted")
    ),
    "a cut is ignored": _tiered(
        ("self._local.drop_all()\n\n    def resumed", "pass\n\n    def resumed")
    ),
    "a fill takes no lease": _tiered(
        ("await self._local.lease(key, token)", "await self._local.get(key)"),
        (
            PUBLISH_LOCAL,
            (
                "        self._local.drop((key,))\n"
                f"        await self._local.lease(key, token)\n{PUBLISH_LOCAL}"
            ),
        ),
    ),
    "an answer spares an older entry": _tiered(
        (PUBLISH_LOCAL, f"        if self._local.peek(key) is None:\n    {PUBLISH_LOCAL}")
    ),
    "an answer spares the lease of another": _tiered(
        (
            PUBLISH_LOCAL,
            (
                '        if getattr(self._local._cell(key), "token", token) == token:\n'
                f"    {PUBLISH_LOCAL}"
            ),
        )
    ),
    "an answer is not published while the feed is not live": _tiered(
        (PUBLISH_LOCAL, PUBLISH_LOCAL.replace("entry", "entry if self._feed.live else None"))
    ),
    "an answer of a lease spares what is local": _tiered(
        (
            "            self._local.drop((key,))\n        return found",
            "            pass\n        return found",
        )
    ),
    "a publish spares what is local": _tiered(
        (
            (
                "return await self._remote.publish(key, token, entry)\n        finally:\n"
                "            self._local.drop((key,))"
            ),
            (
                "return await self._remote.publish(key, token, entry)\n"
                "        finally:\n            pass"
            ),
        )
    ),
    "a publish drops what is local only before": _tiered(
        (
            (
                "        try:\n            return await self._remote.publish(key, token, entry)\n"
                "        finally:\n            self._local.drop((key,))"
            ),
            (
                "        self._local.drop((key,))\n"
                "        return await self._remote.publish(key, token, entry)"
            ),
        )
    ),
    "a publish that fails spares what is local": _tiered(
        (
            (
                "        try:\n            return await self._remote.publish(key, token, entry)\n"
                "        finally:\n            self._local.drop((key,))"
            ),
            (
                "        done = await self._remote.publish(key, token, entry)\n"
                "        self._local.drop((key,))\n        return done"
            ),
        )
    ),
    "what is remembered spares what is local": _tiered(
        (
            "        self._local.drop((key,))\n        self._remote.remember",
            "        self._remote.remember",
        )
    ),
    "the local tier is read while the feed is not live": _tiered(
        ("self._local.peek(key) if self._feed.live else None", "self._local.peek(key)")
    ),
    "the local tier is filled while the feed is not live": _tiered(
        (
            "        fills = self._feed.live\n",
            "        fills = True\n",
        )
    ),
    "an entry is read ahead without a lease": _tiered(
        (
            "            await self._fill(empty, token)\n",
            (
                "            fetched = await self._get_remote(empty)\n"
                "            self._local.drop(keys)\n"
                "            for key, entry in fetched.items():\n"
                "                await self._local.lease(key, token)\n"
                "                await self._publish_local(key, token, entry)\n"
            ),
        )
    ),
}
"""In `TieredBackend`."""


_USED_BY = {
    "_engine.single_flight": ("SingleFlight", "_engine.reading"),
    "_engine.reading": ("Reads", "cache"),
    "_engine.values": ("Values", "cache"),
    "_engine.fetching": ("Fetcher", "cache"),
    "_engine.publishing": ("Publisher", "cache"),
    "_engine.writing": ("WriteCoordinator", "cache"),
}
"""By module: the class that it defines, and the module that uses this class."""


def parts(fault: Fault, *, unversioned: bool = False) -> Components:
    """Processes in which `fault` is; of single flight, in the reads of unversioned documents."""
    name, module = fault.module, fault.load()
    if name == "resilience.recovery":
        guarded = Fault("resilience.guarded_backend", ()).load()
        guarded.Recovery = module.Recovery  # type: ignore[attr-defined]
        return Components(guard=guarded.GuardedBackend)
    if name == "resilience.guarded_backend":
        return Components(guard=module.GuardedBackend)
    if name == "backends.tiered":
        return Components(tiered=module.TieredBackend)
    while name != "cache":
        attribute, name = _USED_BY[name]
        if unversioned and name == "_engine.reading":
            name = "_engine.values"
        user = Fault(name, ()).load()
        setattr(user, attribute, getattr(module, attribute))
        module = user
    return Components(cache=module.JobCache)
