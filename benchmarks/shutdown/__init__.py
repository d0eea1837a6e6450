"""How long servers take to stop while they hold requests: `python -m benchmarks.shutdown`."""
