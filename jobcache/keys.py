"""The keys people expect to find with `redis-cli`, in one place."""


def progress_key(job_id: int) -> str:
    """The key of a job's status document."""
    return f"job:{job_id}:progress"


def storyboard_key(job_id: int) -> str:
    """The key of a job's storyboard."""
    return f"job:{job_id}:storyboard"


def jobs_key(client_id: str) -> str:
    """The key of a client's list of job ids."""
    return f"jobs:{client_id}"
