"""Names of routes, and a HEAD route for each GET route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.routing import APIRoute
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.routing import BaseRoute


def name_of(route: APIRoute) -> str:
    """Return the name of a route's function, which is also its id in the OpenAPI document."""
    return route.name


def with_heads(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """Yield the routes, and after each GET route one that answers HEAD."""
    for route in routes:
        yield route
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            yield _Head(route)


class _Head(Route):
    """A route that answers HEAD with the handler of a GET route.

    The routes share it, because a second `APIRoute` would take as long to set up as the first.
    """

    def __init__(self, get: APIRoute) -> None:
        super().__init__(get.path, get.endpoint, methods=["HEAD"], include_in_schema=False)
        self.app = get.app
