"""Authentication, roles and rate limits."""
