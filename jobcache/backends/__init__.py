"""Where cells live. No backend knows another; `jobcache.registry` picks one by name."""
