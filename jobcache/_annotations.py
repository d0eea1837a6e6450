"""Reads annotations of functions while the program runs."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints


class Unresolved:
    """In place of an annotation with a name that only type checkers know."""


UNRESOLVED = Unresolved()


def resolve(annotation: object, function: object) -> object:
    """Return an annotation of a function, without quotes; `UNRESOLVED` if a name is unknown."""
    if not isinstance(annotation, str):
        return annotation
    names = getattr(inspect.unwrap(function), "__globals__", {}) if callable(function) else {}
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(holder, names, include_extras=True)["it"]
    except Exception:  # noqa: BLE001 - whatever an expression may raise
        return UNRESOLVED


def plain(annotation: Any) -> Any:  # noqa: ANN401 - any annotation
    """Return an annotation without `Annotated`, `NewType`, and names of types."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def named(annotation: object) -> str:
    """Return the name of a type, for errors."""
    return annotation.__name__ if type(annotation) is type else str(annotation)
