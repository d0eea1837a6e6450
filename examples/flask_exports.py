"""Exports with Flask, SQLAlchemy and threads: polls with `ETag`, answered from the cache.

flask --app examples.flask_exports run

Needs `pip install jobcache[sqlalchemy] flask`. `python examples/flask_exports.py` makes an export,
polls it, and prints the responses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from flask import Flask, Response, abort, request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from jobcache import Document
from jobcache.orm.sqlalchemy import Binding, CoherentSession
from jobcache.sync import JobCache

DONE = 100


class Base(DeclarativeBase):
    """The tables."""


class Export(Base):
    """An export, as far as it has come."""

    __tablename__ = "exports"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy reads it once
    id: Mapped[int] = mapped_column(primary_key=True)
    percent: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the same


def document(export: Export) -> Document:
    """Return what a poll is given."""
    body = b'{"id": %d, "percent": %d}' % (export.id, export.percent)
    return Document(export.version, "", body, poll_after=None if export.percent == DONE else 1)


def create_app(url: str = "sqlite:///exports.db", store: str = "memory://") -> Flask:
    """Return the application. With several processes, `store` is a `redis://` URL."""
    app = Flask("exports")
    exports = Binding(Export, key="export:{id}", document=document)
    cache = JobCache.from_url(store)
    engine = create_engine(url)
    sessions = sessionmaker(engine, class_=CoherentSession, cache=cache, bindings=[exports])
    load = exports.loader(sessions)
    Base.metadata.create_all(engine)

    @app.post("/exports")
    def create() -> Response:
        with sessions.begin() as session:
            session.add(export := Export())
            session.flush()
            place = f"/exports/{export.id}"
        return Response(status=202, headers={"Location": place})

    @app.put("/exports/<int:export_id>/percent/<int:percent>")
    def report(export_id: int, percent: int) -> Response:
        with sessions.begin() as session:
            export = session.get(Export, export_id)
            if export is None:
                abort(404)
            export.percent = percent
        return Response(status=204)  # committed and published

    @app.get("/exports/<int:export_id>")
    def poll(export_id: int) -> Response:
        result = cache.read(exports.key(export_id), load(export_id))
        if result.missing:
            abort(404)
        response = Response(result.body, mimetype="application/json")
        response.set_etag(str(result.version))
        response.headers["X-Cache"] = result.outcome
        if result.entry.poll_after is not None:
            response.headers["Retry-After"] = str(result.entry.poll_after)
        response.make_conditional(request)
        return response

    return app


def main() -> None:
    """Make an export, and poll it."""
    with tempfile.TemporaryDirectory() as folder:
        client = create_app(f"sqlite:///{Path(folder) / 'exports.db'}").test_client()
        place = client.post("/exports").headers["Location"]
        for percent in (50, DONE):
            client.put(f"{place}/percent/{percent}")
            seen = client.get(place)
            print(seen.status_code, seen.headers["X-Cache"], seen.text)
        tags = {"If-None-Match": seen.headers["ETag"]}
        print(client.get(place, headers=tags).status_code, client.get("/exports/9").status_code)


if __name__ == "__main__":
    main()
