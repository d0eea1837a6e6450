"""A mapped class, bound to the keys and the documents of its rows."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import inspect, select, tuple_
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Mapper

from jobcache._key_template import KeyTemplate
from jobcache.errors import InvalidDocument, WriteMisuse
from jobcache.loaders import with_session
from jobcache.orm.sqlalchemy.versions import BindingError, version_attribute
from jobcache.protocol.document import VERSION_LIMIT, Document, UnstoredDocument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, sessionmaker

    from jobcache.models import LoadMany

__all__ = ["Binding", "BindingError"]

T = TypeVar("T")

_MOST_PARAMETERS = 500
"""In one statement; old versions of SQLite allow 999."""


class Binding(Generic[T]):
    """Binds a mapped class to the keys and the documents of its rows.

        exports = Binding(Export, key="export:{id}", document=export_document)

    A class may have several bindings, with different keys. Subclasses share the bindings of their
    base class.

    Args:
        mapped: the class. Its mapper counts the versions of its rows (`version_id_col`).
        key: a template that names each attribute of the primary key in braces, such as
            `export:{id}`. If the primary key is a text, no other template may begin in the same
            way, such as `export:{id}:log`.
        document: makes the document of a row. It is given an object that was just loaded, in a
            session of its own, and may load related objects. The version must be that of the
            object. A related row that changes does not change the document before the next change
            of this row.

    Raises:
        BindingError: the class is not mapped, has no version that grows in the order of the
            commits, or the key does not name the primary key.

    Attributes:
        mapper: the mapper of the class.
        version: the name of the attribute with the version.
        tables: of the class and its base classes.
    """

    def __init__(self, mapped: type[T], *, key: str, document: Callable[[T], Document]) -> None:
        try:
            mapper = inspect(mapped)
        except NoInspectionAvailable:
            mapper = None
        if not isinstance(mapper, Mapper):
            raise BindingError(f"{mapped!r} is not a mapped class")
        self.mapped = mapped
        self.mapper: Mapper[T] = mapper
        self.version = version_attribute(mapper)
        self.primary_key = [
            mapper.get_property_by_column(column).key for column in mapper.primary_key
        ]
        self.tables = {
            table
            for each in (*mapper.iterate_to_root(), *mapper.self_and_descendants)
            for table in each.tables
        }
        try:
            self._template = KeyTemplate(key, self.primary_key)
        except ValueError as error:
            # Another column could change: a write would publish under the new key, and the old key
            # would keep its entry.
            named = ", ".join(f"{{{name}}}" for name in self.primary_key)
            raise BindingError(f"{error}. It names the primary key ({named})") from None
        self._document = document

    @cached_property
    def post_update(self) -> str | None:
        """The name of a relationship that updates rows of the class after a flush has written them.

        SQLAlchemy calls no event for these updates.
        """
        for mapper in self.mapper.registry.mappers:
            for relationship in mapper.relationships:
                related = (relationship.parent, relationship.mapper)
                if relationship.post_update and any(each.isa(self.mapper) for each in related):
                    return str(relationship)
        return None

    def key(self, *identity: object) -> str:
        """Return the key of the row with this primary key."""
        if len(identity) != len(self.primary_key):
            raise TypeError(
                f"a key of {self.mapped.__name__} needs {len(self.primary_key)} values, and was"
                f" given {len(identity)}"
            )
        return self._template(**dict(zip(self.primary_key, identity, strict=True)))

    def read(self, session: Session, identity: tuple[Any, ...]) -> Document | None:
        """Load a row and return its document, or None if there is no such row.

        The database may take other primary keys for equal, such as "a" and "A", or "7" and 7. The
        document of the wanted one is then not stored, because commits fence the key of the row:

            R loads row "a" as "A"; W commits version 2, and fences and publishes "a"
            if the document were stored under "A": the next reader of "A" is given version 1

        Raises:
            InvalidDocument: the function that makes documents returned something else.
            WriteMisuse: the document has another version than the row.
        """
        row = session.get(self.mapped, identity)
        if row is None:
            return None
        document = self._document_of(row, identity)
        found = self.mapper.primary_key_from_instance(row)
        if self.key(*found) != self.key(*identity):
            return UnstoredDocument.of(document)
        return document

    def read_many(
        self, session: Session, identities: Mapping[str, tuple[Any, ...]]
    ) -> dict[str, Document]:
        """Load rows with few statements, and return the documents of those that exist, by key.

        Args:
            session: a new session.
            identities: the primary keys, by key.

        Raises:
            InvalidDocument: the function that makes documents returned something else.
            WriteMisuse: a document has another version than its row.
        """
        columns = [getattr(self.mapped, name) for name in self.primary_key]
        wanted = list(identities.values())
        size = _MOST_PARAMETERS // len(columns)
        documents = {}
        for some in (wanted[start : start + size] for start in range(0, len(wanted), size)):
            if len(columns) == 1:
                condition = columns[0].in_([value for (value,) in some])
            else:
                condition = tuple_(*columns).in_(some)
            for row in session.scalars(select(self.mapped).where(condition)).unique():
                identity = tuple(self.mapper.primary_key_from_instance(row))
                documents[self.key(*identity)] = self._document_of(row, identity)
        if not documents.keys() <= identities.keys():
            # The database takes different primary keys for equal.
            for key in identities.keys() - documents.keys():
                document = self.read(session, identities[key])
                if document is not None:
                    documents[key] = document
        return documents

    def _document_of(self, row: T, identity: tuple[Any, ...]) -> Document:
        version = getattr(row, self.version)
        document = self._document(row)
        name = f"{self.mapped.__name__}{identity}"
        if not isinstance(document, Document):
            raise InvalidDocument(
                f"the document of {name} is of type {type(document).__name__}; it must be a"
                " jobcache.Document"
            )
        if type(version) is not int or not 0 < version < VERSION_LIMIT:
            raise WriteMisuse(f"{name} has version {version!r}; versions are integers from 1 on")
        if document.version != version:
            raise WriteMisuse(
                f"the document of {name} has version {document.version}, and the row has {version}"
            )
        return document

    @overload
    def loader(
        self, sessions: async_sessionmaker[Any]
    ) -> Callable[..., Callable[[], Awaitable[Document | None]]]: ...
    @overload
    def loader(
        self, sessions: sessionmaker[Any]
    ) -> Callable[..., Callable[[], Document | None]]: ...
    def loader(
        self, sessions: async_sessionmaker[Any] | sessionmaker[Any]
    ) -> Callable[..., Callable[[], Any]]:
        """Return a function that makes the loader of a row, for `JobCache.read`.

            load = exports.loader(sessions)
            result = await cache.read(exports.key(7), load(7))

        Each load opens a session of its own and closes it, so that no session of a request is used
        by a load that other requests share.

        Args:
            sessions: an `async_sessionmaker` for `jobcache.JobCache`, a `sessionmaker` for
                `jobcache.sync.JobCache`.
        """
        load: Callable[..., Any]
        if isinstance(sessions, async_sessionmaker):
            load = with_session(sessions, self._load)
        else:
            load = partial(self._load_in_thread, sessions)
        return lambda *identity: partial(load, identity)

    async def _load(self, session: AsyncSession, identity: tuple[Any, ...]) -> Document | None:
        return await session.run_sync(self.read, identity)

    def _load_in_thread(
        self, sessions: sessionmaker[Any], identity: tuple[Any, ...]
    ) -> Document | None:
        with sessions() as session:
            return self.read(session, identity)

    @overload
    def many_loader(
        self, sessions: async_sessionmaker[Any]
    ) -> Callable[[Iterable[Any]], LoadMany]: ...
    @overload
    def many_loader(
        self, sessions: sessionmaker[Any]
    ) -> Callable[[Iterable[Any]], Callable[[Sequence[str]], dict[str, Document]]]: ...
    def many_loader(
        self, sessions: async_sessionmaker[Any] | sessionmaker[Any]
    ) -> Callable[[Iterable[Any]], Callable[..., Any]]:
        """Return a function that makes the loader of many rows, for `JobCache.read_many`.

            load_many = exports.many_loader(sessions)
            results = await cache.read_many(map(exports.key, ids), load_many(ids))

        Each load opens a session of its own, and reads the rows that the cache lacks with one
        statement. The primary keys are tuples if they have several columns.

        Args:
            sessions: an `async_sessionmaker` for `jobcache.JobCache`, a `sessionmaker` for
                `jobcache.sync.JobCache`.
        """
        load: Callable[..., Any]
        if isinstance(sessions, async_sessionmaker):
            load = with_session(sessions, self._load_many)
        else:
            load = partial(self._load_many_in_thread, sessions)

        def loader(identities: Iterable[Any]) -> Callable[..., Any]:
            wanted = [each if isinstance(each, tuple) else (each,) for each in identities]
            return partial(load, {self.key(*each): each for each in wanted})

        return loader

    async def _load_many(
        self,
        session: AsyncSession,
        identities: Mapping[str, tuple[Any, ...]],
        keys: Sequence[str],
    ) -> dict[str, Document]:
        return await session.run_sync(self.read_many, {key: identities[key] for key in keys})

    def _load_many_in_thread(
        self,
        sessions: sessionmaker[Any],
        identities: Mapping[str, tuple[Any, ...]],
        keys: Sequence[str],
    ) -> dict[str, Document]:
        with sessions() as session:
            return self.read_many(session, {key: identities[key] for key in keys})
