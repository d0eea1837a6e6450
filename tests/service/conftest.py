"""Fixtures of this folder; they live in a module that tests can import from, too."""

from tests.service.running import backend_environment, database_url, postgres_url, service, start

__all__ = ["backend_environment", "database_url", "postgres_url", "service", "start"]
