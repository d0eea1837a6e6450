"""The cache key of a path: a template that is filled with the parameters of the path."""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping


class PathKey:
    """Makes the keys of documents from the parameters of their path.

    If there are several, `:` and other special characters of their values are percent-encoded, as
    `jobcache.orm` does. Otherwise `("a:b", "c")` and `("a", "b:c")` could have the same key.

    Args:
        template: such as `export:{export_id}`.
        names: the parameters of the path, which the template must contain.

    Raises:
        ValueError: the template has other fields, or not all of them.
    """

    def __init__(self, template: str, names: Mapping[str, object]) -> None:
        parts = [*Formatter().parse(template)]
        fields = [name for _, name, _, _ in parts if name is not None]
        if set(fields) != set(names) or any(form or conversion for *_, form, conversion in parts):
            wanted = " and ".join(f"{{{name}}}" for name in names)
            raise ValueError(
                f"the key {template!r} must contain {wanted}, and no other fields: otherwise two"
                " documents would share a key"
            )
        self._template = template
        self._quotes = len(names) > 1

    def __call__(self, **values: object) -> str:
        """Return the key of a document."""
        if self._quotes:
            values = {name: quote(str(value), safe="") for name, value in values.items()}
        return self._template.format_map(values)
