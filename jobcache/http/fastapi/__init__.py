"""Polling endpoints for FastAPI: a dependency for your own routes, or whole routes.

polling = PollingRoutes(
cache, "/exports/{export_id}", key="export:{export_id}", load=load_export
)
app.include_router(polling.router)
"""

from jobcache.http.fastapi.requests import EventStream, Poll
from jobcache.http.fastapi.routes import PollingRoutes

__all__ = ["EventStream", "Poll", "PollingRoutes"]
