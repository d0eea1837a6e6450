"""The load test: it runs scenarios on backends and writes a report."""
