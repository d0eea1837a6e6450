"""Serializers: how the values of `get_or_load` and `cached` become bytes, and values again.

By default a value is stored as JSON. Models of pydantic and structs of msgspec are recognised by
the annotation of the function that loads them. Nothing is ever pickled: anyone who can write to
the store could otherwise run code in this process.

All callers in a process are given the same object, as long as its entry does not change. So the
dictionaries and lists of a JSON value are read-only, and changing one raises an error:

    A reads a report, and adds a field to it; B reads the same report, and finds the field

A model or a struct is shared only if it is frozen and has no field that can be changed. Otherwise
each caller gets an object of its own.
"""

from __future__ import annotations

import json
from collections import abc
from enum import Enum
from functools import partial
from types import MethodType, NoneType, UnionType
from typing import (
    Any,
    Literal,
    Never,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from jobcache._annotations import UNRESOLVED, named, plain, resolve
from jobcache.errors import InvalidDocument

T = TypeVar("T")


class Serializer(Protocol[T]):
    """Turns values into bytes, and bytes into values.

    `loads(dumps(value))` must equal the value. Any process may read what another one has stored, so
    the bytes must not depend on the process. An object with the attribute `shared`, if that is
    true, promises that its values cannot be changed: all callers may be given the same one.
    """

    def dumps(self, value: T, /) -> bytes:
        """Return the bytes of a value.

        Raises:
            Exception: the value cannot be stored. The caller gets the exception.
        """

    def loads(self, data: bytes, /) -> T:
        """Return the value of some bytes.

        Raises:
            Exception: these are not bytes of such a value; another version of the program may have
                written them. The value is loaded again.
        """


class ReadOnlyDict(dict[Any, Any]):
    """A dictionary in a value that all callers share. `copy.deepcopy` returns a normal one."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> Never:
        raise TypeError(
            "a cached value is shared by all callers and cannot be changed: change a copy of it,"
            " as copy.deepcopy makes one"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return _thawed(self)  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return dict, (_thawed(self),)


class ReadOnlyList(list[Any]):
    """A list in a value that all callers share. `copy.deepcopy` returns a normal one."""

    __slots__ = ()

    _refuse = ReadOnlyDict._refuse  # noqa: SLF001 - the same for both

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return _thawed(self)  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return list, (_thawed(self),)


def _frozen(value: Any) -> Any:  # noqa: ANN401 - of JSON
    kind = type(value)
    if kind is dict:
        return ReadOnlyDict({key: _frozen(each) for key, each in value.items()})
    if kind is list:
        return ReadOnlyList(map(_frozen, value))
    return value


def _thawed(value: Any) -> Any:  # noqa: ANN401 - of JSON
    kind = type(value)
    if kind is ReadOnlyDict:
        return {key: _thawed(each) for key, each in value.items()}
    if kind is ReadOnlyList:
        return [*map(_thawed, value)]
    return value


class JSONSerializer:
    """JSON of the standard library. A value that JSON would change, such as a tuple, is refused."""

    shared = True

    def dumps(self, value: object, /) -> bytes:
        """Return the JSON of a value."""
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
            data = text.encode()
        except (TypeError, ValueError) as error:
            raise InvalidDocument(
                f"a value of type {type(value).__name__} cannot be stored as JSON ({error}):"
                " annotate the function that loads it, or give a serializer"
            ) from error
        _check(value, json.loads(text), "JSON")
        return data

    def loads(self, data: bytes, /) -> Any:  # noqa: ANN401 - of JSON
        """Return the value of some JSON, with read-only dictionaries and lists."""
        return _frozen(json.loads(data))


class PydanticSerializer:
    """JSON by pydantic, validated when it is read.

    Args:
        kind: a model, or another type that pydantic knows, such as `list[Model]`.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - not every type is a `type`
        from pydantic import TypeAdapter  # noqa: PLC0415 - only where it is used

        self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
        self.shared = _is_immutable(kind)

    def dumps(self, value: object, /) -> bytes:
        """Return the JSON of a value."""
        data = self._adapter.dump_json(value, by_alias=True, round_trip=True)
        _check(value, self._adapter.validate_json(data), "pydantic")
        return data

    def loads(self, data: bytes, /) -> Any:  # noqa: ANN401 - of the type that was given
        """Return the value of some JSON."""
        return self._adapter.validate_json(data)


class MsgspecSerializer:
    """JSON by msgspec, validated when it is read.

    Args:
        kind: a struct, or another type that msgspec knows, such as `list[Struct]` or a dataclass.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - not every type is a `type`
        import msgspec  # noqa: PLC0415 - only where it is used

        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(kind)
        self.shared = _is_immutable(kind)

    def dumps(self, value: object, /) -> bytes:
        """Return the JSON of a value."""
        data: bytes = self._encoder.encode(value)
        _check(value, self._decoder.decode(data), "msgspec")
        return data

    def loads(self, data: bytes, /) -> Any:  # noqa: ANN401 - of the type that was given
        """Return the value of some JSON."""
        return self._decoder.decode(data)


def _check(value: object, decoded: object, who: str) -> None:
    # Otherwise a caller would get another value from the cache than from the source.
    if decoded != value:
        raise InvalidDocument(
            f"a value of type {type(value).__name__} changes when it is stored: {who} gives back"
            f" {decoded!r:.80} for {value!r:.80}; return what it gives back, or give a serializer"
        )


JSON = JSONSerializer()


# --- by annotation ---


def serializer_of(load: object) -> Serializer[Any]:
    """Return the serializer for the values of a function, by its annotation; else `JSON`."""
    while isinstance(load, partial | MethodType):
        load = load.func if isinstance(load, partial) else load.__func__
    annotation = getattr(load, "__annotations__", _NONE).get("return")
    if annotation is None:
        return JSON
    # A name in quotes means what it means in its module. Not by function: a lambda or an inner
    # function is new in each call.
    place = getattr(load, "__module__", None) if isinstance(annotation, str) else None
    found = _by_annotation.get((annotation, place))
    if found is None:
        if len(_by_annotation) >= _MOST_ANNOTATIONS:
            _by_annotation.clear()
        resolved = resolve(annotation, load)
        found = JSON if resolved is UNRESOLVED else serializer_for(resolved)
        _by_annotation[annotation, place] = found
    return found


_NONE: dict[str, object] = {}
_MOST_ANNOTATIONS = 1000
_by_annotation: dict[tuple[object, object], Serializer[Any]] = {}


def serializer_for(annotation: Any) -> Serializer[Any]:  # noqa: ANN401 - any annotation
    """Return the serializer for the values of a type.

    Raises:
        TypeError: JSON would change values of this type, and the type names no model or struct.
    """
    if _mentions(annotation, "pydantic", "BaseModel"):
        return PydanticSerializer(annotation)
    if _mentions(annotation, "msgspec", "Struct"):
        return MsgspecSerializer(annotation)
    if not _is_json(annotation):
        raise TypeError(
            f"JSON does not give back a value of type {named(annotation)}: give a serializer, such"
            " as jobcache.serializers.PydanticSerializer or MsgspecSerializer of that type"
        )
    return JSON


def _mentions(annotation: Any, library: str, base: str) -> bool:  # noqa: ANN401 - any annotation
    annotation = plain(annotation)
    if isinstance(annotation, type) and not get_args(annotation):
        return any(
            kind.__name__ == base and kind.__module__.partition(".")[0] == library
            for kind in annotation.__mro__
        )
    return any(_mentions(each, library, base) for each in get_args(annotation))


def _is_json(annotation: Any) -> bool:  # noqa: ANN401 - any annotation; a list of cases
    annotation = plain(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is not None and not arguments:
        annotation, origin = origin, None  # `typing.Dict` without arguments means `dict`
    if origin in {Union, UnionType}:
        return all(map(_is_json, arguments))
    if origin is Literal:
        return all(type(each) in _JSON for each in arguments)
    if origin in {dict, abc.Mapping, abc.MutableMapping}:
        return plain(arguments[0]) is str and _is_json(arguments[1])
    if origin in {list, abc.Sequence, abc.MutableSequence}:
        return _is_json(arguments[0])
    if is_typeddict(annotation):
        return all(map(_is_json, get_type_hints(annotation).values()))
    return annotation in _JSON_ANNOTATIONS or isinstance(annotation, TypeVar)


_JSON: frozenset[Any] = frozenset({str, int, float, bool, NoneType})
_JSON_ANNOTATIONS = _JSON | {
    None,
    Any,
    object,
    dict,
    list,
    abc.Mapping,
    abc.MutableMapping,
    abc.MutableSequence,
    abc.Sequence,
}


def _is_immutable(annotation: Any) -> bool:  # noqa: ANN401 - any annotation
    annotation = plain(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType, tuple, frozenset}:
        # `typing.Tuple` without arguments may contain anything.
        return bool(arguments) and all(each is ... or _is_immutable(each) for each in arguments)
    if origin is Literal or annotation is None:
        return True
    if not isinstance(annotation, type) or origin is not None:
        return False
    if issubclass(annotation, Enum) or annotation in _JSON:
        return True
    if annotation.__module__ in {"datetime", "decimal", "uuid"}:
        return True
    frozen = getattr(annotation, "model_config", _NONE).get("frozen") or getattr(
        getattr(annotation, "__struct_config__", None), "frozen", False
    )
    return bool(frozen) and all(map(_is_immutable, get_type_hints(annotation).values()))
