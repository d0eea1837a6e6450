"""Run every interleaving of a backend's own steps, and compare each with the transition table.

An operation of a backend on a store with compare-and-set is several steps: it reads, decides and
writes. Another operation may run between any two of them. A backend that overlooks this fails only
when the timing is bad, so a test that runs it normally detects that by chance. This checker decides
itself whose step is next, and tries every order:

    from jobcache.testing import interleavings

    report = await interleavings.check(backend)
    assert report.finding is None, report

It finds the following mistakes every time, and others:

- a write that ignores its token;
- a first write that overwrites a cell which exists already;
- a delete that ignores its token;
- a token that comes back after a delete.

It takes the backend's methods `read`, `compare_and_set` and `delete` for its steps, each of which
runs alone and to its end. They are replaced on the instance meanwhile. A backend with other steps
names them; one whose operations are atomic by themselves has none, and then only the operations
are reordered.

Every schedule has a key of its own. It is right if some sequential order of its operations gives
the same results. An operation that ended before another one began comes first in that order. (This
is linearisability; Herlihy and Wing, 1990.) The content of the cell afterwards is compared, too, as
far as the operations of a backend can tell.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from jobcache.errors import CacheContended
from jobcache.protocol import cell as transitions
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import UNVERSIONED, Entry
from jobcache.testing.scenarios import entry_of, unversioned_entry_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.cell import Cell

Result: TypeAlias = "Entry | LeaseResult | PublishResult | int | None"

STEPS = ("read", "compare_and_set", "delete")
"""The steps of a `CompareAndSetBackend`."""
_KINDS = frozenset({"get", "lease", "fence", "publish", "withdraw", "purge"})
_READ = "read"
"""The step that changes nothing: two of them in a row may as well be swapped."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a backend.

    Attributes:
        kind: "get", "lease", "fence", "publish", "withdraw" (a publish of nothing) or "purge".
        token: of the reader or writer.
        version: of a publish; `UNVERSIONED` for an entry without one.
        made_by: the token of an unversioned entry.
    """

    kind: str
    token: str = ""
    version: int = 0
    made_by: str = ""

    def __str__(self) -> str:
        version = f" {self.made_by or f'v{self.version}'}" if self.kind == "publish" else ""
        return f"{self.token} {self.kind}{version}".lstrip()

    async def call(self, backend: CacheBackend, key: str) -> Result:
        """Call the backend."""
        if self.kind == "get":
            return await backend.get(key)
        if self.kind == "lease":
            return await backend.lease(key, self.token)
        if self.kind == "fence":
            await backend.fence(key, self.token)
            return None
        if self.kind == "purge":
            return await backend.purge([key])
        return await backend.publish(key, self.token, self._entry())

    def apply(self, cell: Cell) -> tuple[Cell, Result]:
        """Return what the transition table makes of a cell, and the result."""
        if self.kind == "get":
            return cell, cell if isinstance(cell, Entry) else None
        if self.kind == "lease":
            leased = transitions.lease(cell, self.token)
            return leased.cell, leased.result
        if self.kind == "fence":
            return transitions.fence(cell, self.token).cell, None
        if self.kind == "purge":
            purged = transitions.purge(cell)
            return purged.cell, int(purged.result)
        published = transitions.publish(cell, self.token, self._entry())
        return published.cell, published.result

    def _entry(self) -> Entry | None:
        if self.kind != "publish":
            return None
        return unversioned_entry_of(self.made_by) if self.made_by else entry_of(self.version)


def parse(text: str) -> tuple[Operation, ...]:
    """Return the operations in a text such as "R lease, W fence, W publish v2, purge".

    "R publish u1" publishes an unversioned entry whose token is "u1".
    """
    return tuple(_operation(*each.split()) for each in text.split(",") if each.strip())


def _operation(*words: str) -> Operation:
    token, (kind, *rest) = ("", words) if words[0] in _KINDS else (words[0], words[1:])
    if kind not in _KINDS:
        raise ValueError(f"no such operation: {' '.join(words)}")
    if rest and rest[0].startswith("u"):
        return Operation(kind, token, UNVERSIONED, rest[0])
    return Operation(kind, token, int(rest[0].removeprefix("v")) if rest else 0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Operations that run at the same time.

    Attributes:
        before: run in sequence, on an empty cell.
        operations: run at the same time after that.
    """

    before: tuple[Operation, ...]
    operations: tuple[Operation, ...]

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """Return the scenario in a text such as "R lease: R publish v1 | W fence"."""
        before, _, together = text.rpartition(":")
        return cls(parse(before), tuple(parse(each)[0] for each in together.split("|")))

    def __str__(self) -> str:
        together = " | ".join(map(str, self.operations))
        return f"{', '.join(map(str, self.before))}: {together}" if self.before else together


