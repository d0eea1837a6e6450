"""Write the tables of docs/http-api.md from the OpenAPI document: `make http-api`."""

import json
import tempfile
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import Settings
from jobcache import CacheSettings

ROOT = Path(__file__).parents[1]
EVERYWHERE = {"400", "414", "421", "431"}
"""Statuses that every operation has; the page explains them once."""
TOPICS = {"jobs": "Jobs", "operations": "Operations"}


def document() -> dict[str, Any]:
    """Return the OpenAPI document of a service with default settings, without starting it."""
    with tempfile.TemporaryDirectory() as folder:
        # Not from the environment, which may have keys and limits.
        defaults = Settings.model_construct(
            cache=CacheSettings(),
            database_url=f"sqlite+aiosqlite:///{folder}/jobcache.db",
            var_dir=Path(folder),
        )
        return create_app(defaults).openapi()


def tables(described: dict[str, Any]) -> str:
    """Return the operations by topic, and the bodies of requests and responses."""
    parts = []
    for topic, title in TOPICS.items():
        rows = [
            _operation(method, path, operation)
            for path, item in described["paths"].items()
            for method, operation in item.items()
            if method != "head" and topic in operation.get("tags", ["operations"])
        ]
        head = "| request | does | parameters | statuses |\n| --- | --- | --- | --- |\n"
        parts.append(f"## {title}\n\n{head}{''.join(rows)}")
    parts.append("## Bodies\n")
    parts += [
        _schema(name, schema)
        for name, schema in sorted(described["components"]["schemas"].items())
        if "properties" in schema or "enum" in schema
    ]
    return "\n".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    body = [_type(each["schema"]) for each in content.values()]
    # Parameters of the path can be seen in it.
    names = [each["name"] for each in operation.get("parameters", []) if each["in"] != "path"]
    statuses = [each for each in operation["responses"] if each not in EVERYWHERE]
    cells = [
        f"`{method.upper()} {path}`",
        _first_paragraph(operation),
        ", ".join([*body, *(f"`{name}`" for name in names)]),
        ", ".join(statuses),
    ]
    return f"| {' | '.join(cells)} |\n"


def _first_paragraph(described: dict[str, Any]) -> str:
    return str(described.get("description", "")).split("\n\n")[0].replace("\n", " ")


def _schema(name: str, schema: dict[str, Any]) -> str:
    about = _first_paragraph(schema)
    if "enum" in schema:
        return f"### {name}\n\n{about}\n\n{_type(schema)}\n"
    required = schema.get("required", [])
    rows = [
        f"| `{field}` | {_type(described)} | {_limits(described)} "
        f"| {'yes' if field in required else ''} |\n"
        for field, described in schema["properties"].items()
    ]
    head = "| field | type | limits | always there |\n| --- | --- | --- | --- |\n"
    return f"### {name}\n\n{about}\n\n{head}{''.join(rows)}"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format", schema.get("type", "any")))


def _limits(schema: dict[str, Any]) -> str:
    """Return the limits of a number, or of the length of a text or a list."""
    one = next((each for each in schema.get("anyOf", []) if len(each) > 1), schema)
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
    ):
        if high in one:
            least = f"{one[low]:g} to " if low in one else "at most "
            return f"{least}{int(one[high]):,}{unit}"
    return ""


def main() -> None:
    """Replace the tables of the page."""
    page = ROOT / "docs" / "http-api.md"
    introduction = page.read_text("utf-8").partition("\n\n## ")[0].rstrip()
    page.write_text(f"{introduction}\n\n{tables(document())}", "utf-8")


if __name__ == "__main__":
    main()
