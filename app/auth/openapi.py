"""Keys and limits in the OpenAPI document, as they apply to this service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.auth.middleware import HEALTH, OPEN
from app.http.openapi import problems

if TYPE_CHECKING:
    from fastapi import FastAPI

_METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def describe(app: FastAPI, *, keyed: bool, limited: bool) -> None:
    """Add the answers that no endpoint gives itself to the document of an application."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = plain()
        for path, item in document["paths"].items():
            for method in _METHODS & item.keys():
                _complete(item[method], path, keyed=keyed, limited=limited)
                if not keyed:
                    _describe_open(item[method], method)
        if keyed:
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation has it


def _complete(operation: dict[str, Any], path: str, *, keyed: bool, limited: bool) -> None:
    answers, added = operation["responses"], [400, 414, 421, 431]
    if keyed and path not in OPEN:
        operation["security"] = [{"key": []}]
        added.append(401)
    if limited and path not in HEALTH:
        added.append(429)
    answers |= {str(status): answer for status, answer in problems(*added).items()}
    operation["responses"] = dict(sorted(answers.items()))


def _describe_open(operation: dict[str, Any], method: str) -> None:
    """Describe the refusal that remains without keys: of changes by pages of other origins."""
    answers = operation["responses"]
    answers.pop("403", None)
    if method == "post":
        refusal = {**problems(403)[403], "description": "A page of another origin has sent this"}
        answers["403"] = {**refusal, "headers": {}}
        operation["responses"] = dict(sorted(answers.items()))
