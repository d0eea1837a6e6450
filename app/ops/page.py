"""What a browser finds at the root: the page of the API, until there is one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.responses import RedirectResponse

if TYPE_CHECKING:
    from starlette.types import Scope

lead_to_docs = RedirectResponse("docs")  # relative, whatever path a proxy puts before it


def is_asked_for(scope: Scope) -> bool:
    """True for a browser at the root. To programs there is nothing at that path."""
    if scope["type"] != "http" or scope["path"] != scope.get("root_path", "") + "/":
        return False
    accepted = (value for name, value in scope["headers"] if name == b"accept")
    return scope["method"] in {"GET", "HEAD"} and any(b"text/html" in each for each in accepted)
