"""Load tests: simulated clients that poll every backend. README.md describes them."""
