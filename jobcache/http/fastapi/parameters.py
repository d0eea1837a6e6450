"""The request headers of polls and event streams, as parameters for OpenAPI documents.

They are not parameters of FastAPI, which would validate each of them at each poll. `PollingRoute`
adds them to the operations whose dependencies read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")
_READ = "jobcache_parameters"

_SEEN = "The id of the last event that was seen; any other text counts as none"


def _header(name: str, schema: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    schema = {"type": "string", "title": name.title(), **({} if schema is None else schema)}
    return {"name": name, "in": "header", "required": False, "schema": schema, **more}


POLL: list[dict[str, Any]] = [
    _header("if-none-match"),
    _header("accept-encoding"),
    _header(
        "prefer",
        description="`wait=20`: seconds to be held until there is a newer version; the service has"
        " an upper limit, which Preference-Applied shows",
    ),
]
STREAM: list[dict[str, Any]] = [_header("last-event-id", {"description": _SEEN}, description=_SEEN)]


def ids_parameter(schema: dict[str, Any], most: int) -> dict[str, Any]:
    """Return the parameter of a batch: up to `most` ids with a schema, as `1,2,3`."""
    return {
        "name": "ids",
        "in": "query",
        "required": True,
        "description": f"Up to {most} ids, `1,2,3`",
        "style": "form",
        "explode": False,
        "schema": {"type": "array", "items": schema, "minItems": 1, "maxItems": most},
    }


def reads(parameters: list[dict[str, Any]]) -> Callable[[F], F]:
    """Mark a dependency that reads these headers."""

    def mark(dependency: F) -> F:
        setattr(dependency, _READ, parameters)
        return dependency

    return mark


def read_by(dependency: object) -> list[dict[str, Any]]:
    """Return the headers that a dependency reads, if it was marked."""
    found: list[dict[str, Any]] = getattr(dependency, _READ, [])
    return found
