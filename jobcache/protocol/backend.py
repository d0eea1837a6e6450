"""The contract between `JobCache` and the places where entries live.

A backend keeps one *cell* for each key. A cell is empty, or holds exactly one of these:

    a lease    one reader is loading this key from the source
    a fence    writers are about to commit, or have committed, a newer version
    an entry   a committed version, safe to serve

Only the operations of `CacheBackend` change a cell. `jobcache.protocol.cell` says what each of them
makes of what a cell holds. The rest of the contract is here:

- Each operation is one atomic step for its key: a critical section in a process, a script on a
  server, a read and a compare-and-set that is tried again. No operation waits for another caller.
- A backend may lose any cell at any time, by eviction, expiry or restart. Nothing old is served
  then. What a lost fence can hide is bounded by the lifetime of an entry.
- Leases, fences and entries expire. An expired cell is an empty cell.
- Each operation can be repeated with the same arguments without harm. So a client library may
  retry an operation whose outcome it does not know.
- A backend that fails raises `CacheError` and nothing else.

Versions come from the source, and are the only order that is trusted: positive integers below
2**53, raised by every committed change, in commit order. Version 0 says that the source knows no
such document. Tokens are unique strings of ASCII letters and digits, made anew for every load and
every write.

`docs/coherence.md` explains why this is enough. A new backend shows that it keeps the contract by
passing `jobcache.testing.conformance`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from jobcache.errors import InvalidDocument, InvalidKey

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence


Encoding = Literal["identity", "gzip"]

VERSION_LIMIT = 2**53
"""Versions stay below this, so that Lua's numbers hold them exactly."""

LONGEST_KEY = 4096
"""The most bytes that a key may have, in UTF-8."""

