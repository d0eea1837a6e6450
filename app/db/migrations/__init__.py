"""Changes of the tables of existing databases, by Alembic: `python -m app db upgrade`."""
