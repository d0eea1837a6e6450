"""Proof that the cache is never wrong: real services, real faults, every answer checked."""
