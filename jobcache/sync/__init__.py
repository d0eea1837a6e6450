"""The cache for synchronous code: threads, forks, signals, Django, Celery."""

from jobcache.sync.cache import CacheClosed, JobCache, Throttle, Write

__all__ = ["CacheClosed", "JobCache", "Throttle", "Write"]
