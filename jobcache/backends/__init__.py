"""Where cells live. No backend knows another; `jobcache.settings` picks one by name."""
