"""The serializer of a function's values is chosen by its annotation."""

from __future__ import annotations

import typing
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict

from jobcache import serializers
from jobcache.serializers import JSON, PydanticSerializer, serializer_for, serializer_of


class Changeable(BaseModel):
    size: int


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    at: datetime
    price: Decimal
    id: UUID
    state: Literal["moving", "done"]
    parent: None
    sizes: tuple[int, ...]


class FrozenOutside(BaseModel):
    model_config = ConfigDict(frozen=True)
    inside: Changeable


class FrozenWithAnyTuple(BaseModel):
    model_config = ConfigDict(frozen=True)
    inside: typing.Tuple  # noqa: UP006 - with an origin, and without arguments


@pytest.mark.parametrize(
    ("kind", "shared"),
    [(Changeable, False), (Frozen, True), (FrozenOutside, False), (FrozenWithAnyTuple, False)],
)
def test_only_models_that_cannot_change_are_shared_by_callers(kind: Any, *, shared: bool) -> None:
    made = serializer_for(kind)
    assert isinstance(made, PydanticSerializer)
    assert made.shared is shared


def test_literals_that_json_keeps_are_stored_as_json() -> None:
    assert serializer_for(Literal["moving", 1, True]) is JSON
    with pytest.raises(TypeError, match="JSON does not give back"):
        serializer_for(Literal[b"moving"])


@pytest.mark.parametrize("name", ["Dict", "List", "Mapping", "MutableMapping", "Sequence"])
def test_a_type_without_arguments_means_the_one_with_any(name: str) -> None:
    assert serializer_for(getattr(typing, name)) is JSON
    for other in (typing.Tuple, typing.Set):  # noqa: UP006 - these are meant
        with pytest.raises(TypeError, match="JSON does not give back"):
            serializer_for(other)


def test_annotations_take_a_limited_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[Any, Any] = {}
    monkeypatch.setattr(serializers, "_by_annotation", kept)
    monkeypatch.setattr(serializers, "_MOST_ANNOTATIONS", 2)
    annotations: list[Any] = [int, str, Frozen]
    for annotation in annotations:
        load: Callable[[], Any] = lambda: None  # noqa: E731 - a new function each time
        load.__annotations__["return"] = annotation
        first = serializer_of(load)
        assert serializer_of(load) is first
        assert isinstance(first, PydanticSerializer) is (annotation is Frozen)
    assert len(kept) == 1
