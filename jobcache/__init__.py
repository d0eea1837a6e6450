"""A coherent, pluggable cache for polled job status.

    cache = JobCache(make_backend(CacheSettings(backend="memory")))
    answer = await cache.read(progress_key(7), load)

See `JobCache` for reading and writing, `protocol` for the contract of a backend.
"""

from jobcache.answers import Answer, Outcome
from jobcache.cache import JobCache
from jobcache.codec import identity_body
from jobcache.errors import (
    CacheError,
    CacheUnavailable,
    JobCacheError,
    SettingsError,
    SourceUnavailable,
    UnreadableCell,
    WriteMisuse,
)
from jobcache.keys import jobs_key, progress_key, storyboard_key
from jobcache.protocol import CacheBackend, Condition, Document, Entry, Offered, Standing
from jobcache.registry import make_backend
from jobcache.settings import CacheSettings
from jobcache.stats import Statistics
from jobcache.ttl import Lifetimes
from jobcache.writes import Write

__all__ = [
    "Answer",
    "CacheBackend",
    "CacheError",
    "CacheSettings",
    "CacheUnavailable",
    "Condition",
    "Document",
    "Entry",
    "JobCache",
    "JobCacheError",
    "Lifetimes",
    "Offered",
    "Outcome",
    "SettingsError",
    "SourceUnavailable",
    "Standing",
    "Statistics",
    "UnreadableCell",
    "Write",
    "WriteMisuse",
    "identity_body",
    "jobs_key",
    "make_backend",
    "progress_key",
    "storyboard_key",
]
