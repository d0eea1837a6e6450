"""The transition table alone: cells that cannot be read, and what holds for every cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from jobcache.errors import UnreadableCell
from jobcache.protocol import cell as table
from jobcache.protocol.backend import PublishResult
from jobcache.protocol.cell import Cell, CellStep, Effect, Fence, Lease, Unreadable
from jobcache.protocol.entry import UNVERSIONED, Entry
from jobcache.testing.scenarios import entry_of, unversioned_entry_of

UNREADABLE = Unreadable("of another format")
TOKENS = ("r", "w")
ENTRIES = [
    *(entry_of(version) for version in range(3)),
    *(unversioned_entry_of(token) for token in ("r", "u")),
]
CELLS: list[Cell] = [
    None,
    UNREADABLE,
    *ENTRIES,
    *(Lease(token) for token in TOKENS),
    *(
        Fence(version, frozenset(tokens))
        for version, tokens in product(range(3), (("r",), ("w",), ("r", "w"), ("other",)))
    ),
]


def publishes(held: Cell) -> Iterator[tuple[str, Entry | None, CellStep[PublishResult]]]:
    entries = [None, *ENTRIES, *(replace(entry, keep_ms=0) for entry in ENTRIES)]
    for token, entry in product(TOKENS, entries):
        yield token, entry, table.publish(held, token, entry)


def test_an_unreadable_cell_is_left_by_a_lease_and_replaced_by_everything_else() -> None:
    with pytest.raises(UnreadableCell, match="of another format"):
        table.lease(UNREADABLE, "r")
    fenced = Fence(0, frozenset({"w"}))
    assert table.fence(UNREADABLE, "w") == CellStep(fenced, None, Effect.NEW_DEADLINE)
    assert table.purge(UNREADABLE) == (None, True, Effect.DELETE)
    for _, _, step in publishes(UNREADABLE):
        assert step == CellStep(None, PublishResult.REMOVED, Effect.DELETE)


@pytest.mark.parametrize("held", CELLS)
def test_the_effect_of_a_step_says_what_the_store_has_to_do(held: Cell) -> None:
    steps: list[CellStep[object]] = [CellStep(*step) for _, _, step in publishes(held)]
    steps += [CellStep(*table.fence(held, "w")), CellStep(*table.purge(held))]
    if held is not UNREADABLE:
        steps.append(CellStep(*table.lease(held, "r")))
    for step in steps:
        assert (step.effect is Effect.DELETE) is (held is not None and step.cell is None)
        if step.effect is Effect.NONE:
            assert step.cell == held
        if step.effect is Effect.KEEP_DEADLINE:
            assert isinstance(held, Fence)
            assert isinstance(step.cell, Fence)
        assert not isinstance(step.cell, Entry) or step.cell.keep_ms > 0


@pytest.mark.parametrize("held", CELLS)
def test_a_step_that_is_repeated_changes_nothing(held: Cell) -> None:
    """A client library may retry an operation whose outcome it does not know."""
    assert table.fence(table.fence(held, "w").cell, "w").cell == table.fence(held, "w").cell
    assert table.purge(table.purge(held).cell) == (table.purge(held).cell, False, Effect.NONE)
    if held is not UNREADABLE:
        leased = table.lease(held, "r")
        assert table.lease(leased.cell, "r") == (leased.cell, leased.result, Effect.NONE)
    for token, entry, step in publishes(held):
        assert table.publish(step.cell, token, entry).cell == step.cell


@pytest.mark.parametrize("held", CELLS)
def test_a_publish_never_leaves_anything_older_than_itself(held: Cell) -> None:
    for _, entry, step in publishes(held):
        if entry is not None and isinstance(step.cell, Entry):
            both_unversioned = step.cell.version == entry.version == UNVERSIONED
            assert step.cell.version >= entry.version
            assert both_unversioned is (UNVERSIONED in {step.cell.version, entry.version})
            assert not both_unversioned or step.cell.token == entry.token
        if entry is not None and isinstance(step.cell, Fence):
            assert step.cell.fence_version >= entry.version
        if entry is not None:
            assert not (isinstance(held, Lease) and isinstance(step.cell, Lease))
