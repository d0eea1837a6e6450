"""A trigger for tables that others change: manual SQL, other services, Django's admin.

It notifies of the keys of changed rows, as the statements of the cache's writers do, within the
transaction that changes them. Rows that are inserted, updated or deleted count, those with another
key before and after with both keys, and a TRUNCATE, after which anything may have changed.

It can also raise the version of a row that a statement changes without doing so. Otherwise clients
that poll with a validator would be told that nothing has changed, and nobody who waits would be
answered: to them, equal versions are equal documents.

A statement is the unit: its changed rows are notified together, in as few payloads as possible.

Rejected: one trigger for each row. A statement that changes a million rows would queue a million
notifications, which every process that listens has to read.

Rejected: looking for pg_notify in the text of the statement, so as not to repeat what it sends. A
comment would be enough to hide a change. A statement that notifies says so in a setting of its
transaction instead, and names the keys (`setting_of`).

The texts need no parameters, and have no colon before a word: Alembic's `op.execute` would take
`:word` for a parameter.
"""

# ruff: noqa: S608 - each name and each text is quoted

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

from jobcache._key_template import parse
from jobcache.backends.postgres.payloads import (
    LONGEST_PAYLOAD,
    MARK,
    MOST_PAYLOADS,
    channel_of,
    setting_of,
)
from jobcache.protocol.key import LONGEST_KEY

Keys: TypeAlias = str | Mapping[str, Collection[str]]

_LONGEST_NAME = 63  # bytes
_OPERATIONS = {
    "insert": "REFERENCING NEW TABLE AS new_rows ",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows ",
    "delete": "REFERENCING OLD TABLE AS old_rows ",
    "truncate": "",
}
_PLAIN = "_.~-"  # the hyphen last, where it has no meaning in a regular expression


class Trigger(NamedTuple):
    """The statements that install and remove a trigger. Each can be executed by itself.

    Attributes:
        create: installs it, or replaces it by this one.
        drop: removes it, if it exists.
    """

    create: tuple[str, ...]
    drop: tuple[str, ...]


def trigger_sql(
    table: str, keys: Keys, *, prefix: str = "", schema: str = "", version: str = ""
) -> Trigger:
    """Return the statements for a trigger that notifies of the changed rows of a table.

    Args:
        table: its name.
        keys: the template of the keys, with columns as its fields, such as `export:{id}`. Several
            templates are a mapping: to the columns whose change counts, or to none if any does.
            The values of columns must be integers, texts or UUIDs: others look different in Python.
        prefix: the namespace, as in `CacheSettings.prefix`.
        schema: the table's schema; by default the search path finds it.
        version: a column that is raised by one where an UPDATE leaves it as it is, or lowers it.

    Raises:
        ValueError: a template cannot be used, or a name is empty or too long.
    """
    templates = {keys: ()} if isinstance(keys, str) else keys
    if not templates:
        raise ValueError(f"the trigger of the table {table!r} needs a key")
    channel = channel_of(prefix)
    home = _identifier(schema) + "." if schema else ""
    qualified = home + _identifier(table)

    named = {each: _name(each, table, channel) for each in (*_OPERATIONS, "notify", "version")}
    notifier, raiser = (home + named[each] for each in ("notify", "version"))
    create = [_notifier(notifier, channel, templates)]
    create += [
        f"CREATE OR REPLACE TRIGGER {named[each]} AFTER {each.upper()} ON {qualified}\n"
        f"    {referencing}FOR EACH STATEMENT EXECUTE FUNCTION {notifier}()"
        for each, referencing in _OPERATIONS.items()
    ]
    drop = [f"DROP TRIGGER IF EXISTS {named[each]} ON {qualified}" for each in _OPERATIONS]
    remove_raiser = (
        f"DROP TRIGGER IF EXISTS {named['version']} ON {qualified}",
        f"DROP FUNCTION IF EXISTS {raiser}()",
    )
    if version:
        column = _identifier(version)
        create.append(_raiser(raiser, column))
        create.append(
            f"CREATE OR REPLACE TRIGGER {named['version']} BEFORE UPDATE ON {qualified}\n"
            f"    FOR EACH ROW WHEN (NEW.{column} <= OLD.{column})\n"
            f"    EXECUTE FUNCTION {raiser}()"
        )
    else:
        create.extend(remove_raiser)
    drop += [f"DROP FUNCTION IF EXISTS {notifier}()", *remove_raiser]
    return Trigger(tuple(create), tuple(drop))


def _name(purpose: str, table: str, channel: str) -> str:
    """Return the name of a function or trigger: one for each table and namespace."""
    distinct = hashlib.sha256(f"{table}\0{channel}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9_]", "_", table.lower())[:32]
    return f"jobcache_{readable}_{distinct}_{purpose}"


