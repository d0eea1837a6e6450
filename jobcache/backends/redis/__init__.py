"""Cells in Redis or Valkey: one server, Sentinel or Cluster."""

from jobcache.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
