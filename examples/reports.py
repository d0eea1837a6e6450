"""A cached report without versions: a decorated query, an invalidation, and a group.

python examples/reports.py

Needs `pip install jobcache`. The database is a dictionary in memory, to keep the example short.
`docs/without-versions.md` explains what is promised.
"""

from __future__ import annotations

import asyncio
from typing import TypedDict

from jobcache import JobCache

READERS = 20


class Report(TypedDict):
    """What a page shows."""

    title: str
    total: int


class Sales:
    """The source of truth, which takes 10 ms for each query."""

    def __init__(self) -> None:
        self.titles = {7: "May", 8: "June"}
        self.amounts: dict[int, list[int]] = {7: [100, 20], 8: []}
        self.queries = 0

    async def report(self, report_id: int) -> Report | None:
        """Return the report, or None if there is none."""
        self.queries += 1
        await asyncio.sleep(0.01)
        if report_id not in self.titles:
            return None
        return Report(title=self.titles[report_id], total=sum(self.amounts[report_id]))


async def main() -> None:
    """Read reports, change one, then change all."""
    sales = Sales()
    async with JobCache.from_url("memory://") as cache:

        @cache.cached("report:{report_id}", ttl=60, tags=["reports"], cache_none=True)
        async def report(report_id: int) -> Report | None:
            return await sales.report(report_id)

        async def show(moment: str) -> None:
            first, *_ = await asyncio.gather(*(report(7) for _ in range(READERS)))
            print(f"{moment}: {first}, {sales.queries} queries")

        await show("at first")
        await show("again")

        sales.amounts[7].append(30)  # commit the change first
        await report.invalidate(7)  # then announce it
        await show("after a sale")

        print(f"report 9: {await report(9)}, {await report(9)}, {sales.queries} queries")

        sales.titles = {number: f"{title} 2026" for number, title in sales.titles.items()}
        await cache.invalidate_tags("reports")
        await show("after all titles have changed")


asyncio.run(main())