def _notifier(name: str, channel: str, templates: Mapping[str, Collection[str]]) -> str:
    inserted, updated, deleted = [], [], []
    for template, columns in templates.items():
        key = _key(template)
        named = [f"r.{_identifier(column)}" for column in columns]
        exists = f" WHERE num_nonnulls({', '.join(named)}) > 0" if named else ""
        inserted.append(f"SELECT {key} FROM new_rows AS r{exists}")
        deleted.append(f"SELECT {key} FROM old_rows AS r{exists}")
        if named:
            compared = ", ".join([key, *(f"{each}::text" for each in named)])
            before, after = (f"SELECT {compared} FROM {it}_rows AS r" for it in ("old", "new"))
            names = ", ".join(["key", *(f"c{number}" for number in range(len(named)))])
            updated += [
                f"SELECT d.key FROM ({one} EXCEPT {other}) AS d ({names})"
                for one, other in ((before, after), (after, before))
            ]
        else:
            updated += [f"SELECT {key} FROM {it}_rows AS r" for it in ("old", "new")]

    def gather(selects: list[str]) -> str:
        union = "\n            UNION ".join(selects)
        return (
            "SELECT array_agg(found.key) INTO changed FROM (\n"
            f"            {union}\n        ) AS found (key) WHERE found.key IS NOT NULL;"
        )

    body = f"""
DECLARE
    mark CONSTANT text := chr({ord(MARK)});
    -- What statements of this transaction have notified of, and say so.
    notified CONSTANT text := coalesce(current_setting('{setting_of(channel)}', true), '') || mark;
    changed text[];
    one text;
    payload text := '';
    payloads text[] := ARRAY[]::text[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        {gather(inserted)}
    ELSIF TG_OP = 'UPDATE' THEN
        {gather(updated)}
    ELSIF TG_OP = 'DELETE' THEN
        {gather(deleted)}
    ELSE
        changed := ARRAY[''];
    END IF;
    FOREACH one IN ARRAY coalesce(changed, ARRAY[]::text[]) LOOP
        IF one <> '' AND position(mark IN one) = 0 THEN
            CONTINUE WHEN octet_length(one) > {LONGEST_KEY}
                OR position(mark || one || mark IN notified) > 0;
            IF payload = '' THEN
                payload := mark || mark || one;
                CONTINUE;
            ELSIF octet_length(payload) + 1 + octet_length(one) <= {LONGEST_PAYLOAD} THEN
                payload := payload || mark || one;
                CONTINUE;
            ELSIF cardinality(payloads) + 1 < {MOST_PAYLOADS} THEN
                payloads := payloads || payload;
                payload := mark || mark || one;
                CONTINUE;
            END IF;
        END IF;
        payload := mark || mark; -- anything may have changed
        payloads := ARRAY[]::text[];
        EXIT;
    END LOOP;
    IF payload <> '' THEN
        PERFORM pg_notify({_literal(channel)}, each) FROM unnest(payloads || payload) AS each;
    END IF;
    RETURN NULL;
END
"""
    return _function(name, body)


def _raiser(name: str, column: str) -> str:
    body = f"""
BEGIN
    NEW.{column} := OLD.{column} + 1;
    RETURN NEW;
END
"""
    return _function(name, body)


def _function(name: str, body: str) -> str:
    tag, number = "$jobcache$", 0
    while tag in body:
        number += 1
        tag = f"$jobcache{number}$"
    return (
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger\n"
        f"    LANGUAGE plpgsql SET search_path = pg_catalog AS {tag}{body}{tag}"
    )


def _key(template: str) -> str:
    """Return the expression that makes the key of the row `r`, as `KeyTemplate` does."""
    pieces = parse(template)
    literals = {each for literal, _ in pieces for each in literal}
    escapes = len({field for _, field in pieces if field is not None}) > 1
    parts = []
    for literal, field in pieces:
        if literal:
            parts.append(_literal(literal))
        if field is not None:
            value = f"r.{_identifier(field)}::text"
            parts.append(_escaped(value, literals) if escapes else value)
    if not parts:
        raise ValueError("the template of the keys is empty")
    return " || ".join(parts)


def _escaped(value: str, literals: Collection[str]) -> str:
    """Return the expression that percent-encodes a value, as `escape` does."""
    plain = "".join(each for each in _PLAIN if each not in literals)
    return (
        f"CASE WHEN {value} IS NOT NULL THEN (SELECT coalesce(string_agg("
        f"CASE WHEN c ~ '^[A-Za-z0-9{plain}]$' THEN c"
        " ELSE upper(regexp_replace(encode(convert_to(c, 'UTF8'), 'hex'), '(..)', '%\\1', 'g')) END"
        ", '' ORDER BY n), '')"
        f" FROM regexp_split_to_table({value}, '') WITH ORDINALITY AS s (c, n)) END"
    )


def _literal(value: str) -> str:
    """Return an expression for a string, in which no word follows a colon."""
    if "\0" in value:
        raise ValueError(f"{value!r} contains a NUL, which PostgreSQL cannot store")
    quoted = value.replace("'", "''")
    escapes = "E" if "\\" in value else ""
    quoted = quoted.replace("\\", "\\\\")
    return re.sub(r":(?=\w)", f":' || {escapes}'", f"{escapes}'{quoted}'")


def _identifier(name: str) -> str:
    """Return a quoted name."""
    if not name or "\0" in name or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"{name!r} cannot be a name in PostgreSQL")
    return '"' + name.replace('"', '""') + '"'
