"""The mapped classes that the tests of the ORM use."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from jobcache import Document
from jobcache.orm.sqlalchemy import Binding, count_from_clock


class Base(DeclarativeBase):
    """What all have in common."""


class Export(Base):
    """A row with a document."""

    __tablename__ = "orm_exports"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy reads it once
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    percent: Mapped[int] = mapped_column(default=0)
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2), default=Decimal(0))
    parts: Mapped[list[Part]] = relationship(back_populates="export", cascade="all, delete-orphan")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the same


class Part(Base):
    """A row with a key of its own choice, which may return."""

    __tablename__ = "orm_parts"
    export_id: Mapped[int] = mapped_column(ForeignKey(Export.id), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int] = mapped_column(default=0)
    export: Mapped[Export] = relationship(back_populates="parts")
    __mapper_args__ = {  # noqa: RUF012 - the same
        "version_id_col": version,
        "version_id_generator": count_from_clock,
    }


class Note(Base):
    """A row that is in no cache."""

    __tablename__ = "orm_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def export_document(export: Export) -> Document:
    body = {"percent": export.percent, "price": str(export.price)}
    return Document(export.version, "acme", json.dumps(body).encode())


def part_document(part: Part) -> Document:
    return Document(part.version, "acme", b'{"size": %d}' % part.size)


EXPORTS = Binding(Export, key="export:{id}", document=export_document)
PARTS = Binding(Part, key="part:{export_id}:{name}", document=part_document)
BINDINGS: list[Binding[Any]] = [EXPORTS, PARTS]
