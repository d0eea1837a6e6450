"""The lifespan state of ASGI: what the application gives to the server's connections.

uvicorn copies this state to each connection.
"""

FAST_PATH = "fast_path"
"""The key of the object that answers polls; absent where the fast protocol is disabled."""
LIMITS = "limits"
"""The key of the `ConnectionLimits`."""
