"""Counters, percentiles, and limits on log lines."""
