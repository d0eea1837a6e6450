"""SQLAlchemy sessions that keep the cache coherent.

exports = Binding(Export, key="export:{id}", document=export_document)
sessions = async_sessionmaker(
    engine, sync_session_class=CoherentSession, cache=cache, bindings=[exports]
)
load = exports.loader(sessions)

async with sessions.begin() as session:
    export = await session.get_one(Export, 7)
    export.percent = 50
# committed and published
result = await cache.read(exports.key(7), load(7))
"""

from jobcache.orm.sqlalchemy.binding import Binding, BindingError
from jobcache.orm.sqlalchemy.notify import notify
from jobcache.orm.sqlalchemy.session import CoherentSession, mark_changed
from jobcache.orm.sqlalchemy.versions import count_from_clock

__all__ = [
    "Binding",
    "BindingError",
    "CoherentSession",
    "count_from_clock",
    "mark_changed",
    "notify",
]