CLOCK_SKEW_MS = 1000
"""What the wall clocks of well-kept hosts may differ by, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Document:
    """One version of a document as the source has committed it.

    Attributes:
        version: its place in the document's history, from 1; 0 with an empty body if the source
            knows no such document.
        owner: the owner. It is kept beside the body, so that a hit can be refused without parsing.
        body: the bytes that answer a poll.
        status: decides about its lifetime in the cache.
        poll_after: seconds after which another poll makes sense; None if the document is final.

    A `bytearray` or a `memoryview` given as the body is copied.

    Raises:
        InvalidDocument: a field has a wrong type or is out of its range. Values that only some
            backends could store are refused for all of them.
    """

    version: int
    owner: str
    body: bytes
    status: str = ""
    poll_after: int | None = None

    def __post_init__(self) -> None:
        _check_number("version", self.version)
        if self.poll_after is not None:
            _check_number("poll_after", self.poll_after)
        object.__setattr__(self, "owner", _plain_text("owner", self.owner))
        object.__setattr__(self, "status", _plain_text("status", self.status))
        if type(self.body) is not bytes:
            if not isinstance(self.body, bytes | bytearray | memoryview):
                raise InvalidDocument(f"the body is of type {_type(self.body)}; it must be bytes")
            object.__setattr__(self, "body", bytes(self.body))


def _check_number(name: str, number: object) -> None:
    # Not isinstance: a bool is an int, and a driver's own type may not be written as one.
    if type(number) is not int:
        raise InvalidDocument(f"{name}={number!r:.40} is of type {_type(number)}; it must be int")
    if not 0 <= number < VERSION_LIMIT:
        raise InvalidDocument(f"{name}={number} is out of range: 0 to {VERSION_LIMIT - 1}")


def _plain_text(name: str, text: object) -> str:
    if type(text) is not str:
        if not isinstance(text, str):
            raise InvalidDocument(f"{name} is of type {_type(text)}; it must be str")
        text = str.__str__(text)  # of an enumeration, say
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidDocument(f"{name} cannot be encoded in UTF-8: {error.reason}") from None
    return text


def _type(value: object) -> str:
    return type(value).__name__


def check_key(key: object) -> None:
    """Check that `key` is one that every backend can use.

    Raises:
        InvalidKey: it is none.
    """
    if not isinstance(key, str):
        raise InvalidKey(f"a key is of type {_type(key)}; it must be str")
    try:
        length = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(f"the key {key!r:.80} has no form in UTF-8: {error.reason}") from None
    if length > LONGEST_KEY:
        raise InvalidKey(f"the key {key[:40]!r}... has {length} bytes; at most {LONGEST_KEY}")


GONE = Document(version=0, owner="", body=b"", status="gone")
"""What a loader's None stands for: no such document."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed version of one document, ready to serve.

    Attributes:
        version: see `Document`.
        owner: see `Document`.
        status: see `Document`.
        poll_after: see `Document`.
        encoded_body: the body, in `encoding`; `ReadResult.body` is the body without it.
        encoding: "gzip" where the body was large enough to be worth it, else "identity".
        stored_at_ms: wall-clock time of the load or commit, in milliseconds since the epoch. It
            only feeds ages shown to people and `fresh_ms`; no decision about order rests on it.
        fresh_ms: for how long after that it is served without asking the source.
        keep_ms: for how long a backend keeps it, grace included. 0: it is not kept at all.
    """

    version: int
    owner: str
    status: str
    poll_after: int | None
    encoded_body: bytes
    encoding: Encoding
    stored_at_ms: int
    fresh_ms: int
    keep_ms: int

    @property
    def gone(self) -> bool:
        """True if this entry says that the source knows no such document."""
        return self.version == 0

    def past_its_freshness(self) -> Entry:
        """Return the same entry, to be served only if the source cannot be asked."""
        return replace(self, fresh_ms=-CLOCK_SKEW_MS)  # no age is below that


class LeaseResult(Enum):
    """What `lease` returns if the cell holds no entry."""

    ACQUIRED = "nothing"
    """The cell was empty or held the caller's lease, and holds the caller's lease now."""
    HELD = "lease"
    """Another reader is loading this key."""
    FENCED = "fence"
    """Writers are at work. What is loaded now must not be stored."""


class PublishResult(Enum):
    """What `publish` did."""

    STORED = "stored"
    """The cell holds the entry, which will be served."""
    PROLONGED = "prolonged"
    """The cell held this version already; its lifetime starts anew."""
    KEPT = "kept"
    """The cell stays as it is: it holds a newer version, or there is nothing to withdraw."""
    FENCED = "fenced"
    """Other writers have not left the fence; the last of them decides."""
    REMOVED = "removed"
    """The cell is empty now: what it held may be older, or was withdrawn."""
    NOTHING = "nothing"
    """The cell was empty and stays empty: the token's lease or fence was lost."""


class CacheBackend(Protocol):
    """Where cells live. The module's docstring says what holds for every operation."""

    @property
    def name(self) -> str:
        """A short name for people: "memory", "redis"."""

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None if the cell is empty or holds something else.

        Raises:
            UnreadableCell: no backend of this version wrote what the cell holds. A backend that
                cannot tell may return None, because `lease` will tell.
            CacheUnavailable: the store did not answer.
        """

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`, without the keys that have none or an unreadable one.

        Each cell is read atomically; the batch as a whole is not.

        Raises:
            CacheUnavailable: the store did not answer.
        """

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take the lease of an empty cell; leave any other cell and return its content.

        A lease shows other readers that one of them is loading the key, and lets its holder store
        the loaded entry. It is lost after a few seconds, or after the time that was given to
        `SupportsLeaseTime`.

        Raises:
            UnreadableCell: as for `get`; the cell stays as it is.
            CacheUnavailable: the store did not answer; the lease may have been taken.
        """

    async def fence(self, key: str, token: str) -> None:
        """Serve nothing from this cell until every token has left the fence.

        A writer fences before it commits. If another writer's fence stands already, the token
        enters that fence, which keeps its deadline: otherwise a writer that died could hold up a
        busy key for ever.

        Raises:
            CacheUnavailable: the store did not answer; the fence may stand.
        """

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish a committed version, or withdraw: with None, nothing was committed.

        The entry is stored only over the lease of `token`, or by the last token that leaves a
        fence, and never over a newer version. Everywhere else it only removes what may be older.
        An entry with `keep_ms` 0 removes in the same way, and is never stored. An entry that the
        store has no room for is not stored either; the result is then `REMOVED`.

        Raises:
            CacheUnavailable: the store did not answer; the entry may have been published.
        """

    async def purge(self, keys: Sequence[str]) -> int:
        """Empty these cells, but for fences, and return how many cells were emptied.

        Leases end as well, so a load that began before the purge stores nothing. Each cell is
        emptied atomically; the batch as a whole is not.

        Raises:
            CacheUnavailable: the store did not answer; some cells may have been emptied.
        """

    async def aclose(self) -> None:
        """Release connections and memory. Safe to call twice."""


