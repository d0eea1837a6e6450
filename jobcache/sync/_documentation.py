"""Docstrings of the asynchronous cache, for its synchronous counterparts."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def documented_as(source: Callable[..., object]) -> Callable[[T], T]:
    """Append the docstring of the asynchronous method or class to that of the decorated one."""

    def document(method: T) -> T:
        added = re.sub(r"\b(async|await) ", "", inspect.getdoc(source) or "")
        method.__doc__ = "\n\n".join(filter(None, (inspect.getdoc(method), added)))
        return method

    return document
