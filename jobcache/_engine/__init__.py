"""The parts of `JobCache`: reading, writing, waiting, loading."""
