"""Keys of calls: `"report:{report_id}"`, filled in from the arguments of a function.

Two calls with different arguments must never have one key:

- Each parameter in a template has one type, by its annotation, and a value of another type is
  refused. Otherwise 7 and "7" would have one key.
- Characters that stand between parameters are escaped in values: "a:b" cannot look like two values.

A parameter that is not in the template must not change the result: a caller would get the result of
another. So each of them is refused when the function is decorated, unless it is the object of a
method, a request or a database session, or is named in `ignore`.
"""

from __future__ import annotations

import inspect
from datetime import UTC, date, datetime
from enum import Enum
from inspect import Parameter
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from jobcache._annotations import UNRESOLVED, named, plain, resolve
from jobcache._key_template import Piece, escape, parse
from jobcache.errors import InvalidKey
from jobcache.loaders import is_session_type

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_REQUESTS = {"starlette": "HTTPConnection", "django": "HttpRequest"}
"""By library, the base class of its requests."""
_OBJECTS = ("self", "cls")
_PLAIN = "-_.~@"
"""What is not escaped in values, unless it stands in a template."""
_NONE = "%none"
"""No value looks like it: two hexadecimal digits follow each % there."""
_ALLOWED = "str, int, bool, UUID, date, datetime, an enumeration, or one of these or None"


def fill_in(
    function: Callable[..., Any], templates: Sequence[str], ignore: Collection[str]
) -> Callable[..., tuple[str, ...]]:
    """Return a function that takes the arguments of `function`, and fills in the templates.

    It raises a `TypeError` for arguments that `function` would not take.

    Args:
        function: whose arguments fill in the templates.
        templates: the first one is of a key, and must have all parameters.
        ignore: the names of parameters that do not change the result.

    Raises:
        TypeError: a template does not fit the function.
    """
    name = getattr(function, "__qualname__", repr(function))
    parameters = inspect.signature(function).parameters
    for each in ignore:
        if each not in parameters:
            raise TypeError(f"{name} has no parameter {each!r} that could be ignored")
    parsed = [_parse(template, name, parameters) for template in templates]
    used = {field for pieces in parsed for _, field in pieces if field}
    in_key = {field for _, field in parsed[0] if field}
    for parameter in parameters.values():
        if parameter.name not in in_key and parameter.name not in ignore:
            _require_excluded(parameter, function, templates[0])
    literals = frozenset("".join(literal for pieces in parsed for literal, _ in pieces))
    texts = {field: _Text(parameters[field], function, literals) for field in used}
    filled = [_Filled(pieces, texts, [*parameters]) for pieces in parsed]
    first = next(iter(parameters.values()), None)
    of_class = first is not None and first.name == "cls" and first.annotation is Parameter.empty
    kind = _ClassArguments if of_class else _Arguments
    return kind(name, parameters, filled)


class _Filled:
    """A template to fill in.

    Attributes:
        first: the text before the first parameter.
        fields: of each parameter in the template: its place among the parameters, how its values
            become text, and the text after it.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        texts: Mapping[str, _Text],
        places: Sequence[str],
    ) -> None:
        literals = [literal for literal, _ in pieces] + [""]
        names = [field for _, field in pieces if field is not None]
        self.first = literals[0]
        self.fields = [
            (places.index(name), texts[name], literals[number])
            for number, name in enumerate(names, start=1)
        ]

    def filled(self, values: tuple[object, ...]) -> str:
        """Return the text of the template with these values."""
        filled = self.first
        for place, text, after in self.fields:
            filled += text(values[place]) + after
        return filled


class _Arguments:
    """Takes the arguments of a function, and fills in its templates.

    Binding arguments to a signature takes longer than finding an entry. So that is done only for
    functions that take any number of arguments, and to raise the error for wrong ones. No code is
    generated, as `dataclasses` does it: this library evaluates no text.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, Parameter], templates: Sequence[_Filled]
    ) -> None:
        self._name = name
        self._templates = templates
        self._parameters = parameters
        self._signature = inspect.Signature([*parameters.values()])
        each = [*parameters.values()]
        kinds = {parameter.kind for parameter in each}
        self._any_number = not kinds.isdisjoint({Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD})
        by_position = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
        self._positions = [it.name for it in each if it.kind in by_position]
        self._names = {it.name for it in each if it.kind is not Parameter.POSITIONAL_ONLY}
        self._defaults = {it.name: it.default for it in each if it.default is not Parameter.empty}
        # By the number of arguments given by position: the defaults of the other parameters.
        self._others: dict[int, tuple[object, ...]] = {}
        for count in range(0 if self._any_number else len(self._positions) + 1):
            others = [it.default for it in each[count:]]
            if all(default is not Parameter.empty for default in others):
                self._others[count] = tuple(others)

    def __call__(self, *args: object, **kwargs: object) -> tuple[str, ...]:
        others = None if kwargs else self._others.get(len(args))
        values = self._values(args, kwargs) if others is None else args + others
        if len(self._templates) == 1:
            return (self._templates[0].filled(values),)  # every hit without tags comes through here
        return tuple([template.filled(values) for template in self._templates])

    def _values(self, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[object, ...]:
        """Return the values of all parameters.

        Raises:
            TypeError: the function does not take these arguments.
        """
        given = self._defaults | dict(zip(self._positions, args, strict=False)) | kwargs
        if (
            self._any_number
            or len(args) > len(self._positions)
            or len(given) != len(self._parameters)
            or not kwargs.keys() <= self._names
            or not kwargs.keys().isdisjoint(self._positions[: len(args)])
        ):
            try:
                bound = self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self._name}(): {error}") from None
            bound.apply_defaults()
            given = bound.arguments
        return tuple(given[name] for name in self._parameters)


