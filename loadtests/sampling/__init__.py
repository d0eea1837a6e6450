"""Counters that are read while a scenario runs: of the service, the database and processes."""
