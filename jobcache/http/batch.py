"""Batches: many documents in one response."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from jobcache.cache import JobCache
    from jobcache.protocol.document import Document
    from jobcache.protocol.entry import Entry

Id = TypeVar("Id")


async def read_visible(
    cache: JobCache,
    ids: Mapping[str, Id],
    load_many: Callable[[Sequence[Id]], Awaitable[Mapping[Id, Document]]],
    can_view: Callable[[Entry], bool],
) -> dict[Id, bytes]:
    """Return the bodies of the documents that a client may see, in their order.

    Args:
        cache: where they are read.
        ids: the ids by key.
        load_many: called with the ids that the cache lacks; returns their documents.
        can_view: tells whether the client may see an entry.

    Raises:
        Exception: as `JobCache.read_many`.
    """
    keys = {each: key for key, each in ids.items()}

    async def load(missing: Sequence[str]) -> Mapping[str, Document]:
        found = await load_many([ids[key] for key in missing])
        return {keys[each]: document for each, document in found.items() if each in keys}

    results = await cache.read_many(ids, load)
    return {
        ids[key]: result.body
        for key, result in results.items()
        if not result.missing and can_view(result.entry)
    }


def items_body(bodies: Iterable[bytes], name: str, value: object) -> bytes:
    """Return JSON with documents as `items`, beside one other member."""
    return b'{"items":[%b],"%b":%b}' % (
        b",".join(bodies),
        name.encode(),
        json.dumps(value).encode(),
    )
