"""A template that makes the key of a row from its primary key.

Other columns are refused, because their values can change: a write would then publish under the new
key only, and the old key would keep its entry.
"""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING
from urllib.parse import quote

from jobcache.orm.sqlalchemy.versions import BindingError

if TYPE_CHECKING:
    from collections.abc import Sequence


class KeyTemplate:
    """Makes keys such as `export:7` from a template such as `export:{id}`.

    If the primary key has several columns, `:` and other special characters of their values are
    percent-encoded. Otherwise `("a:b", "c")` and `("a", "b:c")` could have the same key.

    Args:
        template: names each attribute of the primary key in braces, once.
        attributes: the attributes of the primary key, in their order.

    Raises:
        BindingError: the template names other attributes, or not all of these.
    """

    def __init__(self, template: str, attributes: Sequence[str]) -> None:
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise BindingError(f"the key {template!r} is no template: {error}") from None
        named = [name for _, name, _, _ in parts if name is not None]
        if sorted(named) != sorted(attributes) or any(
            conversion or specification for _, _, specification, conversion in parts
        ):
            expected = ", ".join(f"{{{name}}}" for name in attributes)
            raise BindingError(
                f"the key {template!r} must name the primary key ({expected}), each of its"
                " attributes once and no others"
            )
        self._template = template
        self._attributes = tuple(attributes)

    def key(self, identity: Sequence[object]) -> str:
        """Return the key of the row with this primary key.

        Raises:
            TypeError: the primary key has another number of values.
        """
        if len(identity) != len(self._attributes):
            raise TypeError(
                f"the key {self._template!r} needs {len(self._attributes)} values, and was given"
                f" {len(identity)}"
            )
        values = [str(value) for value in identity]
        if len(self._attributes) > 1:
            values = [quote(value, safe="") for value in values]
        return self._template.format_map(dict(zip(self._attributes, values, strict=True)))
