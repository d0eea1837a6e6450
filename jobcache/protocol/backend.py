"""The contract between `JobCache` and the places where entries live.

A backend keeps one *cell* per key. A cell is empty, or holds exactly one of

    a lease    one reader is loading this key from the source
    a fence    writers are about to commit, or have committed, a newer version
    an entry   a committed version, safe to serve

and only the operations below change it. Each is one atomic step for its key: a critical section
in a process, one script on a server. No operation waits for another caller. A backend may lose
any cell at any time (eviction, expiry, restart); the protocol stays right when it does, and what
a lost fence can cost is bounded by the life of an entry.

Versions come from the source and are the only order trusted here: positive integers below 2**53,
raised by every committed change, in commit order. Version 0 says that the source knows no such
document. Tickets are unique strings of ASCII letters and digits, made anew for every load and
every write.

Every operation can be repeated with the same arguments without harm, so a client library may
retry what it does not know the outcome of. A backend that fails raises `CacheError` and nothing
else.

The protocol is explored, schedule by schedule, in `docs/coherence.md`; a new backend shows that it
keeps the contract by passing `jobcache.testing.conformance`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from jobcache.errors import InvalidDocument, InvalidKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.errors import CacheError

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
        version: its place in the document's history, from 1; 0 with an empty body where the
            source knows no such document.
        owner: whose it is. Kept beside the body, so that a hit can be refused without parsing.
        body: the bytes that answer a poll.
        status: what its lifetime in the cache is picked by.
        poll_after: how soon asking again makes sense, in seconds; None when it will not change.

    A `bytearray` or a `memoryview` given as the body is copied.

    Raises:
        InvalidDocument: a field is not of its type, or out of its range. What one backend could
            keep and another could not is refused before it gets to any.
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
        """The same entry, to be served only if the source cannot be asked."""
        return replace(self, fresh_ms=-CLOCK_SKEW_MS)  # no age is below that


class LeaseResult(Enum):
    """What `lease` found where there was no entry."""

    ACQUIRED = "nothing"
    """The cell was empty, and the lease is now the caller's."""
    HELD = "lease"
    """Somebody else is loading this key."""
    FENCED = "fence"
    """Writers are at work: what is loaded now is not to be stored."""


class PublishResult(Enum):
    """What `publish` did."""

    STORED = "stored"
    """The entry is in the cell and will be served."""
    PROLONGED = "prolonged"
    """The cell held this version already; its lifetime starts anew."""
    KEPT = "kept"
    """The cell holds a newer version, which stays."""
    FENCED = "fenced"
    """Other writers still stand in the fence; the last of them decides."""
    REMOVED = "removed"
    """The cell held what may be older, and is empty now."""
    NOTHING = "nothing"
    """The cell was empty, and stays so: the token's lease or fence has been lost."""


class CacheBackend(Protocol):
    """Where cells live. See the module's docstring for what holds of every operation."""

    @property
    def name(self) -> str:
        """A short name for people: "memory", "redis"."""

    async def get(self, key: str) -> Entry | None:
        """The entry at `key`; None where there is none, whatever else the cell holds.

        Raises:
            UnreadableCell: the cell holds something no backend of this version wrote. A backend
                that cannot tell may return None: `lease` will tell.
            CacheUnavailable: the store did not answer.
        """

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """The entries at `keys`, without those that have none or an unreadable one.

        Each cell is read atomically; the batch as a whole is not.

        Raises:
            CacheUnavailable: the store did not answer.
        """

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take the lease of an empty cell; otherwise leave the cell and say what it holds.

        A caller who finds its own lease there holds it: `LeaseResult.ACQUIRED`. The lease is lost
        after a few seconds, or after the time that `SupportsLeaseTime` was told of.

        Raises:
            UnreadableCell: as for `get`; the cell is left as it is.
            CacheUnavailable: the store did not answer; the lease may have been taken.
        """

    async def fence(self, key: str, token: str) -> None:
        """From now on nothing in this cell is served until every token has left the fence.

        An entry, a lease or an unreadable cell is replaced by a fence with this one token, whose
        floor is the entry's version, else 0. A standing fence takes the token in, and keeps its
        deadline: a writer that died cannot hold up a busy key for longer than one fence lives.

        Raises:
            CacheUnavailable: the store did not answer; the fence may stand.
        """

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Hand over a committed version, or withdraw (`entry` None: nothing was committed).

        What is done depends on the cell:

        - the token's own lease: the entry is stored; a withdrawal empties the cell;
        - another's lease: removed, for its holder may have loaded an older version; a
          withdrawal leaves it;
        - a fence: its floor is raised to the entry's version and the token leaves it. The last
          one out stores the entry if it is not below the floor, else empties the cell;
        - an older entry: removed. The same version: stored again, with a new lifetime. A newer
          one: left. A withdrawal leaves any;
        - an unreadable cell: removed, for nobody can say that it is not older;
        - nothing: left empty.

        An entry with `keep_ms` 0 is never kept: where it would be stored, the cell is emptied.

        Raises:
            CacheUnavailable: the store did not answer; any of the above may have happened.
        """

    async def purge(self, keys: Sequence[str]) -> int:
        """Empty these cells, but for fences, which stay. Returns how many held something to drop.

        Atomic per key only.

        Raises:
            CacheUnavailable: the store did not answer; some may have been dropped.
        """

    async def aclose(self) -> None:
        """Let go of connections and memory. Safe to call twice."""


