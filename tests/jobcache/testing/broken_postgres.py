"""Backend "postgres" with one guard taken out at a time, to show that the explorer notices."""

from __future__ import annotations

# Loaded, because `Fault` looks for their files.
import jobcache.backends.postgres.backend
import jobcache.backends.postgres.connection
import jobcache.backends.postgres.feed  # noqa: F401
from jobcache.testing.simulation import Components
from tests.jobcache.testing.broken import Fault

_Changes = tuple[tuple[str, str], ...]


def postgres_parts(changes: dict[str, _Changes]) -> Components:
    """Return processes whose backend "postgres" is broken.

    Args:
        changes: by the module in `jobcache.backends.postgres`, what stands there and what stands
            there instead.
    """
    listening = Fault("backends.postgres.connection", changes.get("connection", ())).load()
    feed = Fault("backends.postgres.feed", changes.get("feed", ())).load()
    vars(feed)["listen"] = listening.listen
    backend = Fault("backends.postgres.backend", changes.get("backend", ())).load()
    return Components(postgres=backend.PostgresBackend, feed=feed.PostgresFeed)


_PUBLISHING = "            return await self._local.publish(key, token, entry)\n"
_PUBLISH = f"        if announced is None:\n{_PUBLISHING}"
_STORE = f"{_PUBLISHING}        return Pub"
_ARRIVED = "            arrived = await self._feed.arrived(key, token)\n"
_REPORT = "        self._local.drop(keys)\n\n    def interrupted"
_RETURN = "        self._local.drop_all()\n\n    # --- the rest"
_ENTRIES_ONLY = (
    "self._local.drop([key for part in self._local._parts for key in part.cells"
    " if self._local.peek(key)])"
)
_LEASE = (
    "        if self._feed.live:\n            return await self._local.lease",
    "        if True:\n            return await self._local.lease",
)
_NO_NOTIFICATION = (
    "notification_of(self._feed.channel, token, keys)",
    'notification_of("elsewhere", token, keys)',
)
_PROOF = "self._prove(self._sent_at + self._silence)"
_HEARTBEAT = (
    "        await self._writers.notify([*notifications, (self._own_channel, heartbeat)])\n",
    "        await self._connection.notify([*notifications, (self._own_channel, heartbeat)])\n",
)


def _unless(condition: str, *results: str) -> tuple[str, str]:
    skipped = f"        if announced is None and ({condition}):\n            return 0\n"
    return (_PUBLISH, skipped + _PUBLISH)


