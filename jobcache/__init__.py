"""A coherent, pluggable cache for polled job status.

    async with JobCache.from_url("memory://") as cache:
        result = await cache.read("job:7", load)
        print(result.json())

`JobCache` reads and writes documents with versions, and caches functions whose results have none
(`JobCache.cached`); `jobcache.sync.JobCache` does the same for threads. All other names are in
submodules: `jobcache.errors`, `jobcache.models`, `jobcache.serializers`, `jobcache.protocol` (what
a backend is), `jobcache.backends`, `jobcache.resilience`, `jobcache.observability`,
`jobcache.throttle`, `jobcache.http`, `jobcache.orm`, `jobcache.client`, `jobcache.testing`.
"""

from jobcache._engine.watchers import PollIntervals
from jobcache._engine.writing import Write
from jobcache.cache import JobCache
from jobcache.errors import (
    CacheUnavailable,
    DocumentMissing,
    InvalidDocument,
    JobCacheError,
    SettingsError,
    SourceUnavailable,
)
from jobcache.lifetimes import Lifetimes
from jobcache.loaders import with_session
from jobcache.models import CacheOutcome, ReadResult
from jobcache.protocol.document import Document
from jobcache.protocol.entry import Entry
from jobcache.settings import CacheSettings

__version__ = "0.1.0"

__all__ = [
    "CacheOutcome",
    "CacheSettings",
    "CacheUnavailable",
    "Document",
    "DocumentMissing",
    "Entry",
    "InvalidDocument",
    "JobCache",
    "JobCacheError",
    "Lifetimes",
    "PollIntervals",
    "ReadResult",
    "SettingsError",
    "SourceUnavailable",
    "Write",
    "__version__",
    "with_session",
]
