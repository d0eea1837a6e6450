"""PostgreSQL as the change feed: transactions notify all processes of the keys that they change."""
