"""Polling endpoints beside Django (ASGI): a model, a change, and a poll that waits for it.

python examples/django_exports.py

Needs `pip install jobcache[http] django httpx`. `docs/django.md` explains it.
"""

from __future__ import annotations

import asyncio
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
import httpx
from asgiref.sync import sync_to_async
from django.conf import settings
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from jobcache import JobCache
from jobcache.http.event_stream import EventStreams
from jobcache.http.held_requests import HeldRequests
from jobcache.http.json_document import json_document
from jobcache.http.polled_document import PolledDocument
from jobcache.http.polling import Polling

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from jobcache import Document

urlpatterns: list[Any] = []


def make_model(database: Path) -> Any:  # noqa: ANN401 - a model, made once Django is set up
    """Set up Django with a database of its own, and return the model of an export."""
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(database)}},
        ROOT_URLCONF=__name__,
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection, models  # noqa: PLC0415 - after the setup

    class Export(models.Model):
        """An export. Each change increases its version."""

        percent: models.IntegerField[int, int] = models.IntegerField(default=0)
        version: models.IntegerField[int, int] = models.IntegerField(default=1)

        class Meta:
            app_label = "exports"

        def __str__(self) -> str:
            return f"export {self.pk}"

    with connection.schema_editor() as editor:
        editor.create_model(Export)
    Export.objects.create(pk=7)
    connection.close()
    return Export


def document_of(row: Any) -> Document:  # noqa: ANN401 - a row of the model
    """Return the document that answers a poll."""
    done = row.percent == 100  # noqa: PLR2004
    value = {"id": row.pk, "percent": row.percent}
    return json_document(
        value, version=row.version, poll_after=None if done else 2, final=done, owner="acme"
    )


def make_app(model: Any, cache: JobCache) -> Starlette:  # noqa: ANN401 - as above
    """Return the polling endpoints, with Django behind them."""
    from django.core.asgi import get_asgi_application  # noqa: PLC0415 - after the setup

    polling = Polling(EventStreams(HeldRequests(10_000, cache.cancel_waiters)))

    async def load(export_id: int) -> Document | None:
        row = await model.objects.filter(pk=export_id).afirst()
        return None if row is None else document_of(row)

    async def export(request: Request) -> Response:
        export_id = request.path_params["export_id"]
        document = PolledDocument(cache, f"export:{export_id}", partial(load, export_id))
        return await polling.poll(document, request.headers.raw)

    behind: Any = get_asgi_application()
    return Starlette(
        routes=[Route("/exports/{export_id:int}", export), Mount("/", behind)],
    )


async def finish(model: Any, cache: JobCache, export_id: int) -> None:  # noqa: ANN401 - as above
    """Commit a change, and publish it."""
    from django.db.models import F  # noqa: PLC0415 - after the setup

    key = f"export:{export_id}"
    async with cache.write(key) as write:
        await model.objects.filter(pk=export_id).aupdate(percent=100, version=F("version") + 1)
        write.publish(key, document_of(await model.objects.aget(pk=export_id)))


async def main(model: Any) -> None:  # noqa: ANN401 - as above
    """Poll an export, wait for its end, and ask Django for a page that it does not have."""
    from django.db import connections  # noqa: PLC0415 - after the setup

    async with JobCache.from_url("memory://") as cache:
        transport = httpx.ASGITransport(make_app(model, cache))
        async with httpx.AsyncClient(transport=transport, base_url="http://exports") as client:
            first = await client.get("/exports/7")
            print(first.status_code, first.text)
            known = {"If-None-Match": first.headers["etag"], "Prefer": "wait=30"}
            waiting = asyncio.create_task(client.get("/exports/7", headers=known))
            while cache.info().waiting.waiters == 0:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.01)
            await finish(model, cache, 7)
            print((await waiting).text)
            print((await client.get("/elsewhere")).status_code, "from Django")
    await sync_to_async(connections.close_all)()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(make_model(Path(folder) / "exports.db")))