SCENARIOS: tuple[Scenario, ...] = tuple(
    map(
        Scenario.parse,
        (
            # one for each way in which a step is usually wrong: a write that ignores its token, a
            # first write that overwrites, a delete that ignores its token. Last, one operation
            # deletes the cell between the read and the write of another, and a third makes a new
            # cell, whose token may be the old one.
            "R lease | S lease",
            "V fence: W fence | V withdraw",
            "R lease: R withdraw | W fence",
            "R lease: R publish v1 | purge | W fence",
            # an empty cell
            "R lease | W fence",
            "V fence | W fence",
            "R lease | get",
            # a lease: is its reader's publish stopped?
            "R lease: R publish v1 | W fence",
            "R lease: R publish v1 | purge",
            "R lease: R publish v1 | S publish v2",
            "R lease: R withdraw | S lease",
            "R lease: purge | W fence",
            # a fence: does every token enter, leave and raise the version?
            "W fence: V fence | W publish v2",
            "W fence: V fence | W withdraw",
            "V fence, W fence: V publish v3 | W publish v2",
            "V fence, W fence: V withdraw | W publish v2",
            "W fence: R publish v3 | W publish v2",
            # an entry
            "R lease, R publish v1: W fence | R publish v1",
            "R lease, R publish v1: W publish v2 | V publish v1",
            "R lease, R publish v1: purge | W fence",
            # entries without a version: is the load that a purge or another load has overtaken
            # stopped?
            "R lease: R publish u1 | purge",
            "R lease: R publish u1 | S publish u2",
            "R lease, R publish u1: u1 publish u2 | purge",
            "R lease, R publish u1: u1 publish u2 | u1 publish u3",
            "R lease, R publish u1: u1 publish u2 | W fence",
            # three at a time
            "R lease: R withdraw | purge | W fence",
            "W fence: W publish v2 | W withdraw | V fence",
        ),
    )
)
"""The shortest ways in which a backend goes wrong that does not do what its steps promise."""
SHORTEST = SCENARIOS[:4]
"""Those that find the usual mistakes, for stores that are slow."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A schedule whose results no order of its operations explains.

    Attributes:
        scenario: what ran.
        schedule: the steps, in order, such as "R publish v1: read".
        before: what the operations before them returned.
        results: what each operation returned.
        afterwards: what the operations that looked at the cell after them returned.
    """

    scenario: Scenario
    schedule: tuple[str, ...]
    before: tuple[object, ...]
    results: tuple[object, ...]
    afterwards: tuple[object, ...]

    def __str__(self) -> str:
        scenario = self.scenario
        return "\n".join(
            (
                f"no order of the operations explains what they returned in {scenario}",
                *_returned("first, each by itself:", scenario.before, self.before),
                *("then, step by step:", *(f"  {step}" for step in self.schedule)),
                *_returned("the results:", scenario.operations, self.results),
                *_returned("and of operations afterwards:", _looks(scenario), self.afterwards),
            )
        )