@runtime_checkable
class SupportsPeek(Protocol):
    """A backend whose entries can be read without waiting, in this very turn of the loop."""

    def peek(self, key: str) -> Entry | None:
        """As `CacheBackend.get`, synchronously."""


@runtime_checkable
class SupportsCallbackGet(Protocol):
    """A backend that reads without a task for each read."""

    def ask(self, key: str, then: Callable[[Entry | CacheError | None], object]) -> bool:
        """Have `then` called, in a later turn, with what `CacheBackend.get` returns, or raises.

        It is called among others' answers: it should not wait, nor raise.

        Returns:
            False, and `then` is not called, if the key cannot be asked for now.
        """


@runtime_checkable
class SupportsCallbackGetMany(Protocol):
    """As `SupportsCallbackGet`, for many keys."""

    def ask_many(
        self, keys: Sequence[str], then: Callable[[Mapping[str, Entry] | Exception], object]
    ) -> bool:
        """Have `then` called, in a later turn, with what `get_many` returns, or raises.

        Returns:
            False, and `then` is not called, if `get_many` has to be used.
        """


@runtime_checkable
class SupportsDiscard(Protocol):
    """A backend whose cells can be emptied without waiting, in this very turn of the loop."""

    def drop(self, keys: Sequence[str]) -> int:
        """As `CacheBackend.purge`, synchronously."""

    def drop_all(self) -> int:
        """As `SupportsPurgeAll.purge_all`, synchronously."""


@runtime_checkable
class SupportsPurgeAll(Protocol):
    """A backend that can find all keys of its namespace."""

    async def purge_all(self) -> int:
        """Empty every cell of the namespace, fences too, as an eviction would.

        Takes as long as there are keys to look at. So nobody sets it a deadline: it raises by
        itself when the store does not answer one of its steps.

        Returns how many cells were dropped. What is stored meanwhile may stay.

        Raises:
            CacheUnavailable: the store did not answer. Some cells may have been dropped.
        """


@runtime_checkable
class SupportsNamespaceOwner(Protocol):
    """A backend in whose store a service with another source may use the same keys."""

    def identify(self, source_id: str) -> None:
        """From now on, refuse a store that belongs to another source. To be called before `start`.

        Args:
            source_id: the identity of the source, such as a random id kept in the database. All
                processes that share the source give the same.
        """


@runtime_checkable
class SupportsPing(Protocol):
    """A backend whose store can be away."""

    async def ping(self) -> None:
        """Return if the store does all that the backend needs; raise `CacheUnavailable` if not."""


@runtime_checkable
class SupportsSize(Protocol):
    """A backend that knows how much it holds in this process."""

    def size(self) -> tuple[int, int]:
        """How many cells it holds, and about how many bytes they take."""


@runtime_checkable
class SupportsVersionHint(Protocol):
    """A backend that can be told, without waiting, what its store has yet to hear of."""

    def remember(self, key: str, version: int) -> None:
        """The source has `version` of `key`; the store could not be asked what it holds.

        From now on this process is given nothing older, and the store is told when it can be.
        """


