"""Operation of the service: statistics, invalidation, health checks, and lines of the log."""
