"""Documents of JSON values."""

from __future__ import annotations

import json
from typing import Any, Protocol, runtime_checkable

from jobcache.protocol.document import Document


@runtime_checkable
class _Model(Protocol):
    """A model of pydantic."""

    def model_dump_json(self) -> str: ...


def json_document(
    value: Any,  # noqa: ANN401 - any value of JSON, or a model of pydantic
    *,
    version: int,
    poll_after: int | None = None,
    final: bool = False,
    owner: str = "",
    status: str = "",
) -> Document:
    """Return a document whose body is a value in JSON.

    One of `poll_after` and `final` is required: a document without either would count as final, so
    nobody could wait for its next version.

    Args:
        value: a value of JSON, or a model of pydantic.
        version: see `Document`; the same for `owner` and `status`.
        poll_after: seconds after which another poll makes sense.
        final: True if there will be no newer version.
        owner: see there.
        status: see there.

    Raises:
        TypeError: both `poll_after` and `final` are given, or neither.
        InvalidDocument: as `Document`.
    """
    if final is (poll_after is not None):
        raise TypeError("give `poll_after` seconds, or `final=True` if nothing will change")
    text = value.model_dump_json() if isinstance(value, _Model) else json.dumps(value)
    return Document(version, owner, text.encode(), status, poll_after)
