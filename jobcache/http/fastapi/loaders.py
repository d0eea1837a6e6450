"""Loaders of polling routes: they get the parameters of the path, and nothing of a request."""

from __future__ import annotations

import inspect
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from fastapi.params import Depends
from starlette.routing import compile_path

if TYPE_CHECKING:
    from collections.abc import Callable

_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def path_parameters(path: str, load: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of a path and their types, which are those of the loader.

    Raises:
        TypeError: the loader's parameters are not those of the path.
    """
    names = compile_path(path)[2]
    signature, hints = inspect.signature(load), _hints(load)
    found = {}
    for name, parameter in signature.parameters.items():
        hint = hints.get(name, str)
        if isinstance(parameter.default, Depends) or any(
            isinstance(each, Depends) for each in get_args(hint)
        ):
            raise TypeError(
                f"`load` has a dependency, {name!r}: a load is shared by requests, and may outlive"
                " them. Let it open its own session (`jobcache.with_session`)."
            )
        if parameter.kind not in _BY_NAME:
            raise TypeError(f"`load` has {parameter}: it gets the parameters of the path by name")
        if name in names:
            found[name] = hint
        elif parameter.default is inspect.Parameter.empty:
            raise TypeError(f"`load` has a parameter {name!r}, which {path!r} does not have")
    missing = names.keys() - found
    if missing:
        raise TypeError(f"`load` has no parameter {min(missing)!r}, which {path!r} has")
    return found


def _hints(load: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a loader's parameters; its result may be known to type checkers only."""
    function: Any = load
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__annotations__"):
        function = type(function).__call__
    function = inspect.unwrap(function)
    annotations = {k: v for k, v in function.__annotations__.items() if k != "return"}
    holder = SimpleNamespace(__annotations__=annotations)
    return get_type_hints(holder, vars(inspect.getmodule(function)), include_extras=True)