def _returned(
    title: str, operations: Sequence[Operation], results: Sequence[object]
) -> Iterator[str]:
    if operations:
        yield title
    for operation, result in zip(operations, results, strict=True):
        yield f"  {operation} -> {_shown(result)}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a check saw.

    Attributes:
        scenarios: how many were played.
        schedules: how many orders of steps those had.
        finding: the first that went wrong; None if none did.
    """

    scenarios: int
    schedules: int
    finding: Finding | None

    def __str__(self) -> str:
        counts = f"{self.scenarios} scenarios, {self.schedules} schedules"
        return f"{counts}: {'nothing wrong' if self.finding is None else self.finding}"


async def check(
    backend: CacheBackend,
    scenarios: Sequence[Scenario] = SCENARIOS,
    *,
    steps: Sequence[str] = STEPS,
    keeps: bool = True,
) -> Report:
    """Play every schedule of each scenario until one goes wrong.

    Args:
        backend: the one to check. Not a guarded one: its operations would miss their deadlines
            while they are held.
        scenarios: what to play.
        steps: the methods that are its steps. Those that it does not have are ignored.
        keeps: False for a backend that keeps nothing: each operation finds an empty cell.

    Raises:
        Exception: what an operation raised, except `CacheContended`, which is a finding.
    """
    names = [name for name in steps if hasattr(backend, name)]
    schedules = 0
    with _stepped(backend, names):
        for number, scenario in enumerate(scenarios, start=1):
            choices: list[_Choice] = []
            while True:
                schedules += 1
                played = await _play(backend, scenario, choices, atomic=not names)
                if not _explained(scenario, played, keeps=keeps):
                    return Report(number, schedules, played.finding(scenario))
                while choices and not choices[-1].turn():
                    choices.pop()
                if not choices:
                    break
    return Report(len(scenarios), schedules, None)


# --- one step at a time ---


@dataclass(eq=False, slots=True)
class _Runner:
    """An operation that runs, one step at a time.

    Attributes:
        name: of the operation.
        step: the step at which it is held; empty if it is not.
        go_on: ends the hold.
        moved: set once it is held at its next step, or has ended.
        began: the moment of its first step; -1 before it.
        ended: the moment of its last step; -1 before it.
        result: what it returned, or the error that it raised.
    """

    name: str
    step: str = ""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    began: int = -1
    ended: int = -1
    result: object = None

    async def hold(self, step: str) -> None:
        """Wait until it is this operation's turn."""
        self.step = step
        self.go_on.clear()
        self.moved.set()
        await self.go_on.wait()

    async def run(self, calling: Awaitable[object], *, atomic: bool) -> None:
        """Run the operation to its end. One without steps of its own is a single step."""
        _RUNNER.set(self)
        if atomic:
            await self.hold("runs")
        try:
            self.result = await calling
        except Exception as error:  # noqa: BLE001 - raised again, or a finding
            self.result = error
        self.step = ""
        self.moved.set()

    async def take_step(self, moment: int) -> None:
        """Let it take the step at which it is held; return once it is held again, or has ended."""
        if self.began < 0:
            self.began = moment
        self.moved.clear()
        self.go_on.set()
        await self.moved.wait()
        if not self.step:
            self.ended = moment


# Inherited by the tasks that an operation starts.
_RUNNER: ContextVar[_Runner | None] = ContextVar("runner", default=None)


