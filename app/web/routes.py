"""The routes of the pages and of the files that they load: scripts, styles and an icon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, HTTPException, Request
from starlette.staticfiles import StaticFiles

from app.http.routing import name_of

if TYPE_CHECKING:
    from starlette.responses import Response

_FOLDER = Path(__file__).parent / "assets"
_OWN = frozenset(path.name for path in _FOLDER.iterdir() if path.suffix != ".html")
_PACKAGED = frozenset({"redoc.standalone.js", "swagger-ui-bundle.js", "swagger-ui.css"})

_STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI and Redoc add styles to the page, and Redoc starts its search from a blob. Their
# scripts, and what they connect to, are restricted like those of the page at `/`.
_OF_DOCUMENTS = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; font-src 'self'; worker-src blob:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def router() -> APIRouter:
    """Return the routes of the pages. Nothing that they load comes from another host."""
    routes = APIRouter(generate_unique_id_function=name_of, include_in_schema=False)
    own = StaticFiles(directory=_FOLDER)
    packaged = StaticFiles(packages=[("fastapi_offline", "static")])

    @routes.get("/")
    async def page(request: Request) -> Response:
        """Return the page of the service."""
        return await _sent(own, "index.html", request, _STRICT)

    @routes.get("/docs")
    async def docs(request: Request) -> Response:
        """Return the page on which the HTTP API can be tried."""
        return await _sent(own, "docs.html", request, _OF_DOCUMENTS)

    @routes.get("/redoc")
    async def redoc(request: Request) -> Response:
        """Return the reference of the HTTP API."""
        return await _sent(own, "redoc.html", request, _OF_DOCUMENTS)

    @routes.get("/assets/{name}")
    async def asset(name: str, request: Request) -> Response:
        """Return a file that a page loads."""
        if name in _OWN:
            return await _sent(own, name, request, _STRICT)
        if name in _PACKAGED:
            return await _sent(packaged, name, request, _STRICT)
        raise HTTPException(404)

    return routes


async def _sent(files: StaticFiles, name: str, request: Request, policy: str) -> Response:
    response = await files.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"  # kept, and revalidated by its tag
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
