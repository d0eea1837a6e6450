"""The database: its connection pool, its errors, and who else uses it."""
