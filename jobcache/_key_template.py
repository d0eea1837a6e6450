"""Templates of keys, such as `export:{export_id}`: different values make different keys.

Two rules see to that:

- Between two fields stands a mark. Otherwise `{a}{b}` would be the same for (1, 23) and (12, 3).
- In the values of several fields, each mark that stands in the template is escaped. Otherwise
  `{a}:{b}` would be the same for ("x:y", "z") and ("x", "y:z").

They hold for one template. `export:{a}` and `export:{a}:log` make the same key of "x:log" and "x".
"""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

Piece = tuple[str, str | None]
"""Literal text, and the name of the field after it; None at the end of a template."""

_NEVER_QUOTED = "-_.~"
"""The characters that `urllib.parse.quote` never escapes, whatever `safe` says."""


def parse(template: str) -> list[Piece]:
    """Return the pieces of a template.

    Raises:
        ValueError: it cannot be read, or different values could make the same key.
    """
    pieces: list[Piece] = []
    try:
        found = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the template {template!r} cannot be read: {error}") from error
    for literal, field, spec, conversion in found:
        if field is not None and (spec or conversion or not field.isidentifier()):
            raise ValueError(f"{{{field}}} in the template {template!r} is not just a name")
        if field is not None and pieces and not _has_mark(literal):
            raise ValueError(
                f"in the template {template!r}, put a character such as ':' between"
                f" {{{pieces[-1][1]}}} and {{{field}}}, or different values could have one key"
            )
        pieces.append((literal, field))
    return pieces


def escape(text: str, literals: Collection[str], plain: str = "") -> str:
    """Return `text` percent-encoded, so that no mark of the template is left in it.

    Args:
        text: of a value.
        literals: the characters of the literal text in the template.
        plain: characters that need not be encoded, unless they stand in the template.
    """
    quoted = quote(text, safe="".join(each for each in plain if each not in literals))
    for mark in _NEVER_QUOTED:
        if (mark in literals or mark not in plain) and mark in quoted:
            quoted = quoted.replace(mark, f"%{ord(mark):02X}")
    return quoted


class KeyTemplate:
    """Makes the keys of documents whose identity has these names.

    The value of a single name stands in the key as it is. Those of several are escaped.
    Rejected: escaping a single value, too. Users make such keys themselves, with f-strings, and
    would fence another key than the one that is read.

    Args:
        template: such as `export:{export_id}`.
        names: those that the template must contain.

    Raises:
        ValueError: the template has other fields, or not all of them; or different values could
            make the same key.
    """

    def __init__(self, template: str, names: Sequence[str]) -> None:
        pieces = parse(template)
        if {field for _, field in pieces if field is not None} != set(names):
            wanted = " and ".join(f"{{{name}}}" for name in names)
            raise ValueError(
                f"the key {template!r} must contain {wanted}, and no other fields: otherwise two"
                " documents would share a key"
            )
        self._template = template
        self._literals = frozenset("".join(literal for literal, _ in pieces))
        self._escapes = len(names) > 1

    def __call__(self, **values: object) -> str:
        """Return the key of the document with these values."""
        if self._escapes:
            texts = {name: escape(str(it), self._literals, "-_.~") for name, it in values.items()}
            return self._template.format_map(texts)
        return self._template.format_map(values)


def _has_mark(literal: str) -> bool:
    return any(not each.isalnum() and each != "%" for each in literal)
