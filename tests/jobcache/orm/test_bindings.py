"""What can be bound: versions in the order of the commits, and keys that do not change."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    String,
    Table,
    Uuid,
    delete,
    event,
)
from sqlalchemy.dialects.postgresql import dialect as postgresql
from sqlalchemy.dialects.sqlite import dialect as sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import registry, relationship, sessionmaker

from jobcache import Document
from jobcache.errors import WriteMisuse
from jobcache.orm.sqlalchemy import Binding, BindingError, CoherentSession, count_from_clock
from jobcache.orm.sqlalchemy.tracker import check_delete
from jobcache.sync import JobCache
from tests.jobcache.orm.exports import EXPORTS, PARTS, Export, Part
from tests.jobcache.orm.reading import hit, poll


def mapped(*columns: Column[Any], version: str | None, **options: Any) -> type[Any]:
    """Return a class with these columns; `id` is its primary key unless another column is."""
    kind = type("Thing", (), {})
    maps = registry()
    if not any(column.primary_key for column in columns):
        columns = (Column("id", Integer, primary_key=True), *columns)
    table = Table("things", maps.metadata, *columns)
    if version is not None:
        options["version_id_col"] = table.c[version]
    maps.map_imperatively(kind, table, **options)
    kind.metadata = maps.metadata
    return kind


def no_document(_: object) -> Document:
    raise AssertionError


def bind(*columns: Column[Any], version: str | None, key: str = "{id}", **options: Any) -> object:
    kind = mapped(*columns, version=version, **options)
    return Binding(kind, key=key, document=no_document)


def now(_: object = None) -> int:
    return time.time_ns() // 1000


def integer() -> Column[Any]:
    return Column("version", BigInteger)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no mapped class": (lambda: Binding(dict, key="{id}", document=no_document), "not a mapped"),
    "no version": (lambda: bind(version=None), "has no version"),
    "xmin": (lambda: bind(Column("xmin", Integer), version="xmin"), "order of the commits"),
    "a system column": (lambda: bind(Column("v", Integer, system=True), version="v"), "commits"),
    "a time": (lambda: bind(Column("at", DateTime), version="at"), "must be an integer"),
    "a time as a generator": (
        lambda: bind(
            Column("at", DateTime), version="at", version_id_generator=lambda _: datetime.now(UTC)
        ),
        "must be an integer",
    ),
    "milliseconds": (
        lambda: bind(integer(), version="version", version_id_generator=now),
        "does not count",
    ),
    "a random value": (
        lambda: bind(Column("v", Uuid), version="v", version_id_generator=lambda _: uuid.uuid4()),
        "must be an integer",
    ),
    "a generator that fails": (
        lambda: bind(integer(), version="version", version_id_generator=lambda v: v + 1),
        "does not count",
    ),
    "a version of the server": (
        lambda: bind(integer(), version="version", version_id_generator=False),
        "does not count",
    ),
    "too small a column": (
        lambda: bind(
            Column("version", Integer), version="version", version_id_generator=count_from_clock
        ),
        "BigInteger",
    ),
    "a key that may change": (
        lambda: bind(integer(), Column("name", String), version="version", key="{name}"),
        r"primary key \(\{id\}\)",
    ),
    "a key of a part": (
        lambda: Binding(Part, key="part:{name}", document=no_document),
        r"\(\{export_id\}, \{name\}\)",
    ),
    "a key without a name": (lambda: Binding(Export, key="x", document=no_document), "primary key"),
    "a key with a format": (
        lambda: Binding(Export, key="{id:03}", document=no_document),
        "primary key",
    ),
    "a broken key": (lambda: Binding(Export, key="{id", document=no_document), "cannot be read"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_coherent_is_refused(how: str) -> None:
    make, message = REFUSED[how]
    with pytest.raises(BindingError, match=message):
        make()


def test_keys_are_made_from_primary_keys() -> None:
    assert EXPORTS.key(7) == "export:7"
    assert PARTS.key(7, "a") == "part:7:a"
    assert PARTS.key(7, "a:b") != PARTS.key("7:a", "b")
    with pytest.raises(TypeError, match="needs 1 values, and was given 2"):
        EXPORTS.key(7, 8)


def test_versions_that_begin_with_the_time() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= count_from_clock(None) <= time.time_ns() // 1_000_000
    assert count_from_clock(7) == 8


KEYS: dict[str, tuple[Callable[[], type[Any]], list[str]]] = {
    # and the databases on which another row may get the key of a deleted one
    "numbers": (lambda: mapped(integer(), version="version"), ["sqlite"]),
    "AUTOINCREMENT": (lambda: Export, []),
    "UUIDs": (
        lambda: mapped(Column("id", Uuid, primary_key=True), integer(), version="version"),
        [],
    ),
    "names": (
        lambda: mapped(Column("id", String, primary_key=True), integer(), version="version"),
        ["sqlite", "postgresql"],
    ),
    "names, with versions from the clock": (lambda: Part, []),
}


@pytest.mark.parametrize("which", KEYS)
def test_a_delete_is_refused_if_another_row_may_be_taken_for_the_deleted_one(which: str) -> None:
    make, expected = KEYS[which]
    mapper = make().__mapper__
    for dialect in (sqlite(), postgresql()):
        with (
            pytest.raises(WriteMisuse, match="count_from_clock")
            if dialect.name in expected
            else nullcontext()
        ):
            check_delete(mapper, dialect)


def test_a_session_refuses_such_a_delete(blocking_engine: Engine, blocking_cache: JobCache) -> None:
    thing = mapped(Column("id", String, primary_key=True), integer(), version="version")
    thing.__mapper__.local_table.metadata.create_all(blocking_engine)
    things = Binding(thing, key="{id}", document=lambda row: Document(row.version, "", b""))
    with CoherentSession(blocking_engine, cache=blocking_cache, bindings=[things]) as session:
        made = thing()
        made.id = "a"
        session.add(made)
        session.commit()
        with pytest.raises(WriteMisuse, match="same versions"):
            session.execute(delete(thing).returning(thing.id))
        session.delete(made)
        with pytest.raises(WriteMisuse, match="same versions"):
            session.commit()
        session.rollback()
        assert session.get(thing, "a") is made


async def test_a_primary_key_that_is_used_again_has_higher_versions(
    sessions: async_sessionmaker[AsyncSession], engine: AsyncEngine
) -> None:
    load = PARTS.loader(async_sessionmaker(engine))
    versions = []
    for _ in range(2):
        async with sessions.begin() as session:
            session.add(Export(id=1, parts=[Part(name="a")]))
        async with sessions.begin() as session:
            (await session.get_one(Part, (1, "a"))).size += 1
        document = await load(1, "a")()
        assert document is not None
        versions.append(document.version)
        async with sessions.begin() as session:
            await session.delete(await session.get_one(Export, 1))
    assert versions[0] < versions[1]


async def test_a_primary_key_and_a_version_cannot_be_set(
    sessions: async_sessionmaker[AsyncSession], cache: Any, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        session.add(Export(id=1))
    for name, message in (("id", "primary key of Export"), ("version", "version of Export")):
        with pytest.raises(WriteMisuse, match=message):
            async with sessions.begin() as session:
                setattr(await session.get_one(Export, 1), name, 5)
        assert await poll(cache, engine) == hit(1)


async def test_a_class_without_a_binding_in_this_session_is_left_alone(
    engine: AsyncEngine, cache: Any
) -> None:
    sessions = async_sessionmaker(
        engine, sync_session_class=CoherentSession, cache=cache, bindings=[PARTS]
    )
    async with sessions.begin() as session:
        session.add(Export(id=1))
    async with async_sessionmaker(engine).begin() as session:
        (await session.get_one(Export, 1)).percent = 1
    assert cache.statistics.fences == 0


def test_two_bindings_of_a_class_and_a_subclass() -> None:
    """Each is published under its keys."""
    maps = registry()
    table = Table(
        "animals",
        maps.metadata,
        Column("id", Integer, primary_key=True),
        integer(),
        Column("kind", String),
    )
    animal = type("Animal", (), {})
    maps.map_imperatively(
        animal, table, version_id_col=table.c.version, polymorphic_on=table.c.kind
    )
    cat = type("Cat", (animal,), {})
    maps.map_imperatively(cat, inherits=animal, polymorphic_identity="cat")
    bindings = [Binding(animal, key=f"{name}:{{id}}", document=no_document) for name in "ab"]
    session = CoherentSession(cache=None, bindings=bindings)
    assert session.tracker.bindings_of(cat.__mapper__) == bindings


def test_a_relationship_that_updates_rows_after_the_flush_is_refused(
    blocking_engine: Engine, blocking_cache: JobCache
) -> None:
    maps = registry()
    table = Table(
        "nodes",
        maps.metadata,
        Column("id", Integer, primary_key=True),
        integer(),
        Column("next_id", ForeignKey("nodes.id")),
    )
    node = type("Node", (), {})
    following = relationship(node, remote_side=[table.c.id], post_update=True)
    maps.map_imperatively(
        node, table, version_id_col=table.c.version, properties={"following": following}
    )
    maps.metadata.create_all(blocking_engine)
    nodes = Binding(node, key="node:{id}", document=no_document)
    with CoherentSession(blocking_engine, cache=blocking_cache, bindings=[nodes]) as session:
        session.add(node())
        with pytest.raises(WriteMisuse, match=r"Node\.following has post_update"):
            session.flush()


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that are executed."""
    executed: list[str] = []

    def collect(_: object, __: object, statement: str, *more: object) -> None:
        executed.append(statement)

    event.listen(engine, "before_cursor_execute", collect)
    yield executed
    event.remove(engine, "before_cursor_execute", collect)


