"""The cache keys of jobs. Operators find the same keys with `redis-cli`.

With `{id}` instead of an id, they are the templates of the keys.
"""


def progress_key(job_id: int | str) -> str:
    """Return the key of a job's status document."""
    return f"job:{job_id}:progress"


def storyboard_key(job_id: int | str) -> str:
    """Return the key of a job's storyboard."""
    return f"job:{job_id}:storyboard"


def jobs_key(client_id: str) -> str:
    """Return the key of the list of a client's job ids."""
    return f"jobs:{client_id}"
