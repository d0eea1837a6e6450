"""The trigger on a real server: which changes it notifies of, and that names cannot break out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.devservers import PostgresServer
from jobcache._key_template import KeyTemplate
from jobcache.backends.postgres.payloads import (
    MOST_PAYLOADS,
    channel_of,
    decode,
    encode,
    notification_of,
)
from jobcache.backends.postgres.trigger import Trigger, trigger_sql
from jobcache.protocol.key import LONGEST_KEY

PREFIX = "trigger:"
END = "the end"
EXPORTS = "CREATE TABLE exports (id bigint PRIMARY KEY, state text, version bigint, body text)"


@pytest.fixture(scope="module")
def server_url(postgres: PostgresServer) -> Iterator[str]:
    postgres.create_database("triggers")
    yield postgres.url("triggers")
    postgres.drop_database("triggers")


class Table:
    """A connection that changes rows, and another one that hears of them."""

    def __init__(self, url: str, connection: Any) -> None:
        self.url = url
        self.connection = connection
        self.payloads: list[str] = []
        self.ended = asyncio.Event()

    def _receive(self, _: object, __: int, ___: str, payload: str) -> None:
        if payload == END:
            self.ended.set()
        else:
            self.payloads.append(payload)

    async def execute(self, *statements: str) -> None:
        """Run statements as Alembic's `op.execute` does."""
        engine = create_async_engine(self.url)
        async with engine.begin() as connection:
            for each in statements:
                await connection.execute(text(each))
        await engine.dispose()

    async def sent(self, statement: str, *arguments: Any, prefix: str = PREFIX) -> list[str]:
        """Run a statement, and return the payloads that it has sent."""
        listener = await asyncpg.connect(self.url.replace("+asyncpg", ""))
        try:
            self.payloads.clear()
            self.ended.clear()
            await listener.add_listener(channel_of(prefix), self._receive)
            if arguments:
                await self.connection.execute(statement, *arguments)
            else:
                await self.connection.execute(statement)
            await self.connection.execute("SELECT pg_notify($1, $2)", channel_of(prefix), END)
            async with asyncio.timeout(60):
                await self.ended.wait()
        finally:
            await listener.close()
        return list(self.payloads)

    async def changed(self, statement: str, *arguments: Any) -> set[str] | None:
        """Run a statement, and return the keys that it has notified of; None: anything."""
        found: set[str] = set()
        for payload in await self.sent(statement, *arguments):
            token, keys = decode(payload)
            assert token == ""
            if keys is None:
                return None
            assert not found.intersection(keys)
            found.update(keys)
        return found


