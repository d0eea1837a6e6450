"""Polling over HTTP: conditional requests, long polls and event streams, for any ASGI service."""
