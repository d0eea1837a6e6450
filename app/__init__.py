"""The service: video jobs, polled through the cache."""
