"""The web pages of the service: the page at `/`, and the two that document the HTTP API."""
