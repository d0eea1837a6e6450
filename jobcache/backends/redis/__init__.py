"""Cells in Redis or Valkey: one server, Sentinel or Cluster."""

from importlib.util import find_spec

if find_spec("redis") is None:
    raise ImportError("jobcache.backends.redis needs redis-py; pip install 'jobcache[redis]'")

from jobcache.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
