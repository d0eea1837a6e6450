"""The change feed of Redis: CLIENT TRACKING and its heartbeat."""