async def test_many_rows_are_loaded_with_one_statement(
    sessions: async_sessionmaker[AsyncSession], cache: Any, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        parts = [Part(name=name, size=ord(name)) for name in "abc"]
        session.add_all([Export(id=1, parts=parts), Export(id=2, percent=2), Export(id=3)])
    await cache.invalidate_all()
    load = EXPORTS.many_loader(async_sessionmaker(engine))
    await cache.read("export:3", EXPORTS.loader(sessions)(3))
    ids = [1, 2, 3, 4]
    with statements(engine.sync_engine) as executed:
        results = await cache.read_many(map(EXPORTS.key, ids), load(ids))
    assert len(executed) == 1
    assert [results[key].missing for key in results] == [False, False, False, True]
    assert results["export:2"].body == b'{"percent": 2, "price": "0.00"}'
    names = [(1, name) for name in "abd"]
    load_parts = PARTS.many_loader(async_sessionmaker(engine))
    with statements(engine.sync_engine) as executed:
        found = await cache.read_many([PARTS.key(*each) for each in names], load_parts(names))
    assert len(executed) == 1
    assert [each.missing for each in found.values()] == [False, False, True]
    assert found["part:1:b"].body == b'{"size": 98}'


def test_many_rows_are_loaded_with_one_statement_in_threads(
    blocking_sessions: sessionmaker[CoherentSession],
    blocking_cache: JobCache,
    blocking_engine: Engine,
) -> None:
    with blocking_sessions.begin() as session:
        session.add_all([Export(id=1), Export(id=2)])
    blocking_cache.invalidate_all()
    load = EXPORTS.many_loader(sessionmaker(blocking_engine))
    with statements(blocking_engine) as executed:
        results = blocking_cache.read_many(map(EXPORTS.key, [1, 2, 3]), load([1, 2, 3]))
    assert len(executed) == 1
    assert [each.version for each in results.values()] == [1, 1, 0]


def test_each_row_is_found_that_the_database_takes_for_the_wanted_one(
    blocking_engine: Engine,
) -> None:
    """Otherwise readers would be told that there is no such row."""
    columns = Column("name", String(collation="NOCASE"), primary_key=True), integer()
    kind = mapped(*columns, version="version")
    binding = Binding(kind, key="{name}", document=lambda row: Document(row.version, "", b""))
    kind.metadata.create_all(blocking_engine)
    with sessionmaker(blocking_engine).begin() as session:
        row = kind()
        row.name = "a"
        session.add(row)
    load = binding.many_loader(sessionmaker(blocking_engine))
    assert set(load(["A", "b"])(["A", "b"])) >= {"A"}


@pytest.mark.parametrize(("wanted", "found"), [("A", "a"), ("07", 7)])
def test_a_row_that_was_found_by_another_spelling_is_served_and_not_stored(
    blocking_engine: Engine, blocking_cache: JobCache, wanted: str, found: object
) -> None:
    """A commit fences the key of the row, and not those of all spellings."""
    kind_of_key = Integer() if found == 7 else String(collation="NOCASE")
    column = Column("name", kind_of_key, primary_key=True)
    size = Column("size", Integer, default=0)
    kind = mapped(column, size, integer(), version="version")
    binding = Binding(kind, key="{name}", document=lambda row: Document(row.version, "", b""))
    kind.metadata.create_all(blocking_engine)
    sessions = sessionmaker(
        blocking_engine, class_=CoherentSession, cache=blocking_cache, bindings=[binding]
    )
    with sessions.begin() as session:
        row = kind()
        row.name = found
        session.add(row)
    load, load_many = binding.loader(sessions), binding.many_loader(sessions)
    for _ in range(2):
        version = blocking_cache.read(str(found), load(found)).version
        assert blocking_cache.read(wanted, load(wanted)).version == version
        many = blocking_cache.read_many([wanted], load_many([wanted]))
        assert many[wanted].version == version
        with sessions.begin() as session:
            session.get_one(kind, found).size += 1


async def test_a_commit_reads_many_changed_rows_with_one_statement(
    sessions: async_sessionmaker[AsyncSession], cache: Any, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        exports = [Export(id=each) for each in range(1, 600)]
        session.add_all(exports)
        await session.flush()
        with statements(engine.sync_engine) as executed:
            await session.commit()
    assert len(executed) == 2, "at most 500 rows in one statement"
    assert await poll(cache, engine, 599) == hit(1)
