"""What the OpenAPI document says of keys and limits: what is so in this service, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.access.gate import HEALTH, OPEN

if TYPE_CHECKING:
    from fastapi import FastAPI

_METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def describe(app: FastAPI, *, keyed: bool, limited: bool) -> None:
    """Have `app`'s document name the answers that no endpoint gives itself."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = plain()
        for path, item in document["paths"].items():
            for method in _METHODS & item.keys():
                _complete(item[method], path, keyed=keyed, limited=limited)
        if keyed:
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation has it


def _complete(operation: dict[str, Any], path: str, *, keyed: bool, limited: bool) -> None:
    answers = operation["responses"]
    if keyed and path not in OPEN:
        operation["security"] = [{"key": []}]
        answers["401"] = _answer("There is no key, or none that is known", "WWW-Authenticate")
    if not keyed:
        answers.pop("403", None)  # everybody may do everything
    answers["414"] = _answer("The URL is too long")
    answers["431"] = _answer("The headers are too large, or too many")
    if limited and path not in HEALTH:
        answers["429"] = _answer("Too many calls", "Retry-After")
    operation["responses"] = dict(sorted(answers.items()))


def _answer(description: str, *headers: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": description,
        "content": {"application/problem+json": {}},
    }
    if headers:
        answer["headers"] = {name: {"schema": {"type": "string"}} for name in headers}
    return answer
