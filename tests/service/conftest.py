"""Fixtures of this folder; they live in modules that tests can import from, too."""

from tests.service.pooler import pgbouncer
from tests.service.running import backend_environment, database_url, postgres_url, service, start
from tests.service.wires import wire

__all__ = [
    "backend_environment",
    "database_url",
    "pgbouncer",
    "postgres_url",
    "service",
    "start",
    "wire",
]