@runtime_checkable
class SupportsLeaseTime(Protocol):
    """A backend that can be told how long a lease has to last.

    A lease that is lost before its load has ended keeps the result from being stored. So it lasts
    as long as a load may take. That costs little where a reader dies: whoever finds its lease
    waits for a moment, loads, and by its publish removes the lease, so the next reader stores.

    Rejected: short leases, which their readers renew. Each slow load would send an operation every
    few seconds, and a renewal that arrives after the lease was lost must not take it anew:

        R leases, loads v1; W fences, commits v2, publishes it; v2 is evicted
        R's renewal leases the empty cell; R publishes v1, and it is stored
    """

    def set_lease_time(self, seconds: float) -> None:
        """Have leases that are taken from now on last for `seconds` at least."""


@runtime_checkable
class SupportsBodyCheck(Protocol):
    """A backend that reads cells which another process may have written."""

    def set_body_check(self, check: Callable[[str, bytes], object]) -> None:
        """Have the body of each new entry read, and `check` called with key and body.

        If its encoding cannot be undone, or `check` raises, the cell is an `UnreadableCell`.
        """


@runtime_checkable
class SupportsClockSteps(Protocol):
    """A backend that has to know when the wall clock was set back."""

    def clock_set_back(self, latest_ms: int) -> None:
        """Distrust the age of entries that were stored before now.

        They look younger than they are. So each is confirmed by the source before it is served.

        Args:
            latest_ms: the latest time that the clock has shown.
        """


@runtime_checkable
class SupportsStart(Protocol):
    """A backend with something to do before it is used first."""

    async def start(self) -> None:
        """Do it. A store that is away is no error.

        Raises:
            NamespaceConflict: the store belongs to another source; see `SupportsNamespaceOwner`.
        """


class ChangeListener(Protocol):
    """What a `ChangeFeed` tells. Synchronous, and quick: the feed waits for it."""

    def changed(self, keys: Sequence[str]) -> None:
        """These cells have changed, or may have; each change is told once or more."""

    def interrupted(self) -> None:
        """The feed is not live any more: what changes from now on is not told."""

    def resumed(self) -> None:
        """The feed is live. Anything may have changed before."""


class ChangeFeed(Protocol):
    """Tells a process which cells of a shared store change, whoever changes them.

    A change is told after it was made, by as much as the feed lags, and in the order of changes. A
    feed that cannot be sure of that is not live, and says so.
    """

    @property
    def live(self) -> bool:
        """Whether all that changes from now on will be told."""

    def listen(self, listener: ChangeListener) -> None:
        """Have `listener` told from now on, after those that have listened for longer."""

    def start(self) -> None:
        """Begin, in the running loop. Safe to call again."""

    def condition(self) -> FeedStatus:
        """How it is now."""

    async def aclose(self) -> None:
        """End. Safe to call twice."""


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """How a feed is.

    Attributes:
        state: "idle" (not started: nobody needs it), "connecting", "live", or "unsupported" (the
            store has none).
        age: seconds in that state.
        reason: why it is not live, for people; empty while it is, and while nobody needs it.
        interruptions: how often it has ceased to be live.
        lag_us: percentiles, in microseconds, of how long its own timed writes took to be told.
    """

    state: Literal["idle", "connecting", "live", "unsupported"]
    age: float
    reason: str
    interruptions: int
    lag_us: Mapping[str, float]


@runtime_checkable
class SupportsChangeFeed(Protocol):
    """A backend whose store can tell what changes in it."""

    def feed(self) -> ChangeFeed | None:
        """The one feed of this backend, not started unless it is in use; None if it has none."""


@runtime_checkable
class SupportsTiers(Protocol):
    """A backend of two tiers: a local one that `peek` reads, and the remote one behind it."""

    @property
    def tiers(self) -> tuple[str, str]:
        """Their names: near, far."""


@runtime_checkable
class SupportsHealth(Protocol):
    """A backend behind a breaker."""

    def condition(self) -> Health:
        """How it is now."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a backend's store is.

    Attributes:
        available: False while the cache is skipped.
        state: "closed" (in use) or "open" (skipped).
        age: seconds in that state.
        reason: why it is not in use, for people; empty while it is.
        pending: how many keys the store has yet to be told of; they are not read meanwhile.
            None: all of them.
    """

    available: bool
    state: Literal["closed", "open"]
    age: float
    reason: str
    pending: int | None