@asynccontextmanager
async def table(url: str, definition: str, trigger: Trigger) -> AsyncIterator[Table]:
    """A new table with a trigger."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        made = Table(url, connection)
        await connection.execute(definition)
        await made.execute(*trigger.create)
        yield made
        await made.execute(*trigger.drop)
        left = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        assert await connection.fetchval(left) == 0
    finally:
        await connection.close()


async def test_each_kind_of_change_notifies_with_the_commit(server_url: str) -> None:
    trigger = trigger_sql("exports", "export:{id}", prefix=PREFIX)
    async with table(server_url, EXPORTS, trigger) as exports:
        assert await exports.changed("INSERT INTO exports VALUES (1), (2)") == {
            "export:1",
            "export:2",
        }
        assert await exports.changed("UPDATE exports SET state = 'a' WHERE id = 1") == {"export:1"}
        assert await exports.changed("UPDATE exports SET state = 'b' WHERE id = 9") == set()
        assert await exports.changed("UPDATE exports SET id = 3 WHERE id = 2") == {
            "export:2",
            "export:3",
        }
        assert await exports.changed(
            "INSERT INTO exports VALUES (3, 'c'), (4, 'c')"
            " ON CONFLICT (id) DO UPDATE SET state = 'c'"
        ) == {"export:3", "export:4"}
        assert await exports.changed("DELETE FROM exports WHERE id = 4") == {"export:4"}
        assert await exports.changed("BEGIN; UPDATE exports SET state = 'd'; ROLLBACK") == set()
        twice = "BEGIN; UPDATE exports SET state = '{}'; UPDATE exports SET state = '{}'; COMMIT"
        assert await exports.sent(twice) == encode("", ["export:1", "export:3"])
        assert await exports.changed("TRUNCATE exports") is None


async def test_a_key_is_notified_when_one_of_its_columns_changes(server_url: str) -> None:
    keys = {"export:{id}": (), "export:{id}:body": ("body", "state")}
    trigger = trigger_sql("exports", keys, prefix=PREFIX)
    async with table(server_url, EXPORTS, trigger) as exports:
        both = {"export:1", "export:1:body"}
        assert await exports.changed("INSERT INTO exports VALUES (1)") == {"export:1"}
        assert await exports.changed("UPDATE exports SET version = 5") == {"export:1"}
        assert await exports.changed("UPDATE exports SET body = 'b'") == both
        assert await exports.changed("UPDATE exports SET body = 'b'") == {"export:1"}
        assert await exports.changed("UPDATE exports SET body = NULL, state = 's'") == both
        moved = await exports.changed("UPDATE exports SET id = 2")
        assert moved == both | {"export:2", "export:2:body"}
        assert await exports.changed("DELETE FROM exports") == {"export:2", "export:2:body"}


async def test_a_version_that_a_statement_forgets_is_raised(server_url: str) -> None:
    trigger = trigger_sql("exports", "export:{id}", prefix=PREFIX, version="version")
    async with table(server_url, EXPORTS, trigger) as exports:
        await exports.connection.execute("INSERT INTO exports VALUES (1, 'a', 7)")
        for change, version in (
            ("state = 'b'", 8),
            ("version = version + 1", 9),
            ("version = 20", 20),
            ("state = 'c', version = 7", 21),  # saved from a form that was opened before
        ):
            await exports.connection.execute(f"UPDATE exports SET {change}")  # noqa: S608
            found = await exports.connection.fetchval("SELECT version FROM exports")
            assert found == version, change
        again = trigger_sql("exports", "export:{id}", prefix=PREFIX)
        await exports.execute(*again.create)  # without the version now
        await exports.connection.execute("UPDATE exports SET state = 'd'")
        assert await exports.connection.fetchval("SELECT version FROM exports") == 21


async def test_what_a_statement_notifies_of_is_not_repeated(server_url: str) -> None:
    """If it says so: for these keys, this namespace, and until the end of the transaction."""
    trigger = trigger_sql("exports", "export:{id}", prefix=PREFIX)
    async with table(server_url, EXPORTS, trigger) as exports:
        await exports.connection.execute("INSERT INTO exports VALUES (1), (2), (12)")
        write = (
            "UPDATE exports SET state = 'x' WHERE id = ANY($5)"
            " RETURNING $4, pg_notify($1, set_config($3, $2, true))"
        )
        mine = notification_of(channel_of(PREFIX), "w1", ["export:1", "export:12"])

        async def sent(*ids: int, setting: str = mine.setting) -> list[str]:
            return await exports.sent(write, mine.channel, mine.payload, setting, "", list(ids))

        assert await sent(1, 12) == [mine.payload]
        assert await sent(1, 2) == [mine.payload, *encode("", ["export:2"])]
        other = notification_of(channel_of("other:"), "w1", ["export:1"]).setting
        assert await sent(1, setting=other) == [mine.payload, *encode("", ["export:1"])]
        after = await exports.changed("UPDATE exports SET state = 'y' WHERE id = 1")
        assert after == {"export:1"}
        undone = (
            f"BEGIN; SAVEPOINT s; SELECT set_config('{mine.setting}', '{mine.payload}', true);"  # noqa: S608
            " ROLLBACK TO s; UPDATE exports SET state = 'z' WHERE id = 1; COMMIT"
        )
        assert await exports.changed(undone) == {"export:1"}


async def test_many_rows_are_batched_and_too_many_are_anything(server_url: str) -> None:
    trigger = trigger_sql("exports", "export:{id}", prefix=PREFIX)
    async with table(server_url, EXPORTS, trigger) as exports:
        some = await exports.sent("INSERT INTO exports SELECT generate_series(1, 2000)")
        expected = {f"export:{number}" for number in range(1, 2001)}
        assert {key for each in some for key in decode(each).keys or ()} == expected
        assert len(some) == len(encode("", sorted(expected))) > 1
        keys = [f"export:{number}" for number in range(10_000, 20_000)]
        most = next(n for n in range(9000, 10_000) if len(encode("", keys[: n + 1])) == 1)
        assert len(encode("", keys[:most])) == MOST_PAYLOADS
        for count, payloads in ((most, MOST_PAYLOADS), (most + 1, 1)):
            insert = f"INSERT INTO exports SELECT generate_series(10000, {9999 + count})"
            assert len(await exports.sent(insert)) == payloads
            await exports.connection.execute("DELETE FROM exports")


TEXTS = ["plain", "", "x:y", "a b%20", "50% / 50", "ünï→💥", "q'uo\"te", "\\x41", "l\nn", "-_.~"]


@pytest.mark.parametrize("template", ["doc:{owner}:{name}", "{owner}.{name}-x_{owner}", "{name}"])
async def test_keys_are_those_of_the_template_in_python(server_url: str, template: str) -> None:
    definition = "CREATE TABLE docs (owner text, name text)"
    names = [name for name in ("owner", "name") if f"{{{name}}}" in template]
    make = KeyTemplate(template, names)
    async with table(server_url, definition, trigger_sql("docs", template, prefix=PREFIX)) as docs:
        for value in TEXTS:
            row = {"owner": "ow:ner", "name": value}
            changed = await docs.changed("INSERT INTO docs VALUES ($1, $2)", *row.values())
            key = make(**{name: row[name] for name in names})
            assert changed == ({key} if key else None)
        # What cannot be in a payload, or in the cache.
        mark = await docs.changed("INSERT INTO docs VALUES ('a', $1)", "\x1f")
        assert mark == (None if len(names) == 1 else {make(owner="a", name="\x1f")})
        long = "x" * (LONGEST_KEY + 1)
        assert await docs.changed("INSERT INTO docs VALUES ('a', $1)", long) == set()
        assert await docs.changed("INSERT INTO docs VALUES ('a', NULL)") == set()


async def test_names_and_templates_cannot_break_out(server_url: str) -> None:
    nasty = "x'; DROP TABLE victim; --\\' $jobcache$ \" "
    name = 'e"x; DROP TABLE victim; --'
    quoted = '"' + name.replace('"', '""') + '"'
    trigger = trigger_sql(
        name, {nasty + ":{id}": (name,)}, prefix=nasty, schema="public", version="version"
    )
    definition = (
        f"CREATE TABLE victim (); CREATE TABLE {quoted} (id uuid, version int, {quoted} text)"
    )
    async with table(server_url, definition, trigger) as found:
        assert await found.connection.fetchval("SELECT to_regclass('victim') IS NOT NULL")
        number = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
        insert = f"INSERT INTO {quoted} VALUES ('{number.upper()}', 1, 'x')"  # noqa: S608
        assert await found.sent(insert, prefix=nasty) == encode("", [f"{nasty}:{number}"])
        await found.connection.execute("DROP TABLE victim")


def test_what_cannot_be_a_trigger() -> None:
    for keys in ({}, "", "export:{id!r}", "export:{a}{b}", "export:\0{id}"):
        with pytest.raises(ValueError, match=r"key|template|NUL"):
            trigger_sql("exports", keys)
    for name in ("", "x" * 64, "a\0b"):
        with pytest.raises(ValueError, match="cannot be a name"):
            trigger_sql(name, "export:{id}")
    long = [
        part
        for table in ("é" * 31, "e" * 63)
        for each in trigger_sql(table, "export:{id}").create
        for part in each.split()
        if part.startswith("jobcache_")
    ]
    assert all(len(each.removesuffix("()")) <= 63 for each in long)