BROKEN: dict[str, dict[str, _Changes]] = {
    # --- reports ---
    "a report empties the cell": {"backend": ((_REPORT, "        pass\n\n    def interrupted"),)},
    "a report removes the lease of a load": {
        "backend": (
            (_REPORT, _REPORT.replace("keys)", "[it for it in keys if self._local.peek(it)])", 1)),
        )
    },
    # --- results ---
    "a result removes the lease of another load": {
        "backend": (_unless('getattr(self._local._cell(key), "token", token) != token'),)
    },
    "a result removes an older entry": {"backend": (_unless("self._local.peek(key) is not None"),)},
    "a result is published even while the feed is not live": {
        "backend": (_unless("not self._feed.live"),)
    },
    # --- writers ---
    "a writer acknowledges what this process cannot overlook": {
        "backend": ((_ARRIVED, "            arrived = True\n"),)
    },
    "a writer waits for its report": {"backend": ((_ARRIVED, "            pass\n"),)},
    "a writer whose report does not come empties the cell": {
        "backend": (
            ("            if not arrived:\n                self._local.drop((key,))\n", ""),
        )
    },
    "the entry of a write is stored over the lease that its report has taken": {
        "backend": ((_STORE, f"            self._local.lease_now(key, token)\n{_STORE}"),)
    },
    "only what is part of the commit takes the lease": {
        "backend": (
            ("self._reported, key, token) if announced else None", "self._reported, key, token)"),
            ("        return announced and arrived\n", "        return arrived\n"),
        )
    },
    "the notification is part of the commit": {"backend": (_NO_NOTIFICATION,)},
    "a notification that the transaction has not sent is sent late": {
        "backend": (
            _NO_NOTIFICATION,
            (
                "            if announced and not arrived and self._feed.live:\n",
                "            if 0:\n",
            ),
        )
    },
    "without it, the backend notifies": {
        "backend": (("            if not announced:\n", "            if False:\n"),)
    },
    "after a commit of unknown result, the backend notifies": {
        "backend": (("            if announced is False:\n", "            if False:\n"),)
    },
    "a notification that failed is repeated": {
        "feed": (("            self._owed.failed(token, keys)\n", "            pass\n"),)
    },
    "a notification that only a former primary has accepted is repeated": {
        "feed": (("            self._owed.sending(token, keys)\n", "            pass\n"),)
    },
    "a purge notifies": {
        "backend": (("            await self._feed.notify(unique, token)\n", ""),)
    },
    "a purge empties the cell": {
        "backend": (("dropped = self._local.drop(unique)", "dropped = 0"),)
    },
    "a purge waits for its report": {
        "backend": (("            await self._feed.arrived(unique[-1], token)\n", ""),)
    },
    # --- an interruption ---
    "a break ends the proof at once": {
        "feed": (
            (
                "        super()._interrupt(error)\n",
                (
                    "        proved = self._live_until\n"
                    "        super()._interrupt(error)\n"
                    "        self._live_until = proved\n"
                ),
            ),
        )
    },
    "no entry is served while the feed is not live": {
        "backend": (
            ("self._local.peek(key) if self._feed.live else None", "self._local.peek(key)"),
        )
    },
    "an interruption removes entries": {
        "backend": ((_RETURN, _RETURN.replace("self._local.drop_all()", "pass")),)
    },
    "an interruption removes leases": {
        "backend": ((_RETURN, _RETURN.replace("self._local.drop_all()", _ENTRIES_ONLY)),)
    },
    "an interruption removes leases, or none is taken meanwhile": {
        "backend": (_LEASE, (_RETURN, _RETURN.replace("self._local.drop_all()", _ENTRIES_ONLY)))
    },
    # --- the proof ---
    "the proof counts from the sending": {
        "feed": ((_PROOF, _PROOF.replace("self._sent_at", "self._clock()")),)
    },
    "the first heartbeat is sent once LISTEN is answered": {
        "connection": (
            (
                "                await connection.add_listener(channel, receive)\n",
                (
                    "                asyncio.ensure_future("
                    "connection.add_listener(channel, receive))\n"
                ),
            ),
        )
    },
    "the feed is live after a heartbeat": {
        "feed": (
            (
                "                await self._beat(listening)\n",
                (
                    '                self._awaited, self._sent_at = "0", self._clock()\n'
                    '                self._came_back("0")\n'
                    "                await self._beat(listening)\n"
                ),
            ),
        )
    },
    "heartbeats are sent from the pool": {"feed": (_HEARTBEAT,)},
    "another server has the pool renewed": {
        "feed": (
            (
                "                if self._incarnation not in {None, listening.incarnation}:\n",
                "                if False:\n",
            ),
        )
    },
    "a missing heartbeat has the pool renewed": {
        "feed": (
            (
                "                    await self._writers.renew()\n                    raise FeedL",
                "                    raise FeedL",
            ),
        )
    },
    "a pooler is refused, or heartbeats expose it": {
        "feed": (_HEARTBEAT,),
        "connection": (('!= "SELECT 1"', '== "never"'),),
    },
}
"""By the guard that is missing."""

SUPERFLUOUS: dict[str, dict[str, _Changes]] = {
    "no lease is taken while the feed is not live": {"backend": (_LEASE,)},
    "a writer waits for its own report and no other": {
        "feed": (
            (
                "in self._expected.get(token, {}).items():",
                "in [it for each in self._expected.values() for it in each.items()]:",
            ),
        )
    },
    "a pooler is refused": {"connection": (('!= "SELECT 1"', '== "never"'),)},
}
"""Guards that others make good for: they serve another end than coherence."""
