"""Clients that Locust's user class does not imitate, one kind in each module."""
