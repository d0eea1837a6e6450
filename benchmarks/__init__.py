"""Benchmarks: the cost of a poll, with and without a cache. README.md describes them."""
