"""Other caches for Python, each set up as its documentation recommends."""
