"""Ask for a video and follow it to its end, from asynchronous or synchronous code.

python examples/poller.py --url http://127.0.0.1:8000 "A cat sits. A dog runs."

Needs `pip install jobcache[client]` and a running service (`make run`). The API key,
if the service needs one, is read from JOBCACHE_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import os

from jobcache.client import AsyncJobs, Job, Jobs


def show(job: Job) -> None:
    """Print the progress of a job."""
    print(f"{job.status} {job.percent:.0f} %", flush=True)


async def follow(url: str, key: str | None, prompt: str) -> Job:
    """Follow a video from the prompt to its end; many of these may run in one event loop."""
    async with AsyncJobs(url, key) as jobs:
        job = await jobs.create("example", prompt)
        await jobs.wait_for(job.id, on_progress=show, until={"storyboard_ready"})
        await jobs.approve(job.id)
        await jobs.render(job.id)
        return await jobs.wait_for(job.id, on_progress=show)


def follow_in_thread(url: str, key: str | None, prompt: str) -> Job:
    """Follow a video without an event loop."""
    with Jobs(url, key) as jobs:
        job = jobs.create("example", prompt)
        jobs.wait_for(job.id, on_progress=show, until={"storyboard_ready"})
        jobs.approve(job.id)
        jobs.render(job.id)
        return jobs.wait_for(job.id, on_progress=show)


def main() -> None:
    """Parse the arguments, follow the video, and print its URL."""
    parser = argparse.ArgumentParser(description="Ask for a video and follow it to its end.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--sync", action="store_true", help="without an event loop")
    parser.add_argument("prompt")
    options = parser.parse_args()
    key = os.environ.get("JOBCACHE_KEY")
    if options.sync:
        job = follow_in_thread(options.url, key, options.prompt)
    else:
        job = asyncio.run(follow(options.url, key, options.prompt))
    print(f"{job.status}: {job.video_url if job.error is None else job.error}")


if __name__ == "__main__":
    main()
