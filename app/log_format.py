"""The format and the level of log lines: text, or one JSON object for each line.

Under `python -m app serve` all lines have it. Other servers have handlers of their own, which keep
writing where they write; if `JOBCACHE_LOG_FORMAT` is set, their lines have that format, too.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app.http import request_context

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

_OURS = ("app", "jobcache")
"""Loggers that the level is for. The statements and parameters that drivers log at DEBUG may hold
secrets, so others stay at INFO."""
_FIELDS = ("key", "outcome", "tier", "version", "result", "took_ms")
"""Attributes of a record that a JSON line has as members; `jobcache` sets them at DEBUG."""


def configure(environment: Mapping[str, str]) -> None:
    """Configure logging as the environment says. Safe to call again.

    Handlers that are configured already stay. A value that is not allowed counts as the default
    here: `app.settings` reports it.

    Args:
        environment: has `JOBCACHE_LOG_LEVEL` and `JOBCACHE_LOG_FORMAT`, unless they are defaults.
    """
    chosen = environment.get("JOBCACHE_LOG_FORMAT", "").lower()
    level = environment.get("JOBCACHE_LOG_LEVEL", "").lower()
    number = logging.getLevelNamesMapping()[level.upper() if level in LEVELS else "INFO"]
    root = logging.getLogger()
    if not root.handlers:
        lines = logging.StreamHandler()
        lines.setFormatter(formatter(chosen))
        root.addHandler(lines)
        root.setLevel(max(number, logging.INFO))
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it names the plugins that it imports
    if level in LEVELS:
        for name in _OURS:
            logging.getLogger(name).setLevel(number)
    if chosen in FORMATS:
        for handler in _all_handlers():
            handler.setFormatter(formatter(chosen))


def _all_handlers() -> Iterator[logging.Handler]:
    yield from logging.getLogger().handlers
    for logger in logging.getLogger().manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            yield from logger.handlers


def formatter(chosen: str) -> logging.Formatter:
    """Return the formatter for `json`, or for text."""
    if chosen != "json":
        return TextFormatter()
    # Takes a tenth of a second to import.
    from structlog.processors import JSONRenderer, format_exc_info  # noqa: PLC0415
    from structlog.stdlib import ExtraAdder, ProcessorFormatter  # noqa: PLC0415

    return ProcessorFormatter(
        processors=[
            ExtraAdder(allow=_FIELDS),
            _describe,
            format_exc_info,
            ProcessorFormatter.remove_processors_meta,
            JSONRenderer(ensure_ascii=False),
        ]
    )


class TextFormatter(logging.Formatter):
    """Lines of text: time, level, logger, message, and the ids of the request if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as in logging
        """Return the line, to which `format` adds a traceback."""
        line = super().formatMessage(record)
        return "".join([line, *(f" {name}={value}" for name, value in _ids().items())])


def _describe(_: Any, level: str, event: MutableMapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - as in structlog
    """Add what each line has, in front of what the record has."""
    record: logging.LogRecord = event["_record"]
    made = datetime.fromtimestamp(record.created, UTC)
    return {
        "timestamp": made.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "logger": record.name,
        **event,
        **_ids(),
    }


def _ids() -> dict[str, str]:
    """Return the ids of the request that the running code works for."""
    context = request_context.current.get()
    if context is None:
        return {}
    return {name: value for name, value in context._asdict().items() if value}