@contextmanager
def _stepped(backend: CacheBackend, names: Sequence[str]) -> Iterator[None]:
    """Hold the backend's own calls of these methods until it is their operation's turn."""
    for name in names:
        setattr(backend, name, _held(name, getattr(backend, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(backend, name)


def _held(name: str, method: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    async def held(*args: object, **kwargs: object) -> object:
        runner = _RUNNER.get()
        if runner is not None:
            await runner.hold(name)
        return await method(*args, **kwargs)

    return held


# --- one schedule ---


@dataclass(slots=True)
class _Choice:
    """The operations that could take the next step, and the one that takes it."""

    options: Sequence[int]
    chosen: int = 0

    def turn(self) -> bool:
        """Go on to the next option, if there is one."""
        self.chosen += 1
        return self.chosen < len(self.options)


@dataclass(frozen=True, slots=True)
class _Played:
    """One schedule, and what came of it."""

    before: Sequence[object]
    runners: Sequence[_Runner]
    schedule: Sequence[str]
    afterwards: Sequence[object]

    def finding(self, scenario: Scenario) -> Finding:
        """Return the report of this schedule as a wrong one."""
        results = tuple(runner.result for runner in self.runners)
        before, afterwards = tuple(self.before), tuple(self.afterwards)
        return Finding(scenario, tuple(self.schedule), before, results, afterwards)


async def _play(
    backend: CacheBackend, scenario: Scenario, choices: list[_Choice], *, atomic: bool
) -> _Played:
    """Play the schedule that begins with these choices, and add the choices after them."""
    key = f"interleaving:{secrets.token_hex(8)}"
    before = [await operation.call(backend, key) for operation in scenario.before]
    runners = [_Runner(str(operation)) for operation in scenario.operations]
    tasks = [
        asyncio.create_task(runner.run(operation.call(backend, key), atomic=atomic))
        for runner, operation in zip(runners, scenario.operations, strict=True)
    ]
    await asyncio.gather(*(runner.moved.wait() for runner in runners))
    schedule: list[str] = []
    last: tuple[int, str] | None = None
    while held := [number for number, runner in enumerate(runners) if runner.step]:
        moment = len(schedule)
        if moment == len(choices):
            choices.append(_Choice(_options(runners, held, last)))
        choice = choices[moment]
        number = choice.options[choice.chosen]
        runner, step = runners[number], runners[number].step
        schedule.append(f"{runner.name}: {step}")
        await runner.take_step(moment)
        last = None if runner.ended >= 0 else (number, step)
    await asyncio.gather(*tasks)
    for runner in runners:
        if isinstance(runner.result, Exception) and not isinstance(runner.result, CacheContended):
            raise runner.result
    afterwards = [await look.call(backend, key) for look in _looks(scenario)]
    return _Played(before, runners, schedule, afterwards)


def _options(
    runners: Sequence[_Runner], held: Sequence[int], last: tuple[int, str] | None
) -> Sequence[int]:
    """Leave out a read after the read of a later operation: the other order is played as well."""
    if last is None or last[1] != _READ:
        return held
    return [number for number in held if number >= last[0] or runners[number].step != _READ]


# --- is there an order that explains it? ---


def _explained(scenario: Scenario, played: _Played, *, keeps: bool) -> bool:
    runners = played.runners
    before = list(zip(scenario.before, played.before, strict=True))
    after = list(zip(_looks(scenario), played.afterwards, strict=True))
    for order in itertools.permutations(range(len(runners))):
        # An operation that had ended before another one began comes first.
        if any(
            runners[later].ended < runners[earlier].began
            for earlier, later in itertools.combinations(order, 2)
        ):
            continue
        together = [(scenario.operations[number], runners[number].result) for number in order]
        if _agrees([*before, *together, *after], keeps=keeps):
            return True
    return False


def _agrees(returned: Sequence[tuple[Operation, object]], *, keeps: bool) -> bool:
    cell: Cell = None
    for operation, result in returned:
        cell, expected = operation.apply(cell if keeps else None)
        if result != expected:
            return False
    return True


def _looks(scenario: Scenario) -> tuple[Operation, ...]:
    """Return operations that tell apart what the cell may hold: who leased, who fences what."""
    every = (*scenario.before, *scenario.operations)
    tokens = sorted({each.token for each in every if each.token})
    below = max(0, max(each.version for each in every) - 1)
    return (
        Operation("get"),
        Operation("lease", "looks"),
        *(Operation("lease", token) for token in tokens),
        *(Operation("publish", token, below) for token in tokens),
        Operation("get"),
    )


def _shown(result: object) -> str:
    if isinstance(result, Entry):
        return f"an entry, v{result.version}"
    if isinstance(result, LeaseResult | PublishResult):
        return str(result)
    return repr(result)
