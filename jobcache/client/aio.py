"""The rules, run by asyncio over httpx."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Self, Unpack

import httpx

from jobcache.client.core import requests
from jobcache.client.core.rules import Request, Response, Rules, Sleep, TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from jobcache.client.core.rules import Counts, Reply, Steps
    from jobcache.client.jobs import Job


class AsyncJobs:
    """Jobs of one service, asked for by any number of tasks of one event loop.

    Args:
        address: of the service, such as `https://videos.example`; may be empty if `http` has a
            `base_url`.
        key: an API key; None where the service has none.
        http: a client to send with, which stays open when this one is closed. Each job that is
            waited for takes one of its connections, so raise its limit (100 unless told).
        rules: with another clock or chance, for tests.
        sleep: as above.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        http: httpx.AsyncClient | None = None,
        rules: Rules | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._address = address.rstrip("/")
        self._authorization = requests.authorization(key)
        self._ours = http is None
        self._http = httpx.AsyncClient(limits=requests.LIMITS) if http is None else http
        self._rules = Rules() if rules is None else rules
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        if self._ours:
            await self._http.aclose()

    @property
    def counts(self) -> Counts:
        """What it has done so far."""
        return self._rules.counts

    async def wait_for(
        self,
        job_id: int,
        *,
        on_progress: Callable[[Job], object] | None = None,
        until: Collection[str] = (),
        timeout: float | None = None,  # noqa: ASYNC109 - what is left of it goes into requests
        wait: int = 25,
    ) -> Job:
        """Wait until a job is terminal, whatever becomes of connections and of the service.

        Args:
            job_id: which.
            on_progress: called with the first version seen and every newer one, in order, each
                once; versions that come between two answers are left out. It may be asynchronous,
                and is awaited before the next request. What it raises ends the wait.
            until: statuses that end it, too, such as `storyboard_ready`.
            timeout: seconds for all of it, or None for as long as it takes.
            wait: seconds for which the service is asked to hold each request, up to 60; 0 is not
                to. Less than what lies between here and the service cuts idle connections after.

        Returns:
            The job as it was in the end.

        Raises:
            Refused: the service will not show this job: `Unauthorized`, `NotFound` and so on.
            WaitTimeout: the time is up, or will be before the service may be asked again.
            ValueError: an argument is out of range.
        """
        steps = self._rules.wait_for(job_id, until=until, timeout=timeout, wait=wait)
        return await self._run(steps, on_progress)

    async def get(self, job_id: int) -> Job:
        """A job as it is now. Tried again for half a minute, then `Unavailable`; or `Refused`."""
        return await self._run(requests.get(self._rules, job_id))

    async def create(
        self,
        client_id: str,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[requests.NewJob],
    ) -> Job:
        """Ask for a video. Tried again as `get`: its key makes one job of all tries.

        Args:
            client_id: whose it is.
            prompt: what it is about.
            idempotency_key: finds the job of an earlier call with the same key; None for a new one.
            fields: see `NewJob`.
        """
        return await self._run(
            requests.create(self._rules, client_id, prompt, idempotency_key, **fields)
        )

    async def approve(self, job_id: int) -> Job:
        """The storyboard is as it should be. Sent once; after `Unavailable`, repeating is fine."""
        return await self._run(requests.move(self._rules, job_id, "approve"))

    async def render(self, job_id: int) -> Job:
        """Begin to render. Sent once, as `approve`."""
        return await self._run(requests.move(self._rules, job_id, "render"))

    async def cancel(self, job_id: int) -> Job:
        """Stop the job, whatever it is at. Sent once, as `approve`."""
        return await self._run(requests.move(self._rules, job_id, "cancel"))

    async def _run(self, steps: Steps, on_progress: Callable[[Job], object] | None = None) -> Job:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                job: Job = end.value
                return job
            reply = None
            if isinstance(step, Request):
                reply = await self._ask(step)
            elif isinstance(step, Sleep):
                await self._sleep(step.seconds)
            elif on_progress is not None:
                heard = on_progress(step.job)
                if inspect.isawaitable(heard):
                    await heard

    async def _ask(self, ask: Request) -> Response | TransportError:
        try:
            # httpx times each read; this, an answer that drips.
            async with asyncio.timeout(ask.timeout):
                response = await self._http.request(
                    **requests.request(ask, self._address, self._authorization)
                )
        except requests.MISTAKES:
            raise
        except (httpx.RequestError, TimeoutError) as error:
            return TransportError(error)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status_code, headers, response.content)
