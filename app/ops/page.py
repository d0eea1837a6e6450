"""A browser that opens the root is redirected to the page of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.responses import RedirectResponse

if TYPE_CHECKING:
    from starlette.types import Scope

redirect_to_docs = RedirectResponse("docs")  # relative: a proxy may add a path in front


def is_browser_at_root(scope: Scope) -> bool:
    """Return whether a browser requests the root; other programs get 404 there."""
    if scope["type"] != "http" or scope["path"] != scope.get("root_path", "") + "/":
        return False
    accepted = (value for name, value in scope["headers"] if name == b"accept")
    return scope["method"] in {"GET", "HEAD"} and any(b"text/html" in each for each in accepted)
