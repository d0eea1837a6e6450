"""Where cells live. No backend knows another; `jobcache.backends.registry` picks one by name."""