class _ClassArguments(_Arguments):
    """The same for a class method, whose first argument is the class.

    From Python 3.13 on, `classmethod` binds the class to calls, and to no attribute:

        Reports.load(7)        is given Reports and 7
        Reports.load.key(7)    is given 7, which would be taken for the class
    """

    def __call__(self, *args: object, **kwargs: object) -> tuple[str, ...]:
        if not args or not isinstance(args[0], type):
            raise TypeError(
                f"{self._name}: the first argument is the class. From Python 3.13 on, name it for"
                " `key`, `invalidate` and `bypass` of a class method"
            )
        return super().__call__(*args, **kwargs)


def _parse(template: str, name: str, parameters: Collection[str]) -> list[Piece]:
    """Return the pieces of a template, whose fields are parameters."""
    try:
        pieces = parse(template)
    except ValueError as error:
        raise TypeError(f"{name}: {error}") from error
    for _, field in pieces:
        if field is not None and field not in parameters:
            raise TypeError(f"{name} has no parameter {field!r}, which {template!r} names")
    return pieces


def _require_excluded(parameter: Parameter, function: Callable[..., Any], template: str) -> None:
    """Check that a parameter that is not in the template cannot change the result."""
    annotation = resolve(parameter.annotation, function)
    kind = plain(annotation)
    if parameter.name in _OBJECTS and annotation is Parameter.empty:
        return
    kinds = [plain(each) for each in get_args(kind)] or [kind]
    if all(
        isinstance(each, type)
        and (each is NoneType or is_session_type(each) or _is_request_type(each))
        for each in kinds
    ):
        return
    why = ""
    if annotation is UNRESOLVED:
        why = f" (its annotation {parameter.annotation!r} means nothing while the program runs)"
    raise TypeError(
        f"{function.__qualname__}: the parameter {parameter.name!r}{why} is not in the template"
        f" {template!r}, so callers with different values of it would get one result. Put it"
        f" there, or name it in `ignore` if it does not change the result"
    )


def _is_request_type(kind: type) -> bool:
    return any(
        _REQUESTS.get(each.__module__.partition(".")[0]) == each.__name__ for each in kind.__mro__
    )


# --- values as text ---


class _Text:
    """Turns the values of one parameter into text."""

    def __init__(
        self, parameter: Parameter, function: Callable[..., Any], literals: Collection[str]
    ) -> None:
        self._name = f"{function.__qualname__}: {parameter.name}"
        self._literals = literals
        if parameter.kind in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
            raise TypeError(f"{self._name} stands for any number of arguments, so it has no text")
        annotation = resolve(parameter.annotation, function)
        self._kind, self._none = _key_type(annotation)
        if self._kind is None:
            shown = "nothing" if annotation is Parameter.empty else named(parameter.annotation)
            raise TypeError(
                f"{self._name} is in a template, so its annotation must say one type: {_ALLOWED}."
                f" It says {shown}"
            )

    def __call__(self, value: object) -> str:
        kind = type(value)
        if kind is not self._kind:
            return self._other(value)
        if kind is str:
            text: str = value  # type: ignore[assignment]
            return text if text.isalnum() and text.isascii() else self._escaped(text)
        if kind is int:
            # The text of a number may contain a minus, and nothing else that a template may have.
            return str(value) if value >= 0 else self._escaped(str(value))  # type: ignore[operator]
        return self._escaped(_text(value))

    def _other(self, value: object) -> str:
        wanted = self._kind
        if value is None and self._none:
            return _NONE
        # An `IntEnum` is a number, a `StrEnum` is a text; but a `bool` is no number here, and a
        # `datetime` no date.
        if wanted is str and isinstance(value, str):
            return self._escaped(str.__str__(value))
        if wanted is int and isinstance(value, int) and not isinstance(value, bool):
            return self._escaped(int.__repr__(value))
        if wanted is UUID and isinstance(value, UUID):
            return self._escaped(_text(value))
        raise TypeError(
            f"{self._name}={value!r:.40} is of type {type(value).__name__}; its annotation says"
            f" {named(wanted)}"
        )

    def _escaped(self, text: str) -> str:
        try:
            return escape(text, self._literals, _PLAIN)
        except UnicodeEncodeError as error:
            raise InvalidKey(f"{self._name} cannot be encoded in UTF-8: {error.reason}") from None


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return value.name or str(value.value)  # a `Flag` without a name; names begin otherwise
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        # One moment has one text, whatever its time zone; without a zone it has none.
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return str(value)


def _key_type(annotation: object) -> tuple[type | None, bool]:
    """Return the one type of an annotation, or None, and whether None is a value as well."""
    kind = plain(annotation)
    if get_origin(kind) in {Union, UnionType}:
        kinds = [plain(each) for each in get_args(kind)]
        others = [each for each in kinds if each is not NoneType]
        if len(others) == 1 and len(kinds) == len(others) + 1:
            return _key_type(others[0])[0], True
        return None, False
    if get_origin(kind) is Literal:
        types = {type(each) for each in get_args(kind)}
        none = NoneType in types
        types -= {NoneType}
        return _key_type(types.pop())[0] if len(types) == 1 else None, none
    if kind in {str, int, bool, UUID, date, datetime}:
        return kind, False
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind, False
    return None, False
