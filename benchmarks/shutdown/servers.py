"""The servers whose end is measured, and their commands."""

from __future__ import annotations

import sys
from dataclasses import dataclass

_PLAIN = "benchmarks.shutdown.application:app"
_PYTHON = (sys.executable, "-m")
LIMIT = 400
"""The number of requests after which the server with a limit on requests ends."""


@dataclass(frozen=True)
class Server:
    """A server.

    Attributes:
        name: as in the table.
        command: with a place for the port.
        patience: arguments that raise its own limit on the time of an end to a minute and more.
        requests: the number of requests that end it; 0: a signal does.
    """

    name: str
    command: tuple[str, ...]
    patience: tuple[str, ...] = ()
    requests: int = 0

    def at(self, port: int, *, patient: bool) -> list[str]:
        """Return the command with the port."""
        words = [*self.command, *(self.patience if patient else ())]
        return [word.format(port=port) for word in words]


_UVICORN = (*_PYTHON, "uvicorn", _PLAIN, "--port", "{port}", "--no-access-log")
_GUNICORN = (
    *(*_PYTHON, "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"),
    _PLAIN,
)
_WORKERS = (*_UVICORN, "--workers", "2")
SERVERS = (
    Server("uvicorn", _UVICORN),
    Server("uvicorn, 2 workers", _WORKERS, ("--timeout-worker-healthcheck", "60")),
    Server("gunicorn, uvicorn's worker", _GUNICORN, ("--graceful-timeout", "90")),
    Server(
        "hypercorn",
        (*_PYTHON, "hypercorn", _PLAIN, "--bind", "127.0.0.1:{port}"),
        ("--graceful-timeout", "90"),
    ),
    Server("granian", (*_PYTHON, "granian", "--interface", "asgi", "--port", "{port}", _PLAIN)),
    Server(
        "fastapi run",
        (
            *(*_PYTHON, "fastapi_cli", "run", "--port", "{port}", "--host", "127.0.0.1"),
            *("--entrypoint", "benchmarks.shutdown.fastapi_application:app"),
        ),
    ),
    Server(
        "uvicorn, a limit on requests",
        (*_UVICORN, "--limit-max-requests", str(LIMIT)),
        requests=LIMIT,
    ),
)