@runtime_checkable
class SupportsPeek(Protocol):
    """A backend whose entries can be read without waiting."""

    def peek(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None, in this turn of the event loop."""


@runtime_checkable
class SupportsFutureGet(Protocol):
    """A backend that reads without a task of the caller's."""

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """Return a future of what `get_many` returns, or raises; to be awaited, or called back.

        To cancel the future changes nothing for others.
        """


@runtime_checkable
class SupportsFutureWrite(Protocol):
    """A backend that fences and publishes without a task of the caller's.

    Both go on if their future is cancelled.
    """

    def fence_future(self, key: str, token: str) -> asyncio.Future[None]:
        """Return a future of what `fence` returns, or raises."""

    def publish_future(
        self, key: str, token: str, entry: Entry | None
    ) -> asyncio.Future[PublishResult]:
        """Return a future of what `publish` returns, or raises."""


@runtime_checkable
class SupportsDiscard(Protocol):
    """A backend whose cells can be emptied without waiting."""

    def drop(self, keys: Sequence[str]) -> int:
        """Purge these cells in this turn of the event loop."""

    def drop_all(self) -> int:
        """Purge every cell, fences too, in this turn of the event loop."""


@runtime_checkable
class SupportsPurgeAll(Protocol):
    """A backend that can find all keys of its namespace."""

    async def purge_all(self) -> int:
        """Empty every cell of the namespace, fences too, as an eviction would.

        This takes time for each key, so no caller sets a deadline: the operation itself raises
        when the store does not answer one of its steps. Entries that are stored meanwhile may stay.

        Returns:
            How many cells were emptied.

        Raises:
            CacheUnavailable: the store did not answer. Some cells may have been dropped.
        """


@runtime_checkable
class SupportsNamespaceOwner(Protocol):
    """A backend in whose store a service with another source may use the same keys."""

    def identify(self, source_id: str) -> None:
        """Refuse a store that belongs to another source from now on; called before `start`.

        Args:
            source_id: the identity of the source, such as a random id kept in the database. All
                processes that share the source give the same.
        """


@runtime_checkable
class SupportsPing(Protocol):
    """A backend whose store can be away."""

    async def ping(self) -> None:
        """Raise `CacheUnavailable` unless the store does all that the backend needs."""


@runtime_checkable
class SupportsSize(Protocol):
    """A backend that keeps cells in this process."""

    def size(self) -> tuple[int, int]:
        """Return how many cells there are and about how many bytes they take."""


@runtime_checkable
class SupportsVersionHint(Protocol):
    """A backend that remembers versions for its store while the store does not answer."""

    def remember(self, key: str, version: int) -> None:
        """Note, without waiting, that the source has `version` of `key`.

        From now on this process reads nothing older. The backend publishes the version once the
        store answers again.
        """


@runtime_checkable
class SupportsLeaseTime(Protocol):
    """A backend with a configurable lease time.

    A lease that is lost before its load has ended keeps the result from being stored. So it lasts
    as long as a load may take. That costs little if its reader dies: the next reader finds the
    lease, waits for a moment, loads, and removes the lease by its publish. Then readers store
    again.

    Rejected: short leases, which their readers renew. Each slow load would send an operation every
    few seconds, and a renewal that arrives after the lease was lost must not take it anew:

        R leases, loads v1; W fences, commits v2, publishes it; v2 is evicted
        R's renewal leases the empty cell; R publishes v1, and it is stored
    """

    def set_lease_time(self, seconds: float) -> None:
        """Make new leases last for `seconds` at least."""


@runtime_checkable
class SupportsBodyCheck(Protocol):
    """A backend that reads cells which other processes may have written."""

    def set_body_check(self, check: Callable[[str, bytes], object]) -> None:
        """Call `check` with key and decoded body of each new entry.

        If the body cannot be decoded, or `check` raises, the cell is an `UnreadableCell`.
        """


@runtime_checkable
class SupportsClockSteps(Protocol):
    """A backend that has to react when the wall clock is set back."""

    def clock_set_back(self, latest_ms: int) -> None:
        """Distrust the age of entries that were stored before now.

        They look younger than they are. So the source confirms each before it is served.

        Args:
            latest_ms: the latest time that the clock has shown.
        """


@runtime_checkable
class SupportsStart(Protocol):
    """A backend that needs a start before its first use."""

    async def start(self) -> None:
        """Start. A store that does not answer is no error.

        Raises:
            NamespaceConflict: the store belongs to another source; see `SupportsNamespaceOwner`.
        """


class ChangeListener(Protocol):
    """Receives the events of a `ChangeFeed`, which waits for each call: they must be quick."""

    def changed(self, keys: Sequence[str]) -> None:
        """Handle a change of these cells. Each is reported at least once, some without a change."""

    def interrupted(self) -> None:
        """Handle the loss of the feed: changes are not reported from now on."""

    def resumed(self) -> None:
        """Handle the return of the feed. Anything may have changed before."""


class ChangeFeed(Protocol):
    """Reports to a process which cells of a shared store change.

    Changes are reported after they were made, later by the lag of the feed, and in their order. A
    feed that cannot guarantee this is not live, and reports that too.
    """

    @property
    def live(self) -> bool:
        """Whether every change from now on will be reported."""

    def listen(self, listener: ChangeListener) -> None:
        """Report to `listener` from now on, after the listeners that were added before."""

    def start(self) -> None:
        """Start in the running event loop. Safe to call again."""

    def condition(self) -> FeedStatus:
        """Return the present status."""

    async def aclose(self) -> None:
        """Close the feed. Safe to call twice."""


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """The status of a change feed.

    Attributes:
        state: "idle" (not started, because nobody needs it), "connecting", "live", or
            "unsupported" (the store has none).
        age: seconds in that state.
        reason: why it is not live, for people; empty while it is, and while nobody needs it.
        interruptions: how often it was live and ceased to be.
        lag_us: percentiles of the lag, in microseconds: of the time from the feed's own heartbeat
            writes to their reports.
    """

    state: Literal["idle", "connecting", "live", "unsupported"]
    age: float
    reason: str
    interruptions: int
    lag_us: Mapping[str, float]


@runtime_checkable
class SupportsChangeFeed(Protocol):
    """A backend whose store reports what changes in it."""

    def feed(self) -> ChangeFeed | None:
        """Return the one feed of this backend, or None. It may not have been started yet."""


@runtime_checkable
class SupportsTiers(Protocol):
    """A backend of two tiers: a local one that `peek` reads, and the remote one behind it."""

    @property
    def tiers(self) -> tuple[str, str]:
        """Their names: local, remote."""


@runtime_checkable
class SupportsHealth(Protocol):
    """A backend behind a circuit breaker."""

    def condition(self) -> Health:
        """Return the present health."""


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a backend's store.

    Attributes:
        available: False while the cache is skipped.
        state: "closed" (in use) or "open" (skipped).
        age: seconds in that state.
        reason: why it is not in use, for people; empty while it is.
        pending: for how many keys operations will be replayed; these keys are not read meanwhile.
            None: all keys.
    """

    available: bool
    state: Literal["closed", "open"]
    age: float
    reason: str
    pending: int | None
