"""The rules, run by a thread over httpx."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, Unpack

import httpx

from jobcache.client.core import requests
from jobcache.client.core.rules import Request, Response, Rules, Sleep, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from jobcache.client.core.rules import Counts, Reply, Steps
    from jobcache.client.jobs import Job


class Jobs:
    """Jobs of one service, asked for by any number of threads. See `AsyncJobs` for the methods.

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
        http: httpx.Client | None = None,
        rules: Rules | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._address = address.rstrip("/")
        self._authorization = requests.authorization(key)
        self._ours = http is None
        self._http = httpx.Client(limits=requests.LIMITS) if http is None else http
        self._rules = Rules() if rules is None else rules
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        if self._ours:
            self._http.close()

    @property
    def counts(self) -> Counts:
        """What it has done so far."""
        return self._rules.counts

    def wait_for(
        self,
        job_id: int,
        *,
        on_progress: Callable[[Job], object] | None = None,
        until: Collection[str] = (),
        timeout: float | None = None,
        wait: int = 25,
    ) -> Job:
        """Wait until a job is terminal; see `AsyncJobs.wait_for`.

        `timeout` holds but for an answer that drips: httpx times each read, not all of them.
        """
        steps = self._rules.wait_for(job_id, until=until, timeout=timeout, wait=wait)
        return self._run(steps, on_progress)

    def get(self, job_id: int) -> Job:
        """A job as it is now."""
        return self._run(requests.get(self._rules, job_id))

    def create(
        self,
        client_id: str,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[requests.NewJob],
    ) -> Job:
        """Ask for a video."""
        return self._run(requests.create(self._rules, client_id, prompt, idempotency_key, **fields))

    def approve(self, job_id: int) -> Job:
        """The storyboard is as it should be."""
        return self._run(requests.move(self._rules, job_id, "approve"))

    def render(self, job_id: int) -> Job:
        """Begin to render."""
        return self._run(requests.move(self._rules, job_id, "render"))

    def cancel(self, job_id: int) -> Job:
        """Stop the job, whatever it is at."""
        return self._run(requests.move(self._rules, job_id, "cancel"))

    def _run(self, steps: Steps, on_progress: Callable[[Job], object] | None = None) -> Job:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                job: Job = end.value
                return job
            reply = None
            if isinstance(step, Request):
                reply = self._ask(step)
            elif isinstance(step, Sleep):
                self._sleep(step.seconds)
            elif on_progress is not None:
                on_progress(step.job)

    def _ask(self, ask: Request) -> Response | TransportError:
        try:
            response = self._http.request(
                **requests.request(ask, self._address, self._authorization)
            )
        except requests.MISTAKES:
            raise
        except httpx.RequestError as error:
            return TransportError(error)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status_code, headers, response.content)
