"""A check that no read is stale: real services, real faults, and every response is compared."""
