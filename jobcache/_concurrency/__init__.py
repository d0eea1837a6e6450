"""Batches and tasks of asyncio, for every layer above."""
