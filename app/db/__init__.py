"""The database: its connection pool, its errors, and the lock of the processes that use it."""
