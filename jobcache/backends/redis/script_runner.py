"""Run scripts on one server: by their digests, and again as text if the server refuses these.

A script is sent at once if a connection is open. Otherwise a task connects first, and all scripts
of the same turn of the event loop share it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from jobcache._concurrency.batching import Batcher, outcome_error, resolve_future
from jobcache.backends.redis.attempt import Attempt, SendAgain
from jobcache.backends.redis.refused_commands import is_refused, named

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobcache.backends.redis.connection_slot import ConnectionSlot
    from jobcache.backends.redis.identity import Identity
    from jobcache.backends.redis.round_trips import RoundTrips
    from jobcache.backends.redis.script_calls import Call, ScriptCalls

T = TypeVar("T")

EVAL_COMMANDS = "EVALSHA and EVAL"
"""The names of the commands that run scripts, for error messages."""

_CALLS = 50  # scripts to a pipeline

ScriptReply: TypeAlias = "tuple[Any, str]"
"""A reply as redis-py reads it, and the incarnation id of its server."""


class ScriptRunner:
    """Run scripts on one server.

    Args:
        calls: makes the commands.
        slot: the connection for scripts.
        identity: the identity of the server.
        trips: sends commands in tasks.
    """

    def __init__(
        self, calls: ScriptCalls, slot: ConnectionSlot, identity: Identity, trips: RoundTrips
    ) -> None:
        self._calls = calls
        self._slot = slot
        self._identity = identity
        self._trips = trips
        self._batches: Batcher[Call, ScriptReply] = Batcher(self._evaluate_soon, _CALLS)

    def call(
        self,
        call: Call,
        convert: Callable[[ScriptReply], T],
        translate: Callable[[BaseException], BaseException],
    ) -> asyncio.Future[T]:
        """Return a future of a script's reply, converted.

        It is sent at once; further calls of the same turn of the loop are sent together. Needs no
        task if a connection is open.

        Args:
            call: the script and its arguments.
            convert: makes the result of the reply.
            translate: returns the error to raise in place of one of redis-py, or an `OSError`.
        """
        incarnation = None if self._trips.uses_pool else self._slot.incarnation()
        if incarnation is None:
            evaluated: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._evaluate_batched(call, convert, translate, evaluated)
            return evaluated
        attempt: Attempt[T] = Attempt(
            self._identity,
            incarnation,
            partial(self._result, convert),
            partial(self._evaluate_batched, call, convert, translate),
            translate,
        )
        try:
            commands = self._calls.by_digest((call,), str(incarnation.incarnation_id))
            self._slot.send(commands, attempt.on_replies)
        except Exception as error:  # noqa: BLE001 - raised to the caller, who awaits the future
            attempt.future.set_exception(error)
        return attempt.future

    async def call_asking(self, call: Call) -> ScriptReply:
        """Call a script on a key whose slot is migrating to this server.

        Raises:
            RedisError: the server did not answer, or has refused the script.
        """
        (reply,) = await self._evaluate([call], asking=True)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def cancel(self) -> None:
        """Cancel the calls that have not been sent."""
        self._batches.cancel()

    def _result(
        self, convert: Callable[[ScriptReply], T], replies: list[Any], incarnation_id: str
    ) -> T:
        """Return the script's result, converted.

        Raises:
            SendAgain: the script must be sent as text.
        """
        (reply,) = replies
        if not isinstance(reply, Exception):
            return convert((reply, incarnation_id))
        if self._calls.wants_text(reply):
            raise SendAgain
        raise named(EVAL_COMMANDS, reply)

    def _evaluate_batched(
        self,
        call: Call,
        convert: Callable[[ScriptReply], T],
        translate: Callable[[BaseException], BaseException],
        evaluated: asyncio.Future[T],
    ) -> None:
        """Call a script in a task, which all such calls of this turn of the loop share."""
        self._batches.request(call).add_done_callback(
            partial(_convert, evaluated, convert, translate)
        )

    def _evaluate_soon(
        self, calls: Sequence[Call]
    ) -> asyncio.Future[Sequence[ScriptReply | Exception]]:
        return self._trips.start(self._evaluate(calls))

    async def _evaluate(
        self, calls: Sequence[Call], *, asking: bool = False
    ) -> Sequence[ScriptReply | Exception]:
        replies, incarnation_id = await self._trips.exchange(
            self._slot, partial(self._calls.by_digest, calls), asking=asking
        )
        results = [(reply, incarnation_id) for reply in replies]
        again = [n for n, reply in enumerate(replies) if self._calls.wants_text(reply)]
        if again:
            # The server was restarted, or has flushed its scripts, or does not allow EVALSHA.
            some = [calls[n] for n in again]
            replies, incarnation_id = await self._trips.exchange(
                self._slot, partial(self._calls.as_text, some), asking=asking
            )
            for n, reply in zip(again, replies, strict=True):
                if is_refused(results[n][0]) and not isinstance(reply, Exception):
                    self._calls.use_text(results[n][0])
                results[n] = reply, incarnation_id
        return [
            named(EVAL_COMMANDS, each[0]) if isinstance(each[0], Exception) else each
            for each in results
        ]


def _convert(
    converted: asyncio.Future[T],
    convert: Callable[[ScriptReply], T],
    translate: Callable[[BaseException], BaseException],
    calling: asyncio.Future[ScriptReply],
) -> None:
    error = outcome_error(calling)
    found: T | BaseException
    try:
        found = convert(calling.result()) if error is None else translate(error)
    except Exception as unexpected:  # noqa: BLE001 - raised to the caller
        found = unexpected
    resolve_future(converted, found)
