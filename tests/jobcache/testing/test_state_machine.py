"""Random operations on every backend, compared step by step with the transition table."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from jobcache.protocol import cell
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.cell import Cell, CellStep
from jobcache.protocol.entry import Entry
from jobcache.testing.conformance import Subject
from jobcache.testing.scenarios import entry_of, unversioned_entry_of
from tests.subjects import (
    KEEPING,
    PAIRS,
    MemorySubject,
    NullSubject,
    RedisSubject,
    TieredSubject,
)

T = TypeVar("T")
keys = st.sampled_from(["job:1:progress", "job:2:progress"])
tokens = st.sampled_from(["r0", "r1", "w0", "w1", "w2"])
loads = st.sampled_from(["u0", "u1", "u2"])
versions = st.integers(0, 6)


class Machine(RuleBasedStateMachine):
    """`make` and `loop` are set by the test that runs it."""

    loop: ClassVar[asyncio.AbstractEventLoop]

    def make(self) -> Subject:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.subject = self.make()
        self.backend = self.subject.backend
        self.cells: dict[str, Cell] = {}

    def run(self, operation: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(operation)

    def expect(self, key: str, step: CellStep[T]) -> T:
        """Remember what the cell holds now, and return what the operation has to return."""
        self.cells[key] = step.cell
        return step.result

    @rule(key=keys, token=tokens)
    def lease(self, key: str, token: str) -> None:
        expected = self.expect(key, cell.lease(self.cells.get(key), token))
        assert self.run(self.backend.lease(key, token)) == expected

    @rule(key=keys, token=tokens)
    def fence(self, key: str, token: str) -> None:
        self.expect(key, cell.fence(self.cells.get(key), token))
        self.run(self.backend.fence(key, token))

    @rule(key=keys, token=tokens, version=versions)
    def publish(self, key: str, token: str, version: int) -> None:
        entry = entry_of(version)
        expected = self.expect(key, cell.publish(self.cells.get(key), token, entry))
        assert self.run(self.backend.publish(key, token, entry)) is expected

    @rule(key=keys, token=tokens | loads, made_by=loads, kept=st.booleans())
    def publish_unversioned(self, key: str, token: str, made_by: str, *, kept: bool) -> None:
        entry = unversioned_entry_of(made_by)
        entry = entry if kept else replace(entry, keep_ms=0)
        expected = self.expect(key, cell.publish(self.cells.get(key), token, entry))
        assert self.run(self.backend.publish(key, token, entry)) is expected

    @rule(key=keys, token=tokens, made_by=loads)
    def lease_and_publish_unversioned(self, key: str, token: str, made_by: str) -> None:
        self.lease(key, token)
        self.publish_unversioned(key, token, made_by, kept=True)

    @rule(key=keys, token=tokens, version=versions)
    def fence_and_publish(self, key: str, token: str, version: int) -> None:
        """Write as writers do: steps at random seldom replace an entry by another."""
        self.fence(key, token)
        self.publish(key, token, version)

    @rule(key=keys, token=tokens, version=versions)
    def lease_and_publish(self, key: str, token: str, version: int) -> None:
        """Load as readers do."""
        self.lease(key, token)
        self.publish(key, token, version)

    @rule(key=keys, token=tokens)
    def withdraw(self, key: str, token: str) -> None:
        expected = self.expect(key, cell.publish(self.cells.get(key), token, None))
        assert self.run(self.backend.publish(key, token, None)) is expected

    @rule(which=st.lists(keys, max_size=3))
    def purge(self, which: list[str]) -> None:
        dropped = [
            self.expect(key, cell.purge(self.cells.get(key))) for key in dict.fromkeys(which)
        ]
        assert self.run(self.backend.purge(which)) == sum(dropped)

    @rule(key=keys)
    def evict(self, key: str) -> None:
        self.cells[key] = None
        self.run(self.subject.evict(key))

    @invariant()
    def serves_the_entries_of_the_table(self) -> None:
        expected = {key: held for key, held in self.cells.items() if isinstance(held, Entry)}
        both = ["job:1:progress", "job:2:progress"]
        assert self.run(self.backend.get_many(both)) == expected
        for key in both:
            assert self.run(self.backend.get(key)) == expected.get(key)

    def teardown(self) -> None:
        if isinstance(self.subject, RedisSubject | TieredSubject):
            self.run(self.subject.aclose())


class NullMachine(Machine):
    """Nothing is kept: the cells stay empty."""

    @rule(key=keys, token=tokens)
    def lease(self, key: str, token: str) -> None:
        assert self.run(self.backend.lease(key, token)) is LeaseResult.ACQUIRED

    @rule(key=keys, token=tokens)
    def fence(self, key: str, token: str) -> None:
        self.run(self.backend.fence(key, token))

    @rule(key=keys, token=tokens, version=versions)
    def publish(self, key: str, token: str, version: int) -> None:
        assert (
            self.run(self.backend.publish(key, token, entry_of(version))) is PublishResult.NOTHING
        )

    @rule(key=keys, token=tokens | loads, made_by=loads, kept=st.booleans())
    def publish_unversioned(self, key: str, token: str, made_by: str, *, kept: bool) -> None:
        entry = unversioned_entry_of(made_by)
        assert self.run(self.backend.publish(key, token, entry)) is PublishResult.NOTHING

    @rule(key=keys, token=tokens)
    def withdraw(self, key: str, token: str) -> None:
        assert self.run(self.backend.publish(key, token, None)) is PublishResult.NOTHING


def run_machine(kind: type[Machine], examples: int) -> None:
    with asyncio.Runner() as runner:
        kind.loop = runner.get_loop()
        run_state_machine_as_test(
            kind,
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_null_agrees_with_empty_cells() -> None:
    run_machine(type("Null", (NullMachine,), {"make": lambda _: NullSubject()}), 20)


@pytest.mark.parametrize("name", [*KEEPING, *PAIRS])
def test_the_backend_agrees_with_the_transition_table(
    name: str, redis_urls: dict[str, str], *, long: bool
) -> None:
    kind, _, server = name.partition(" on ")

    def make(machine: Machine) -> Subject:
        if kind == "memory":
            return MemorySubject()
        if kind == "redis":
            return RedisSubject(redis_urls[server])
        subject = TieredSubject(redis_urls[server], 2 if kind == "two tiered" else 1)
        machine.run(subject.start())
        return subject

    examples = (150 if long else 60) if kind == "memory" else (40 if long else 12)
    run_machine(type("Kept", (Machine,), {"make": make}), examples)
