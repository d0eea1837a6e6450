"""Clients that poll as the real ones do, against every backend. See README.md."""
