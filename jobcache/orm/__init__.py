"""Sessions of object-relational mappers that keep the cache coherent."""
