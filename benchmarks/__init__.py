"""What a poll costs, with and without a cache. See README.md."""
