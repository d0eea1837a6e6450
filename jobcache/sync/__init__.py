"""The cache for synchronous code: threads, forks, signals, Django, Celery."""

from jobcache.errors import CacheClosed
from jobcache.sync._writing import Write
from jobcache.sync.cache import JobCache
from jobcache.throttle import ThreadedThrottle as Throttle

__all__ = ["CacheClosed", "JobCache", "Throttle", "Write"]
