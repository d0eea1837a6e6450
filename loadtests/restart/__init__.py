"""A rolling restart under load: what those who wait for jobs notice of it."""
