"""A coherent, pluggable cache for polled job status.

    cache = JobCache(make_backend(CacheSettings(backend="memory")))
    answer = await cache.read(progress_key(7), load)

See `JobCache` for reading and writing, `protocol` for the contract of a backend.
"""

from jobcache._engine.writing import Write
from jobcache.backends.registry import make_backend
from jobcache.cache import JobCache
from jobcache.errors import (
    CacheClosed,
    CacheError,
    CacheUnavailable,
    InvalidDocument,
    InvalidKey,
    JobCacheError,
    LoadTimeout,
    NamespaceConflict,
    RecursiveLoad,
    SettingsError,
    SourceUnavailable,
    UnreadableCell,
    WriteMisuse,
    WrongLoop,
)
from jobcache.keys import jobs_key, progress_key, storyboard_key
from jobcache.lifetimes import Lifetimes
from jobcache.loaders import with_session
from jobcache.models import CacheOutcome, ReadResult, ReadResults
from jobcache.observability.statistics import Statistics
from jobcache.protocol.backend import (
    CacheBackend,
    Document,
    Entry,
    Health,
    LeaseResult,
    PublishResult,
)
from jobcache.protocol.codec import identity_body
from jobcache.settings import CacheSettings

__version__ = "0.1.0"

__all__ = [
    "CacheBackend",
    "CacheClosed",
    "CacheError",
    "CacheOutcome",
    "CacheSettings",
    "CacheUnavailable",
    "Document",
    "Entry",
    "Health",
    "InvalidDocument",
    "InvalidKey",
    "JobCache",
    "JobCacheError",
    "LeaseResult",
    "Lifetimes",
    "LoadTimeout",
    "NamespaceConflict",
    "PublishResult",
    "ReadResult",
    "ReadResults",
    "RecursiveLoad",
    "SettingsError",
    "SourceUnavailable",
    "Statistics",
    "UnreadableCell",
    "Write",
    "WriteMisuse",
    "WrongLoop",
    "identity_body",
    "jobs_key",
    "make_backend",
    "progress_key",
    "storyboard_key",
    "with_session",
]
